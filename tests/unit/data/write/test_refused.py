"""What a conversion and the tokenizer refuse or tell: flags that choose nothing, names, pipes, files that change."""

import os

import pytest

from moe.cli.main import main
from moe.common.errors import InputError
from moe.data.text.train_tokenizer import train_tokenizer
from moe.data.write import plan
from moe.data.write.convert import convert
from tests.unit.data.conftest import make_texts, write_parquet

LONG = "n" * 256


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"split": "a/b"}, "--split a/b"),
        ({"split": ""}, "--split ''"),
        ({"split": "test"}, "--split test"),
        ({"config": "x"}, "--config x"),
        ({"config": ""}, "--config ''"),
        ({"seed": 1 << 63}, r"--seed \d+: must be at least 0 and below 2\*\*63"),
        ({"dataset": ("~nosuchuser/x",)}, r"--dataset \(~nosuchuser/x\)"),
        ({"dataset": (LONG,)}, "--dataset .* is too long"),
        ({"dataset": (f"folder/{LONG}",)}, "--dataset .* is too long"),
        ({"out": LONG}, "--out .* is too long"),
        ({"out": LONG[:250]}, "--out .* is too long"),
    ],
)
def test_a_flag_that_chooses_nothing_is_refused(tmp_path, make_request, monkeypatch, changes, told):
    """A single file was converted whole, whatever --split and --config said; long names were tracebacks."""
    monkeypatch.chdir(tmp_path)
    file = write_parquet(tmp_path / "text" / "a.parquet", make_texts(60))
    with pytest.raises(InputError, match=told):
        convert(make_request(**{"dataset": (str(file),), **changes}))


def test_a_name_that_is_too_long_is_one_message(capsys):
    assert main(["runs", LONG]) == 2
    assert "is too long" in capsys.readouterr().err


def test_pipes_and_hidden_files_are_named(tmp_path, make_request):
    text = tmp_path / "text"
    text.mkdir()
    os.mkfifo(text / "p.jsonl")
    (text / ".secret.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"\.secret\.jsonl.*p\.jsonl"):
        convert(make_request())
    with pytest.raises(InputError, match="is not a regular file but a pipe"):
        convert(make_request(dataset=(str(text / "p.jsonl"),)))


def test_the_tokenizer_says_which_rows_it_skips(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "some words"}\n{"text": ""}\nno json\n{"text": null}\n')
    train_tokenizer(dataset=str(path), out=tmp_path / "bpe", vocab_size=257)
    assert "skipped rows 3 (1 bad_json, 1 empty, 1 null)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "edit", [lambda text: text + '{"text": "more"}\n', lambda text: text.replace("words", "WORDS")]
)
def test_a_file_that_changes_after_the_plan_is_named(tmp_path, make_request, monkeypatch, edit):
    path = tmp_path / "text" / "a.jsonl"
    path.parent.mkdir()
    path.write_text('{"text": "some words"}\n' * 99)
    os.utime(path, (1, 1))
    monkeypatch.setattr("moe.data.text.content.SETTLED_NS", -(1 << 62))
    real = plan.choose_id
    monkeypatch.setattr(plan, "choose_id", lambda *a: (path.write_text(edit(path.read_text())), real(*a))[1])
    with pytest.raises(InputError, match=r"a\.jsonl: changed while it was read"):
        convert(make_request())
