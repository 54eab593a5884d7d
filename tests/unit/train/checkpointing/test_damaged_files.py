"""What a user can break in a run folder is told in one message, or fixed; never a traceback."""

from pathlib import Path

import pytest

from moe.common.errors import InputError
from moe.train.checkpointing.checkpoints import CheckpointError, read_checkpoint, write_checkpoint
from moe.train.checkpointing.retention import clear_unfinished
from tests.damage import edit
from tests.tiny import tiny_config, write_config, write_run
from tests.unit.train.checkpointing.test_checkpoints import MANIFEST, write
from tests.unit.train.checkpointing.test_run_folder import open_folder


@pytest.mark.parametrize("key", ["step", "tokens", "config", "data", "eos_id", "vocab_size", "files"])
@pytest.mark.parametrize("value", [..., [], "x", 1.5, None, -1, {"state.pt": 3}])
def test_a_manifest_with_a_wrong_type_does_not_verify(tmp_path: Path, key: str, value: object) -> None:
    if (key, value) in (("config", {"state.pt": 3}), ("data", "x")):
        return
    folder = write(tmp_path, 1)
    edit(folder / "manifest.json", key, value=value)
    with pytest.raises(CheckpointError, match=rf"manifest\.json: cannot be read \({key}"):
        read_checkpoint(folder)


def test_a_manifest_that_is_a_folder_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest\.json: cannot be read \(Is a directory\)"):
        read_checkpoint(folder)


@pytest.mark.parametrize("value", [..., 7, "", "../../..", "0123456", "0123456789", "ABCDEF01", "0123456\n", [1]])
def test_a_run_id_that_is_none_is_refused_before_it_names_a_folder(tmp_path: Path, value: object) -> None:
    open_folder(tmp_path).lock.close()
    edit(tmp_path / "run.json", "id", value=value)
    with pytest.raises(InputError, match=r"run\.json: is damaged \(id is .*; restore or remove it"):
        open_folder(tmp_path)


@pytest.mark.parametrize("key", ["run_name", "wandb_id", "session", "went_back_to"])
def test_a_run_file_with_a_wrong_type_is_refused(tmp_path: Path, key: str) -> None:
    open_folder(tmp_path).lock.close()
    edit(tmp_path / "run.json", key, value=["x"])
    with pytest.raises(InputError, match=rf"run\.json: is damaged \({key} is \['x'\]"):
        open_folder(tmp_path)


@pytest.mark.parametrize("name", ["run.json", ".lock", "run.json.tmp"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    hindering = tmp_path / (f".{name}" if name.endswith("tmp") else name)
    hindering.mkdir()
    with pytest.raises(InputError, match=rf"cannot be used: Is a directory \({hindering}\); fix it or give another"):
        open_folder(tmp_path)


def test_a_file_in_the_place_of_an_unfinished_write_stays_and_hinders_nothing(tmp_path: Path) -> None:
    """A3: it was removed for its name."""
    for name in (".writing-step-00000001", ".fetching-step-00000002"):
        (tmp_path / name).touch()
    said: list[str] = []
    clear_unfinished(tmp_path, said.append)
    assert len(said) == 2 and all("not a folder that was made here" in line for line in said)
    assert write_checkpoint(tmp_path, 1, {}, {**MANIFEST, "tokens": 1}).is_dir()
    assert (tmp_path / ".writing-step-00000001").is_file()


def test_a_metrics_file_that_is_a_folder_is_named_on_every_rank(tmp_path: Path) -> None:
    from moe.config import load_config
    from moe.train.distributed.ranks import agreed
    from moe.train.inputs import Inputs
    from moe.train.start import Start, with_what_is_due

    settings = tiny_config(tmp_path, eval_first=True)
    config = load_config(write_config(tmp_path / "c.yaml", settings))
    folder = open_folder(tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").mkdir()
    with pytest.raises(InputError, match=r"metrics\.jsonl: Is a directory"):
        agreed(lambda: with_what_is_due(config, Inputs(64, 0, "", []), folder, Start(None, False, 0)), here=True)


@pytest.mark.parametrize("line", ['{"step": "3"}', '{"step": null}', '{"step": -1}', "[3]", '"step"', "{", "\xff"])
def test_a_row_of_metrics_without_a_step_is_cut_at_a_resume(tmp_path: Path, line: str) -> None:
    from moe.train.logs import evaluated_at, jsonl_writer
    from moe.use.export.card import read_rows

    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line.encode("latin-1") + b' "metrics/eval/loss"\n' + line.encode("latin-1"))
    assert not evaluated_at(path.read_bytes(), 3, ["metrics/eval/loss"])
    assert read_rows(path, 9) == [{"step": 1}], "nor is it part of a model card"
    jsonl_writer(path, 2)
    assert path.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    ("keys", "value", "error"),
    [
        (("config", "tokenizer"), 5, r"config\.tokenizer is 5; text is needed"),
        (("config", "model"), 5, r"config\.model is 5; an object is needed"),
        (("config", "max_seq_len"), ..., r"config\.max_seq_len is missing"),
        (("config", "model", "n_layers"), "2", r"config\.model\.n_layers is '2'; an integer"),
        (("config", "model", "n_layers"), 3, r"describes another model than its weights"),
        (("config", "model", "n_heads"), 0, r"describes another model than its weights"),
        (("config", "model", "n_layers"), ..., r"describes another model than its weights"),
    ],
)
def test_a_manifest_that_does_not_describe_the_model_is_refused_when_it_is_asked(
    tmp_path: Path, tiny: Path, keys: tuple, value: object, error: str
) -> None:
    from moe.use.inference import find_checkpoint, load_model

    folder = write_run(tmp_path / "run", tiny / "tokenizer") / "step-00000010"
    edit(folder / "manifest.json", *keys, value=value)
    with pytest.raises(CheckpointError, match=rf"manifest\.json: {error}"):
        load_model(find_checkpoint(str(folder)))


def test_generate_refuses_a_prompt_that_is_no_text(tmp_path: Path, capsys) -> None:
    from moe.cli.main import main

    assert main(["generate", str(tmp_path), "--prompt", "a \udcff b"]) == 2
    assert r"the prompt 'a \udcff b' is not valid UTF-8" in capsys.readouterr().err


def test_one_rank_that_fails_ends_all_with_its_message(monkeypatch) -> None:
    from composer.utils import dist

    from moe.common.s3 import RemoteError
    from moe.train.distributed.ranks import agreed

    def fails() -> None:
        raise RemoteError("s3://b/run: cannot read step-00000001/state.pt: refused")

    with pytest.raises(InputError, match=r"^s3://b/run: cannot read step-00000001/state.pt: refused$"):
        agreed(fails, here=True)
    other = (InputError("another rank's message"), None)
    monkeypatch.setattr(dist, "all_gather_object", lambda answer: [answer, other])
    with pytest.raises(InputError, match="another rank's message"):
        agreed(lambda: 1, here=True)
    monkeypatch.setattr(dist, "all_gather_object", lambda answer: [(None, 5), answer])
    assert agreed(lambda: 1, here=False) == 5, "what rank 0 has found"
