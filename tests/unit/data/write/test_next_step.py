"""A conversion and a tokenizer end with the command that follows, which works as it stands."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.config import load_config
from moe.data.meta import Meta, read_meta
from moe.data.write.next_step import to_train
from tests.tiny import write_text

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def meta(tiny: Path) -> Meta:
    return read_meta(tiny / "data")


def settings(lines: list[str]) -> list[str]:
    """The key=value words of the last line, as a shell would read them."""
    train = shlex.split(lines[-1])
    assert train[:2] == ["moe", "train"] and shlex.split(lines[0])[1:3] == ["moe", "yaml"]
    assert train[2] == f"{shlex.split(lines[0])[3]}.yaml" and (ROOT / "yamls" / train[2]).is_file()
    return train[3:]


def test_the_keys_make_the_yaml_fit_the_data(meta: Meta) -> None:
    config = load_config(ROOT / "yamls/own_text.yaml", settings(to_train(meta, "a folder/it's mine")))
    assert (config.tokenizer, config.max_seq_len) == (meta.tokenizer, 32)
    assert config.train_data.local == "a folder/it's mine" == config.eval_data.local
    assert config.train_data.remote is None


def test_a_bucket_is_remote_with_a_folder_beside_it(meta: Meta) -> None:
    config = load_config(ROOT / "yamls/own_text.yaml", settings(to_train(meta, "s3://bucket/texts/v2")))
    assert (config.train_data.remote, config.train_data.local) == ("s3://bucket/texts/v2", "data/v2")
    assert (config.eval_data.remote, config.eval_data.local) == ("s3://bucket/texts/v2", "data/v2")


def test_without_a_validation_set_none_is_asked_for(meta: Meta) -> None:
    without = dataclasses.replace(meta, samples=meta.samples | {"val": 0})
    config = load_config(ROOT / "yamls/own_text.yaml", settings(to_train(without, "data/own")))
    assert config.eval_data is None and config.train_data.local == "data/own"


def test_much_text_begins_with_a_yaml_for_a_gpu(meta: Meta) -> None:
    large = dataclasses.replace(meta, tokens={"train": 10_000_000_000, "val": 1})
    assert "moe yaml 500m" in to_train(large, "data/own")[0] and "500m.yaml" in to_train(large, "data/own")[1]


def test_from_text_to_data_by_the_commands_that_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The tokenizer's last line is the conversion, of the same column; the conversion's is a training of its data."""
    monkeypatch.chdir(tmp_path)
    rows = [json.loads(line) for line in write_text(tmp_path / "text.jsonl").read_text().splitlines()]
    (tmp_path / "my texts").mkdir()
    lines = [json.dumps({"body": row["text"]}) for row in rows]
    (tmp_path / "my texts/a.jsonl").write_text("\n".join(lines))
    assert main(["tokenizer", "--dataset", "my texts", "--text-column", "body", "--vocab-size", "300"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert words[:3] == ["next", "moe", "convert"]
    assert main([*words[2:], "--val-fraction", "0.05", "--workers", "1"]) == 0
    config = load_config(ROOT / "yamls/own_text.yaml", settings(capsys.readouterr().out.splitlines()[-2:]))
    meta = read_meta("data/own")
    assert (meta.tokenizer, meta.seq_len, meta.text_column) == ("./data/tokenizer", 512, "body")
    assert (config.tokenizer, config.max_seq_len, config.train_data.local) == ("./data/tokenizer", 512, "data/own")
