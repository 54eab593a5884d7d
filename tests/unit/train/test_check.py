"""`moe check`."""

import shutil
from pathlib import Path

from moe.cli.main import main
from tests.tiny import tiny_config, write_config
from tests.unit.train.runs import train


def test_check_reads_every_byte_of_data_and_checkpoints_and_changes_nothing(tiny: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(tiny / "data", tmp_path / "data")
    settings = [f"train_data.local={tmp_path / 'data'}", f"save_folder={tmp_path / 'run'}", "eval_data=null"]
    config = str(write_config(tmp_path / "check.yaml", tiny_config(tiny)))
    assert main(["check", config, *settings]) == 0
    out = capsys.readouterr().out
    assert out.index("starting ...") < out.index("verifying the hashes of") < out.index("pass  data")
    assert "sizes and xxh64 of all shards" in out and "starts fresh" in out and not (tmp_path / "run").exists()
    assert train(tiny, tmp_path, *settings, "max_duration=4ba", "scheduler.t_warmup=1ba", "save_interval=2ba")[0] == 0
    assert main(["check", config, *settings]) == 0 and "goes on from step 4" in capsys.readouterr().out
    state = tmp_path / "run/step-00000004/state.pt"
    for path, fault in ((state, "goes on from step 2"), (tmp_path / "data/train/shard.00000.mds", "its bytes changed")):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert main(["check", config, *settings]) == 2
        assert fault.replace("goes on", "go on") in capsys.readouterr().out
    assert state.exists(), "nothing was set aside"
    assert main(["check", config, "model.top_k=9"]) == 2
    assert "exceeds model.n_experts" in capsys.readouterr().err
