"""A checkpoint carries its tokenizer: it is used from any place, and another one is not taken for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from moe.cli.main import main
from moe.common.errors import InputError, RunFailed
from moe.data.text.kept_tokenizer import keep_tokenizer, write_kept
from moe.data.text.plain_ids import encode_plain
from moe.data.text.tokenizer import load_tokenizer, tokenizer_fingerprint
from moe.train.checkpointing.checkpoints import TOKENIZER, CheckpointError, read_checkpoint
from moe.train.checkpointing.compatibility import check_weights_fit
from moe.train.checkpointing.trained_tokenizer import checkpoint_tokenizer
from moe.use.export import to_hf
from moe.use.export.from_hf import import_folder
from moe.use.export.to_hf import export
from moe.use.inference import find_checkpoint
from tests.tiny import write_run, write_text, write_tokenizer

GREEDY = ["--temperature", "0", "--max-new-tokens", "12"]
TEXTS = ["every expert waits", " two  spaces\n", "naïve 你好"]


def quiet(line: str) -> None:
    pass


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A tokenizer of this test alone, which it may spoil."""
    return write_tokenizer(tmp_path / "tok", write_text(tmp_path / "t.jsonl"))


def train_anew(folder: Path) -> None:
    """Another tokenizer of the same size in the same place."""
    texts = folder.parent / "other.jsonl"
    words = ["zebra", "quartz", "vexing", "jumbled", "fjord", "sphinx", "waltz", "glyph", "nymph", "dwarf"]
    texts.write_text("".join(json.dumps({"text": f"{a} {b} {a}{b}"}) + "\n" for a in words for b in words))
    shutil.rmtree(folder)
    write_tokenizer(folder, texts)


def forget_tokenizer(step: Path, **config: object) -> None:
    """The checkpoint becomes one of an older version, which names its tokenizer alone."""
    shutil.rmtree(step / TOKENIZER)
    manifest = json.loads((step / "manifest.json").read_text())
    del manifest["tokenizer"]
    manifest["files"] = {"state.pt": manifest["files"]["state.pt"]}
    manifest["config"] |= config
    (step / "manifest.json").write_text(json.dumps(manifest))


def test_a_step_folder_alone_is_generated_from_and_exported_from_any_place(
    own: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A13: the tokenizer is deleted, or another one trained in its place; the step folder is moved to another place."""
    step = write_run(tmp_path / "run", own) / "step-00000010"
    assert main(["generate", str(step), "the model", *GREEDY]) == 0
    expected = capsys.readouterr().out
    export(str(step), out=tmp_path / "hf", say=quiet)
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")(TEXTS)["input_ids"]
    (tmp_path / "far").mkdir()
    shutil.move(step, tmp_path / "far" / "copy")
    monkeypatch.chdir(tmp_path / "far")
    train_anew(own)
    for spoil in (lambda: None, lambda: shutil.rmtree(own)):
        spoil()
        assert main(["generate", "copy", "the model", *GREEDY]) == 0
        assert capsys.readouterr().out == expected
        export("copy", out=tmp_path / "far" / "hf", overwrite=True, say=quiet)
        assert AutoTokenizer.from_pretrained(tmp_path / "far" / "hf")(TEXTS)["input_ids"] == ids


def test_a_damaged_tokenizer_file_in_a_checkpoint_is_found(make_run: Callable) -> None:
    """A13: its files are held against the manifest as the weights are."""
    step = make_run() / "step-00000010"
    path = step / TOKENIZER / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"the", b"teh", 1))
    with pytest.raises(CheckpointError, match=r"tokenizer/tokenizer.json: its bytes have changed"):
        read_checkpoint(step)


def test_another_tokenizer_is_taken_only_when_named_and_only_when_it_fits(own: Path, tmp_path: Path, capsys) -> None:
    """A13: --tokenizer names one; what differs is told, what does not fit the model is refused."""
    run = str(write_run(tmp_path / "run", own))
    other = tmp_path / "other"
    shutil.copytree(own, other)
    train_anew(other)
    assert main(["generate", run, "hi", *GREEDY, "--tokenizer", str(own)]) == 0
    assert "warning" not in capsys.readouterr().err, "the same one under another name is no news"
    assert main(["generate", run, "hi", *GREEDY, "--tokenizer", str(other)]) == 0
    assert f"warning: --tokenizer ({other}) has the fingerprint" in capsys.readouterr().err
    told: list[str] = []
    export(run, out=tmp_path / "hf", tokenizer_name=str(other), say=told.append)
    assert any("has the fingerprint" in line for line in told)
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path / "hf"))) == tokenizer_fingerprint(
        load_tokenizer(str(other))
    )
    large = write_tokenizer(tmp_path / "large", tmp_path / "t.jsonl", size=400)
    if len(load_tokenizer(str(large))) > len(load_tokenizer(str(own))):
        assert main(["generate", run, "hi", "--tokenizer", str(large)]) == 2
        assert "does not fit" in capsys.readouterr().err
    assert main(["generate", run, "hi", "--tokenizer", str(tmp_path / "nowhere")]) == 2
    assert "nowhere' cannot be loaded: that folder is not there" in capsys.readouterr().err


def test_an_older_checkpoint_is_held_against_its_data(own: Path, tmp_path: Path, tiny: Path) -> None:
    """A13: without a fingerprint of its own the data's decides; where nothing tells, that is said in one line."""
    import hashlib

    step = write_run(tmp_path / "run", tiny / TOKENIZER) / "step-00000010"
    told: list[str] = []
    forget_tokenizer(step)
    checkpoint_tokenizer(read_checkpoint(step), None, told.append)
    (line,) = told
    assert "step-00000010 holds no tokenizer" in line and "nothing says" in line
    data = hashlib.sha256((tiny / "data" / "meta.json").read_bytes()).hexdigest()[:16]
    manifest = json.loads((step / "manifest.json").read_text())
    manifest["config"]["train_data"]["local"] = str(tiny / "data")
    (step / "manifest.json").write_text(json.dumps({**manifest, "data": data}))
    told.clear()
    checkpoint_tokenizer(read_checkpoint(step), None, told.append)
    assert "which made its data" in told[0] and len(told) == 1
    train_anew(own)
    manifest["config"]["tokenizer"] = str(own)
    (step / "manifest.json").write_text(json.dumps({**manifest, "data": data}))
    with pytest.raises(InputError, match="is another one than"):
        checkpoint_tokenizer(read_checkpoint(step), None, told.append)


def test_weights_of_a_run_with_another_tokenizer_are_refused(make_run: Callable, own: Path) -> None:
    """A13: load_path with the same vocabulary size and another tokenizer."""
    found = find_checkpoint(str(make_run()))
    size = found.manifest["vocab_size"]
    config = {**found.manifest["config"], "tokenizer": str(own)}
    check_weights_fit(found, config, size, found.manifest["tokenizer"])
    with pytest.raises(
        InputError, match=r"is another one than the checkpoint was trained with .*its own is tokenizer="
    ):
        check_weights_fit(found, config, size, "0" * 64)


def test_an_import_carries_its_tokenizer(make_run: Callable, tmp_path: Path) -> None:
    """A13: the source folder is gone, the import is exported all the same."""
    export(str(make_run()), out=tmp_path / "hf", say=quiet)
    import_folder(str(tmp_path / "hf"), out=tmp_path / "imported", say=quiet)
    shutil.rmtree(tmp_path / "hf")
    export(str(tmp_path / "imported"), out=tmp_path / "again", say=quiet)
    assert (tmp_path / "again" / "tokenizer.json").is_file()


def test_a_run_folder_keeps_the_tokenizer_and_never_replaces_what_is_there(own: Path, tmp_path: Path) -> None:
    """A13: what stands in the run folder is written once, and another's files are left as they are."""
    kept = keep_tokenizer(load_tokenizer(str(own)))
    assert kept.files and write_kept(kept, tmp_path / "run" / TOKENIZER)
    assert tokenizer_fingerprint(load_tokenizer(str(tmp_path / "run" / TOKENIZER))) == kept.fingerprint
    assert write_kept(kept, own), "the same tokenizer in other files"
    train_anew(own)
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    assert not write_kept(kept, own)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before


def add_bos(folder: Path, out: Path, *, eos: bool = False) -> Path:
    """The tokenizer with a post-processor that puts a BOS before each text, as Llama's does."""
    backend = load_tokenizer(str(folder)).backend_tokenizer
    backend.post_processor = TemplateProcessing(
        single="<|endoftext|> $A" + " <|endoftext|>" * eos, special_tokens=[("<|endoftext|>", 0)]
    )
    backend.enable_truncation(5)
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    made.save_pretrained(out)
    return out


@pytest.mark.parametrize("eos", [False, True])
def test_the_exported_tokenizer_makes_the_ids_of_the_training_by_default(
    tokenizer_folder: Path, tmp_path: Path, eos: bool
) -> None:
    """A14: a post-processor that adds BOS (and EOS) is not exported; nothing is cut either."""
    folder = add_bos(tokenizer_folder, tmp_path / "bos", eos=eos)
    trained = load_tokenizer(str(folder))
    assert trained(TEXTS[0])["input_ids"][0] == 0, "else the test shows nothing"
    export(str(write_run(tmp_path / "run", folder)), out=tmp_path / "hf", say=quiet)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf")(TEXTS)["input_ids"] == encode_plain(trained, TEXTS)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["bos_token_id"] == 0


def test_a_tokenizer_that_adds_tokens_is_not_left_behind(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A14: the ids are part of the proof."""
    run = write_run(tmp_path / "run", add_bos(tokenizer_folder, tmp_path / "bos"))
    monkeypatch.setattr(to_hf, "_only_offsets", lambda processor: True)
    with pytest.raises(RunFailed, match=r"transformers' tokenizer makes \[0, "):
        export(str(run), out=tmp_path / "hf", say=quiet)
    assert not (tmp_path / "hf").exists()


def test_a_prompt_is_encoded_as_the_training_encodes(make_run: Callable, capsys, monkeypatch) -> None:
    """A14: a special token that is spelt out in a prompt is characters, as it was in training."""
    import moe.model.generation

    seen: list[list[int]] = []
    monkeypatch.setattr(moe.model.generation, "generate", lambda model, tokens, **k: seen.append(tokens) or iter(()))
    assert main(["generate", str(make_run()), "<|endoftext|>the", *GREEDY]) == 0
    assert 0 not in seen[0] and len(seen[0]) > 2
