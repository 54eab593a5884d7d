"""`moe eval --data`: the mean over tokens, however they are batched."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from moe.cli.main import main
from moe.data.meta import read_meta
from moe.data.read.verify import read_samples
from moe.data.text.tokenizer import load_tokenizer, token_bytes
from moe.evaluate.loss import Evaluation, evaluate
from moe.use.inference import find_checkpoint, load_model
from tests.tiny import write_run


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("eval") / "run", tiny / "tokenizer", steps=(10, 20))


def measured(run: Path, tiny: Path, *, batch_size: int, samples: int = 37, mask: bool = True) -> Evaluation:
    return evaluate(
        load_model(find_checkpoint(str(run))).cpu(),
        tiny / "data" / "train",
        samples=samples,
        seq_len=32,
        document_mask=mask,
        bf16=False,
        token_bytes=token_bytes(load_tokenizer(str(tiny / "tokenizer"))),
        batch_size=batch_size,
        progress=lambda done: None,
    )


def test_the_mean_is_the_same_whatever_the_batch_size(run: Path, tiny: Path) -> None:
    found = [measured(run, tiny, batch_size=size) for size in (1, 5, 37, 64)]
    assert len({(one.targets, one.text_bytes) for one in found}) == 1
    assert [one.loss for one in found] == pytest.approx([found[0].loss] * 4, rel=1e-7)
    assert found[0].perplexity == pytest.approx(math.exp(found[0].loss))


def test_a_model_that_raises_leaves_the_samples_closed_and_itself_as_it_was(
    run: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E10: the samples hold a shard in memory until they are closed."""
    import moe.evaluate.loss as module

    opened = []
    plain = module.sample_batches
    monkeypatch.setattr(module, "sample_batches", lambda *args: opened.append(plain(*args)) or opened[-1])
    model = load_model(find_checkpoint(str(run))).cpu()
    model.blocks[1].register_forward_pre_hook(lambda *_: exec("raise MemoryError('no room')"))
    settings = {"seq_len": 32, "bf16": False, "token_bytes": None, "batch_size": 4, "progress": lambda done: None}
    for mask in (True, False):
        model.document_mask = not mask
        with pytest.raises(MemoryError, match="no room"):
            evaluate(model, tiny / "data" / "train", samples=12, document_mask=mask, **settings)
        assert model.document_mask is not mask
    assert [samples.gi_frame for samples in opened] == [None, None]


@pytest.mark.parametrize("mask", [True, False])
def test_it_is_the_mean_over_targets_of_a_plain_forward_and_over_the_bytes_of_their_text(
    run: Path, tiny: Path, mask: bool
) -> None:
    model = load_model(find_checkpoint(str(run))).cpu()
    model.document_mask = mask
    tokens = torch.from_numpy(read_samples(tiny / "data" / "train", 0, 37).astype("int64"))
    labels = tokens[:, 1:].clone()
    if mask:
        labels[tokens[:, :-1] == model.eos_id] = -100
    with torch.no_grad():
        nll = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1).double(), labels.flatten(), reduction="sum").item()
    targets = labels[labels != -100]
    text = load_tokenizer(str(tiny / "tokenizer")).decode(targets, skip_special_tokens=True)
    found = measured(run, tiny, batch_size=8, mask=mask)
    assert (found.targets, found.text_bytes) == (len(targets), len(text.encode()))
    assert found.loss == pytest.approx(nll / len(targets), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nll / len(text.encode()) / math.log(2), rel=1e-6)


def test_the_command_prints_the_same_for_any_batch_size_and_takes_a_step_and_several_folders(
    run: Path, tiny: Path, capsys
) -> None:
    data = str(tiny / "data")
    assert main(["eval", str(run), "--data", data, "--data", data, "--batch-size", "1", "--step", "10"]) == 0
    told = capsys.readouterr()
    first, second = told.out.splitlines()
    assert told.err.startswith("starting ...\n")
    assert first == second
    assert re.search(r"val at step 10: loss \d\.\d{4}  perplexity \S+  bits per byte \d\.\d{4}  \([\d,]+ tokens", first)
    assert main(["eval", str(run), "--data", data, "--batch-size", "7", "--step", "10"]) == 0
    assert capsys.readouterr().out.splitlines() == [first]
    assert main(["eval", str(run), "--data", data]) == 0
    assert "at step 20" in capsys.readouterr().out


def test_batches_are_the_runs_own_so_their_number_means_the_same_samples(run: Path, tiny: Path, capsys) -> None:
    command = ["eval", str(run), "--data", str(tiny / "data"), "--max-batches", "2"]
    lines = []
    for size in ("3", "8"):
        assert main([*command, "--batch-size", size]) == 0
        lines.append(capsys.readouterr().out)
    assert "in 8 sequences)" in lines[0] and lines[0] == lines[1]


BAD = {
    "nothing to do": ([], "give --data FOLDER"),
    "no such folder": (["--data", "nowhere"], "nowhere is empty or not there"),
    "no such split": (["--data", "{data}", "--split", "test"], "--split (test)"),
    "no such step": (["--data", "{data}", "--step", "3"], "step-00000003: there is no such checkpoint"),
    "no such tokenizer": (
        ["--data", "{data}", "--tokenizer", "./no"],
        "tokenizer './no' cannot be loaded: that folder is not there",
    ),
    "batch size": (["--data", "{data}", "--batch-size", "0"], "--batch-size (0) must be at least 1"),
    "batches": (["--data", "{data}", "--max-batches", "0"], "--max-batches (0) must be at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_exit_code_2(run: Path, tiny: Path, capsys, case: str) -> None:
    flags, told = BAD[case]
    assert main(["eval", str(run), *(flag.format(data=tiny / "data") for flag in flags)]) == 2
    assert told in capsys.readouterr().err


def test_data_of_another_tokenizer_and_damaged_data_are_refused(run: Path, tiny: Path, tmp_path: Path, capsys) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny / "data", data)
    meta = (data / "meta.json").read_text()
    (data / "meta.json").write_text(meta.replace(read_meta(data).tokenizer_fingerprint, "0" * 64))
    assert main(["eval", str(run), "--data", str(data)]) == 2
    assert "is not the checkpoint's" in capsys.readouterr().err
    (data / "meta.json").write_text(meta)
    shard = next((data / "val").glob("shard.*.mds"))
    shard.write_bytes(shard.read_bytes()[:-10])
    assert main(["eval", str(run), "--data", str(data)]) == 2
    assert "is damaged" in capsys.readouterr().err


USELESS = {
    "--output": ["--data", "{data}", "--output", "x.json"],
    "--limit": ["--data", "{data}", "--limit", "3"],
    "--fewshot": ["--data", "{data}", "--fewshot", "3"],
    "--beside": ["--data", "{data}", "--beside", "gpt2"],
    "--through-export": ["--data", "{data}", "--through-export"],
    "--include-path": ["--data", "{data}", "--include-path", "x"],
    "--split": ["--tasks", "arc", "--split", "val"],
    "--max-batches": ["--tasks", "arc", "--max-batches", "-1"],
}


@pytest.mark.parametrize("flag", USELESS)
def test_a_flag_without_effect_is_refused_by_name(tiny: Path, capsys, flag: str) -> None:
    """C10: before anything is loaded; the run is not even looked for."""
    flags = [each.format(data=tiny / "data") for each in USELESS[flag]]
    assert main(["eval", "nowhere", *flags]) == 2
    needed = "--tasks" if "--data" in flags else "--data"
    told = capsys.readouterr().err
    assert f"{flag} (" in told and f"has no effect without {needed}" in told


def test_the_place_for_results_is_tried_before_the_work(tmp_path: Path, capsys) -> None:
    """C9: a folder, a file in a file, a folder that cannot be written to; nothing is made by the trial."""
    (tmp_path / "file").write_text("mine")
    for path, cause in ((tmp_path, "is a folder"), (tmp_path / "file" / "x.json", "is not a folder")):
        assert main(["eval", "nowhere", "--tasks", "arc", "--output", str(path)]) == 2
        told = capsys.readouterr().err
        assert f"--output ({path})" in told and cause in told
    assert main(["eval", "nowhere", "--tasks", "arc", "--output", "/proc/x/y.json"]) == 2
    assert "--output (/proc/x/y.json) cannot be written" in capsys.readouterr().err
    assert main(["eval", "nowhere", "--tasks", "arc", "--output", str(tmp_path / "file")]) == 2
    assert "file) is there and holds something else; give another file" in capsys.readouterr().err
    from moe.cli.eval_tasks import _write
    from moe.cli.output import RESULT_BEGINS, check_writable

    _write(tmp_path / "earlier.json", {"step": 3, "results": {}})
    for name in ("new/deeper/x.json", "earlier.json"):
        check_writable("--output", tmp_path / name, RESULT_BEGINS)
    (tmp_path / "earlier.json").unlink()
    check_writable("--output", Path("/dev/null"), RESULT_BEGINS)
    link = tmp_path / "null"
    link.symlink_to("/dev/null")
    _write(link, {"step": 3})
    assert link.is_symlink() and not link.is_file(), "written to, not replaced"
    link.unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_each_shard_is_read_once(run: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """C18: with batches of one sample, also across shards."""
    from moe.data.folders import LocalFolder
    from moe.data.locations import open_folder
    from moe.data.read.index import read_index
    from moe.data.read.verify import sample_batches

    split = tiny / "data" / "train"
    seen: list[str] = []
    plain = LocalFolder.read
    monkeypatch.setattr(LocalFolder, "read", lambda self, name: seen.append(name) or plain(self, name))
    measured(run, tiny, batch_size=1, samples=25)
    shards = [shard.name for shard in read_index(open_folder(split))]
    assert seen.count(shards[0]) == 1
    batches = list(sample_batches(split, 23, 7))
    assert [len(batch) for batch in batches] == [7, 7, 7, 2]
    assert (
        torch.from_numpy(__import__("numpy").concatenate(batches)) == torch.from_numpy(read_samples(split, 0, 23))
    ).all()
