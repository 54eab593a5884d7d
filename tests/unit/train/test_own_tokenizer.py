"""A run has its tokenizer: it goes on with it, here and from a bucket, whatever became of the one it was named."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from moe.cli.main import main as moe
from moe.common.s3 import RemoteFolder
from moe.config import load_config
from moe.train.inputs import check_data, data_fingerprint, shards_fingerprint
from moe.use.export.to_hf import export
from tests.tiny import tiny_config, write_config, write_tokenizer
from tests.unit.train.runs import train

SHORT = ["scheduler.t_warmup=1ba", "eval_data=null", "save_interval=2ba"]
GREEDY = ["--temperature", "0", "--max-new-tokens", "8"]


@pytest.fixture
def own(tiny: Path, tmp_path: Path) -> Path:
    """The tiny data's tokenizer in a place of this test alone, which it may spoil."""
    return Path(shutil.copytree(tiny / "tokenizer", tmp_path / "tok"))


def train_anew(folder: Path) -> None:
    """Another tokenizer in the same place."""
    words = ["zebra", "quartz", "vexing", "jumbled", "fjord", "sphinx", "waltz", "glyph", "nymph", "dwarf"]
    texts = folder.parent / "other.jsonl"
    texts.write_text("".join(json.dumps({"text": f"{a} {b} {a}{b}"}) + "\n" for a in words for b in words))
    shutil.rmtree(folder)
    write_tokenizer(folder, texts)


def test_a_run_goes_on_with_its_own_tokenizer(tiny: Path, own: Path, tmp_path: Path, capsys) -> None:
    """A13: trained anew in place, then gone; another one that is named is refused as before."""
    assert train(tiny, tmp_path, f"tokenizer={own}", "max_duration=2ba", *SHORT)[0] == 0
    train_anew(own)
    told = f"the run continues with its own, {tmp_path / 'run' / 'tokenizer'}"
    assert train(tiny, tmp_path, f"tokenizer={own}", "max_duration=4ba", *SHORT)[0] == 0
    out = capsys.readouterr().out
    assert f"tokenizer ({own}) has changed; {told}" in out and "resumed from step 2" in out
    shutil.copytree(own, tmp_path / "elsewhere")
    shutil.rmtree(own)
    assert train(tiny, tmp_path, f"tokenizer={own}", "max_duration=6ba", *SHORT)[0] == 0
    out = capsys.readouterr().out
    assert told in out and "resumed from step 4" in out
    for other in (tmp_path / "elsewhere", tmp_path / "nowhere"):
        assert train(tiny, tmp_path, f"tokenizer={other}", "max_duration=8ba", *SHORT)[0] == 2
        assert f"{other}" in capsys.readouterr().err


def test_a_run_on_s3_is_used_with_the_tokenizer_it_was_trained_with(
    tiny: Path, own: Path, tmp_path: Path, bucket: str, monkeypatch, capsys
) -> None:
    """A13: trained anew in place; the bucket's step folder, fetched to an empty machine, generates and exports as
    before.
    """
    monkeypatch.chdir(tmp_path)
    command = [f"tokenizer={own}", f"save_folder={bucket}/run", "max_duration=2ba", *SHORT]
    assert train(tiny, tmp_path, *command)[0] == 0
    (step,) = Path("runs/tiny").glob("step-*")
    ids = AutoTokenizer.from_pretrained(own)("the model reads")["input_ids"]
    capsys.readouterr()
    assert moe(["generate", str(step), "the model", *GREEDY]) == 0
    expected = capsys.readouterr().out
    train_anew(own)
    shutil.rmtree("runs")
    store = RemoteFolder(f"{bucket}/run")
    for name in store.list(step.name):
        path = tmp_path / "fetched" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(name) or b"")
    assert moe(["generate", f"fetched/{step.name}", "the model", *GREEDY]) == 0
    assert capsys.readouterr().out == expected
    export(f"fetched/{step.name}", out=tmp_path / "hf", say=lambda line: None)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")("the model reads")["input_ids"] == ids
    assert moe(["generate", f"{bucket}/run", "the model"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert train(tiny, tmp_path, *command, "max_duration=4ba")[0] == 2, "the data was made with the old one"
    assert f"tokenizer ({own})" in capsys.readouterr().err


@pytest.mark.parametrize("holds", [True, False])
def test_a_checkpoint_that_names_its_data_as_earlier_versions_did(tiny: Path, tmp_path: Path, capsys, holds) -> None:
    """B3: it goes on while meta.json is still that file, and the next save writes today's name; else it is refused."""
    data = Path(shutil.copytree(tiny / "data", tmp_path / "data"))
    settings = [f"train_data.local={data}", *SHORT]
    _, folder = train(tiny, tmp_path, "max_duration=2ba", *settings)
    manifest = folder / "step-00000002" / "manifest.json"
    content = json.loads(manifest.read_text())
    assert content["data"] == shards_fingerprint(data)
    manifest.write_text(json.dumps({**content, "data": data_fingerprint(data)}))
    if not holds:
        meta = json.loads((data / "meta.json").read_text())
        meta["versions"]["pyarrow"] = "0.1"
        (data / "meta.json").write_text(json.dumps(meta))
    code, _ = train(tiny, tmp_path, "max_duration=4ba", *settings)
    if holds:
        assert code == 0 and "resumed from step 2" in capsys.readouterr().out
        saved = json.loads((folder / "step-00000004" / "manifest.json").read_text())
        assert saved["data"] == shards_fingerprint(data) != data_fingerprint(data)
    else:
        assert code == 2 and "train_data: was data" in capsys.readouterr().err
        assert not (folder / "step-00000004").exists()


@pytest.mark.parametrize("named", [True, False])
def test_validation_data_leaves_the_tokenizer_its_name(tiny: Path, own: Path, tmp_path: Path, named) -> None:
    """The name of a validation stream, or none, took the place of the tokenizer's, from which bytes are counted."""
    data = str(tiny / "data")
    streams = {"web": {"local": data, "split": "val"}}
    changes = {"eval_data": {"streams": streams} if named else {"local": data}, "save_folder": str(tmp_path / "run")}
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny, tokenizer=str(own), **changes))
    assert check_data(load_config(path), lambda line: None).tokenizer.name_or_path == str(own)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(f"tokenizer: {own}\n")
    kept = shutil.copytree(own, tmp_path / "run" / "tokenizer")
    train_anew(own)
    assert check_data(load_config(path), lambda line: None).tokenizer.name_or_path == str(kept), "resumed with its own"
