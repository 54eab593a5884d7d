"""What a start refuses before it trains: one message, exit code 2."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from moe.config import load_config
from moe.train import loaders
from tests.unit.train.runs import train


def test_a_remote_that_is_not_there_is_named(tiny: Path, tmp_path: Path, capsys) -> None:
    code, _ = train(tiny, tmp_path, f"train_data.remote={tmp_path}/no", f"train_data.local={tmp_path}/cache")
    assert code == 2 and f"train_data.remote ({tmp_path}/no): meta.json cannot be fetched" in capsys.readouterr().err


BAD_INPUT = {
    "missing folder": (["train_data.local=nowhere"], "train_data.local (nowhere): there is no such folder"),
    "another sequence length": (["max_seq_len=64"], "set max_seq_len=32"),
    "no such split": (["eval_data.split=test"], "eval_data.split (test): "),
    "too few samples": (["global_train_batch_size=100000"], "fewer than the 100000 of one batch"),
    "fp16 without a GPU": (["precision=amp_fp16"], "precision (amp_fp16) needs a GPU"),
    "no such checkpoint": (["load_path=nowhere"], "nowhere: is not there; give a run folder"),
    "no such step": (["resume_from=step:7"], "resume_from (step:7): no such checkpoint"),
    "no such tokenizer": (["tokenizer=./nowhere"], "tokenizer './nowhere' cannot be loaded"),
    "folder in the way": (["save_folder=/dev/null/x"], "save_folder (/dev/null/x) cannot be used"),
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="amp_fp16 is fine on a GPU")
@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_message_and_exit_code_2(tiny: Path, tmp_path: Path, capsys, case: str) -> None:
    overrides, expected = BAD_INPUT[case]
    code, folder = train(tiny, tmp_path, *overrides)
    told = capsys.readouterr().err
    assert code == 2 and expected in told and "Traceback" not in told
    assert not folder.exists() or not list(folder.glob("step-*"))


def test_data_made_with_another_tokenizer_is_refused(tiny: Path, tmp_path: Path, capsys) -> None:
    from tests.tiny import write_text, write_tokenizer

    other = write_tokenizer(tmp_path / "other", write_text(tmp_path / "t.jsonl", seed=5), size=280)
    code, _ = train(tiny, tmp_path, f"tokenizer={other}")
    assert code == 2 and f"tokenizer ({other}) is not the one that train_data.local" in capsys.readouterr().err


def test_a_tokenizer_without_eos_is_refused(tiny: Path, tmp_path: Path, capsys) -> None:

    shutil.copytree(tiny / "tokenizer", tmp_path / "tok")
    path = tmp_path / "tok" / "tokenizer_config.json"
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key != "eos_token"}
    path.write_text(json.dumps(settings))
    (tmp_path / "tok" / "special_tokens_map.json").write_text("{}")
    code, _ = train(tiny, tmp_path, f"tokenizer={tmp_path / 'tok'}")
    assert code == 2 and "has no EOS token" in capsys.readouterr().err


def test_a_missing_or_truncated_shard_is_named_before_training(tiny: Path, tmp_path: Path, capsys) -> None:

    shutil.copytree(tiny / "data", tmp_path / "data")
    shard = next((tmp_path / "data" / "train").glob("shard.*.mds"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    assert train(tiny, tmp_path, f"train_data.local={tmp_path / 'data'}")[0] == 2
    err = capsys.readouterr().err
    assert f"{shard}: {len(content) - 100} bytes" in err and "Restore these files, or convert again" in err
    flipped = bytearray(content)
    flipped[-1] ^= 1
    shard.write_bytes(flipped)
    assert train(tiny, tmp_path, f"train_data.local={tmp_path / 'data'}", "train_data.verify=full")[0] == 2
    assert f"{shard}: its bytes changed" in capsys.readouterr().err
    shard.unlink()
    assert train(tiny, tmp_path, f"train_data.local={tmp_path / 'data'}")[0] == 2
    assert f"{shard}: missing" in capsys.readouterr().err


def test_too_little_shared_memory_is_told_before_a_loader_dies_of_it(
    tiny: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """Streaming died of a bus error, torch's loader with a traceback."""
    monkeypatch.setattr("moe.data.read.shared_memory.needed_bytes", lambda *_, **__: 1 << 60)
    code, _ = train(tiny, tmp_path, "num_workers=2")
    told = capsys.readouterr().err
    assert code == 2 and "/dev/shm has" in told and "lower num_workers (2)" in told and "Traceback" not in told


def test_a_machine_needs_room_for_its_own_share_of_a_batch(tiny: Path, monkeypatch) -> None:
    asked: list[tuple[int, int, bool]] = []
    monkeypatch.setattr(loaders, "MACHINES", 4)
    monkeypatch.setattr(loaders, "on_each", lambda call, here: call())
    monkeypatch.setattr(loaders, "refuse_little", lambda *sizes, converted: asked.append((*sizes, converted)))
    config = load_config(tiny / "tiny.yaml", ["num_workers=2", "global_train_batch_size=64", "max_seq_len=32"])
    loaders.check_shared_memory(config)
    assert asked == [(64 * 32 // 4, 2, True)]
