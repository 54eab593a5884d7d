"""Where things are written: nobody's files are removed, `~` is the home folder, an address is no folder."""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import pytest

from moe.cli.main import main
from moe.common.errors import InputError, library_errors
from moe.common.ownership import MARK, begin, entries, finish, refuse_unless_own, remove_own, replaceable_place
from moe.common.paths import local_path, path_or_address
from moe.common.units import clock
from moe.config import ConfigError, load_config
from moe.data.text.train_tokenizer import train_tokenizer
from moe.data.write.flags import add_convert_arguments, add_tokenizer_arguments, convert_from, train_tokenizer_from
from moe.use.export.flags import add_arguments, export_from
from tests.tiny import tiny_config, write_config


@pytest.fixture(autouse=True)
def _torch_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion loads transformers without torch, for the whole process: other tests need it."""
    monkeypatch.setattr("moe.data.text.tokenizer.spare_torch", lambda: None)


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in entries(folder) if (folder / name).is_file()}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    lines = "".join(f"Line {i} of the harbour master's book, with {i * 7} ships.\n" for i in range(400))
    (folder / "a.txt").write_text(lines)
    return folder


def run(add, start, *words: object) -> int:
    parser = argparse.ArgumentParser()
    add(parser)
    return start(parser.parse_args([str(word) for word in words]))


def tokenizer(*words: object) -> int:
    return run(add_tokenizer_arguments, train_tokenizer_from, "--vocab-size", 300, *words)


def convert(*words: object) -> int:
    return run(add_convert_arguments, convert_from, "--seq-len", 16, "--workers", 1, *words)


def test_a_tokenizer_replaces_only_a_tokenizer(text: Path, tmp_path: Path, capsys) -> None:
    """A3: --overwrite on a folder with notes, the text itself, or another's tokenizer removes nothing."""
    assert tokenizer("--dataset", text, "--out", text, "--overwrite") == 2
    (tmp_path / "data").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):  # somebody's, with the names that ours has
        (tmp_path / "data" / name).write_text("{}")
    assert tokenizer("--dataset", text, "--out", tmp_path / "data", "--overwrite") == 2
    assert "no mark" in capsys.readouterr().err
    out = tmp_path / "bpe"
    assert tokenizer("--dataset", text, "--out", out) == 0
    assert tokenizer("--dataset", text, "--out", out, "--overwrite") == 0
    assert entries(out) and not list(tmp_path.glob(".bpe*"))
    (out / "notes.txt").write_text("mine")
    before = content(out)
    assert tokenizer("--dataset", text, "--out", out, "--overwrite") == 2
    assert "notes.txt" in capsys.readouterr().err and content(out) == before and len(content(text)) == 1


def test_a_neighbour_called_partial_is_not_touched(text: Path, tmp_path: Path) -> None:
    """A3: `<out>.partial` of a tokenizer was removed whatever it was."""
    (tmp_path / "bpe.partial").mkdir()
    (tmp_path / "bpe.partial" / "thesis.tex").write_text("mine")
    assert tokenizer("--dataset", text, "--out", tmp_path / "bpe") == 0
    assert (tmp_path / "bpe.partial" / "thesis.tex").read_text() == "mine"


def test_a_conversion_removes_only_what_conversions_write(text: Path, tmp_path: Path, capsys) -> None:
    """A3: a finished dataset with a file, a link or an empty folder of another's, and a foreign `.partial`."""
    bpe, out = train_tokenizer(dataset=str(text), out=tmp_path / "bpe", vocab_size=300), tmp_path / "out"
    words = ("--dataset", text, "--tokenizer", bpe, "--out", out)
    assert convert(*words) == 0
    assert convert(*words, "--overwrite") == 0
    for make in (
        lambda path: path.write_text("mine"),
        lambda path: path.symlink_to(text),
        lambda path: path.mkdir(),
    ):
        for place in (out, out / "train"):
            make(place / "kept")
            capsys.readouterr()
            assert convert(*words, "--seed", 3, "--overwrite") == 2
            told = capsys.readouterr()
            assert "kept" in told.err and told.err.count("\n") == 1 and not told.out, "before any work"
            assert os.path.lexists(place / "kept") and (out / "meta.json").exists()
            (place / "kept").rmdir() if (place / "kept").is_dir() and not (place / "kept").is_symlink() else (
                place / "kept"
            ).unlink()
    partial = tmp_path / "new.partial"
    for name in ("notes.txt", "units/mine"):
        (partial / name).parent.mkdir(parents=True)
        (partial / name).write_text("mine")
        assert convert(*words[:-1], tmp_path / "new") == 2
        assert (partial / name).read_text() == "mine" and not (tmp_path / "new").exists()
        (partial / name).unlink()
        os.removedirs((partial / name).parent)
        tmp_path.mkdir(exist_ok=True)
    assert convert(*words[:-1], tmp_path / "new") == 0 and not partial.exists()


def test_what_is_above_us_is_never_replaced(text: Path, tmp_path: Path, monkeypatch) -> None:
    """A3: root, home, the current folder and their parents, by link, `.` and `..`."""
    bpe = train_tokenizer(dataset=str(text), out=tmp_path / "bpe", vocab_size=300)
    (tmp_path / "here" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("here")
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "here" / "below")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in (".", "..", "/", str(tmp_path / "link"), "x/..", "~", str(tmp_path / "home" / "x" / "..")):
        with pytest.raises(InputError, match="--out"):
            replaceable_place(local_path(path, "--out"), "--out")
    (tmp_path / "here" / "notes.txt").write_text("mine")
    for path in (".", "..", "~"):
        assert tokenizer("--dataset", text, "--out", path, "--overwrite") == 2
        assert convert("--dataset", text, "--tokenizer", bpe, "--out", path, "--overwrite") == 2
    assert entries(tmp_path / "here") == ["below", "notes.txt"] and not entries(tmp_path / "home")
    assert replaceable_place(Path("new"), "--out") == tmp_path / "here" / "below" / "new"


def test_removal_takes_what_the_mark_lists_and_nothing_else(tmp_path: Path) -> None:
    """A3: a mark of another kind, an edited one, one that names files outside."""
    folder, outside = tmp_path / "made", tmp_path / "outside.txt"
    outside.write_text("mine")
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("a")
    for mark in ("", "[]", '{"made_by": "moe", "kind": "export", "files": ["../outside.txt", "sub/a"]}'):
        (folder / MARK).write_text(mark)
        with pytest.raises(InputError, match="no mark"):
            remove_own(folder, "export", "--out")
    finish(folder, "import")
    with pytest.raises(InputError, match="no mark"):
        remove_own(folder, "export", "--out")
    finish(folder, "export")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(InputError, match="no mark"):
        remove_own(tmp_path / "link", "export", "--out")
    refuse_unless_own(folder, "export", "--out")
    remove_own(folder, "export", "--out")
    assert not folder.exists() and outside.read_text() == "mine"
    folder.mkdir()
    begin(folder, "export")
    (folder / "half").write_text("a")
    remove_own(folder, "export", "--out")
    assert not folder.exists()


@pytest.mark.parametrize("sign", "#?")
def test_an_address_that_streaming_would_cut_is_refused_for_data(tmp_path: Path, capsys, sign: str) -> None:
    """A19: `s3://b/set#1` was converted to, and training looked for `s3://b/set`."""
    address = f"s3://bucket/set{sign}1"
    (tmp_path / "a.txt").write_text("a\n")
    assert main(["convert", "--dataset", str(tmp_path / "a.txt"), "--out", address]) == 2
    assert f"cuts an address at '{sign}'" in capsys.readouterr().err
    path = write_config(tmp_path / "c.yaml", tiny_config(tmp_path))
    with pytest.raises(ConfigError, match=r"train_data\.remote .*cuts an address"):
        load_config(path, [f"train_data={{local: x, remote: '{address}'}}"])
    load_config(path, [f"train_data={{local: x, remote: '{tmp_path}/set{sign}1'}}"])  # a folder is no address


def test_an_address_is_no_folder(tmp_path: Path, monkeypatch, capsys) -> None:
    """C6: export, import, train_tokenizer, report, eval and profile refuse s3:// by name and make no folder `s3:`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    (tmp_path / "a.txt").write_text("a\n")
    address = "s3://bucket/place"
    for call in (
        lambda: tokenizer("--dataset", "a.txt", "--out", address),
        lambda: run(add_arguments, export_from, "run", "--out", address),
        lambda: run(add_arguments, export_from, "--from-hf", "run", "--out", address),
        lambda: run(add_arguments, export_from, address, "--out", "hf"),
        lambda: main(["report", "run", "--out", f"{address}.html"]),
        lambda: main(["eval", address, "--data", "run"]),
        lambda: main(["eval", "run", "--data", address]),
        lambda: main(["eval", "run", "--tasks", "a", "--output", address]),
        lambda: main(["profile", "run.yaml", "--trace", address]),
        lambda: main(["generate", address, "--prompt", "a"]),
        lambda: convert("--dataset", "a.txt", "--out", "hf://place"),
        lambda: convert("--dataset", address),
    ):
        capsys.readouterr()
        assert call() == 2
        told = capsys.readouterr().err
        assert told.strip().splitlines()[-1].startswith("error: ") and "://" in told and "Traceback" not in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "run"]


def test_the_home_folder_is_meant_by_its_sign(text: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """C7: in flags that no shell has expanded; nothing makes a folder `~`."""
    home = tmp_path / "home"
    home.mkdir()
    text.rename(home / "text")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert tokenizer("--dataset", "~/text", "--out", "~/bpe") == 0 and (home / "bpe" / "tokenizer.json").exists()
    assert convert("--dataset", "~/text", "--tokenizer", "~/bpe", "--out", "~/mds") == 0
    assert (home / "mds" / "meta.json").exists()
    assert main(["inspect", "~/mds", "--quick", "--sequences", "1"]) == 0
    assert "harbour" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
    assert path_or_address("s3://b/~", "--out") == "s3://b/~"
    for name in ("", " ", "a\0b", "~nobody-of-that-name/x"):
        with pytest.raises(InputError, match="--out"):
            local_path(name, "--out")
    assert os.fsencode(local_path(os.fsdecode(b"/a/#?%{}: \xff"), "--out")) == b"/a/#?%{}: \xff"


def test_settings_know_the_home_folder(tmp_path: Path, monkeypatch) -> None:
    """C7: save_folder, load_path, tokenizer, data, remote, streams, text and alert_command."""
    root = Path(__file__).resolve().parents[3]
    monkeypatch.setenv("HOME", str(tmp_path))
    tool = tmp_path / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    keys = ("save_folder", "load_path", "tokenizer", "train_data.local", "train_data.remote", "eval_data.local")
    config = load_config(root / "yamls/500m.yaml", [*(f"{key}=~/{key}" for key in keys), "alert_command=~/tool -v"])
    for key in keys:
        value = config
        for part in key.split("."):
            value = getattr(value, part)
        assert value == f"{tmp_path}/{key}"
    assert config.alert_command == f"{tool} -v"
    streams = "train_data={streams: {a: {local: ~/a}, b: {local: /b, remote: 's3://b/~'}}}"
    found = load_config(root / "yamls/500m.yaml", [streams]).train_data.streams
    assert found["a"].local == f"{tmp_path}/a" and found["b"].remote == "s3://b/~"
    with pytest.raises(ConfigError) as told:
        load_config(root / "yamls/500m.yaml", ["train_data.local=s3://b/x", "load_path=s3://b/y", "tokenizer=hf://z"])
    assert len(told.value.errors) == 3 and all("not an address" in error for error in told.value.errors)


def test_a_report_replaces_only_reports(tmp_path: Path, capsys) -> None:
    """A3: --out index.html was written over whatever it was, and so was the picture beside it."""
    from tests.unit.runs.folders import make_run

    run = make_run(tmp_path / "run")
    out = tmp_path / "index.html"
    for name in ("index.html", "index.png"):
        (tmp_path / name).write_text("mine")
        assert main(["report", str(run), "--out", str(out)]) == 2
        assert "not made by moe report" in capsys.readouterr().err and (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    assert main(["report", str(run), "--out", str(out)]) == 0
    assert main(["report", str(run), "--out", str(out)]) == 0


def test_a_card_that_the_table_does_not_have(tmp_path: Path, monkeypatch, capsys) -> None:
    """D11: memory and peak from its data sheet; the refusal says so."""
    import json

    yaml = str(Path(__file__).resolve().parents[3] / "yamls/500m.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["estimate", yaml, "--gpu", "RTX 6000 Ada"]) == 2
    assert "--gpu-memory 48GB --gpu-tflops 180" in capsys.readouterr().err
    card = [
        "--gpu",
        "RTX 6000 Ada",
        "--gpu-memory",
        "48GB",
        "--gpu-tflops",
        "364",
        "--price",
        "RTX 6000 Ada=2",
        "--mfu",
        "0.4",
    ]
    assert main(["estimate", yaml, *card, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (one, *_) = [fit for fit in found["gpus"] if fit["gpu"] == "RTX 6000 Ada"]
    assert one["seconds"] == pytest.approx(found["work"]["flops"] / (364e12 * 0.4))
    assert one["cost"] == pytest.approx(2 * one["seconds"] / 3600) and found["memory"]["gpu"] == "RTX 6000 Ada"
    assert main(["estimate", yaml, *card]) == 0
    assert "MEMORY of one RTX 6000 Ada" in capsys.readouterr().out
    for wrong in (["--gpu-memory", "48GB"], ["--gpu-memory", "lots", "--gpu-tflops", "1"]):
        assert main(["estimate", yaml, "--gpu", "X1", *wrong]) == 2
    assert main(["estimate", yaml, "--gpu", "X1", "--gpu-memory", "9GiB", "--gpu-tflops", "nan"]) == 2


def test_profile_leaves_nothing_in_the_temporary_folder(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    """C19: Streaming's lock files stayed there, six of each run."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    words = ["precision=fp32", "num_workers=0", "device_train_microbatch_size=4", "--steps", "1"]
    assert main(["profile", str(tiny / "tiny.yaml"), *words]) == 0
    assert not list(place.iterdir())


def test_a_librarys_error_is_one_message_and_ours_a_traceback() -> None:
    """C8: the words of whoever raised it; a bug of ours is not hidden behind them."""
    import json

    words = r"--tasks \(x\): lm-eval cannot do it \(JSONDecodeError: Expecting value"
    with pytest.raises(InputError, match=words), library_errors("lm-eval", "--tasks (x)"):
        json.loads("nothing")
    with (
        pytest.raises(InputError, match="AssertionError: no reason is given"),
        library_errors("lm-eval", "--tasks (x)"),
    ):
        raise AssertionError
    with pytest.raises(TypeError), library_errors("lm-eval", "--tasks (x)"):
        clock("no number")  # type: ignore[arg-type]


def test_an_empty_home_is_not_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """`HOME= moe yaml demo --out '~/x.yaml'` wrote /x.yaml."""
    monkeypatch.setenv("HOME", "")
    for text in ("~", "~/x.yaml"):
        with pytest.raises(InputError, match="HOME is empty"):
            local_path(text, "--out")
    assert local_path("a/~", "--out") == Path("a/~")
