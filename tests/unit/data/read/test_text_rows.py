"""Training on text says what it skips, as a conversion does."""

import json
from types import SimpleNamespace

import pytest

from moe.data.text import sample


@pytest.fixture
def rows(text_folder):
    """Writes the lines of the only file."""
    for path in text_folder.iterdir():
        path.unlink()

    def write(lines: list[str], name: str = "a.jsonl") -> None:
        (text_folder / name).write_text("\n".join(lines) + "\n")

    return write


def checks(found) -> list:
    from moe.config import TrainData
    from moe.plan.checks.data import _losses

    config = SimpleNamespace(train_data=TrainData(text=None, local=None))
    return _losses(config, SimpleNamespace(text=found))


@pytest.mark.parametrize("late", [False, True], ids=["at the front", "at the end"])
def test_rows_without_text_are_counted_and_warned_of(plan, rows, capsys, monkeypatch, late):
    """A8: 80% of the rows were lost without a word; `moe check` passed."""
    monkeypatch.setattr(sample, "PLACE_CHARS", 2000)
    good = [json.dumps({"text": f"words of line {i}"}) for i in range(2000)]
    bad = [json.dumps({"text": None}), "not json", json.dumps({"text": " "})] * 700
    rows([*good, *bad] if late else [*bad, *good])
    found = plan()
    assert "rows from all over the text" in found.summary and "bad_json" in found.summary and "null" in found.summary
    told = capsys.readouterr().out
    assert told.count("warning: ") == 1 and "are skipped (" in told and "such as a.jsonl row " in told
    assert [result.state for result in checks(found)] == ["warn"] and "blank" in checks(found)[0].text


def test_few_bad_rows_are_counted_without_a_warning_and_none_not_at_all(plan, rows, capsys):
    """A8: 1% is the bound, as of converted data."""
    good = [json.dumps({"text": f"words of line {i}"}) for i in range(400)]
    rows([*good, "not json", *good])
    found = plan()
    assert "are skipped (1 bad_json)" in found.summary and found.warning is None and not checks(found)
    rows(good)
    assert "skipped" not in plan().summary and "warning" not in capsys.readouterr().out


def test_lines_that_end_documents_are_counted(plan, rows, tokenizer_folder):
    """A8: so are separators of a .txt, which a conversion counts."""
    rows(["a story", "<|endoftext|>", "another", "<|endoftext|>"] * 40, name="a.txt")
    assert "80 lines of EOS ended documents there" in plan().summary


def test_a_file_with_hardly_any_text_is_not_read_to_its_end(plan, rows, monkeypatch):
    """A8: the look is bounded by what it skips, too."""
    rows([json.dumps({"text": "some words"})] + [json.dumps({"text": None, "filling": "x" * 500})] * 20_000)
    units, read, plain = plan().units, [], sample.read_batches

    def counted(*where, **how):
        for batch in plain(*where, **how):
            read.append(len(batch.texts) + len(batch.bad))
            yield batch

    monkeypatch.setattr(sample, "read_batches", counted)
    monkeypatch.setattr(sample, "PLACE_SKIPPED", 50)
    found = sample.spread_documents(units, "text")
    assert found.skipped.counts["null"] >= 50 and 0 < sum(read) < 10_000
