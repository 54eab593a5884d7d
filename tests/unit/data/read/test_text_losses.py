"""Training on text counts what its tokenizer cannot write."""

import json
from types import SimpleNamespace

import pytest

from moe.data.text import sample
from tests.unit.data.write.test_convert_text import make_tokenizer


@pytest.mark.parametrize("late", [True, False])
def test_training_on_text_tells_what_its_tokenizer_cannot_write(plan, text_folder, tmp_path, capsys, late, monkeypatch):
    """A12: from all over the text, not from its front; in the summary, as a warning, and in `moe check`."""
    from moe.config import TrainData
    from moe.plan.checks.data import _losses

    monkeypatch.setattr(sample, "PLACE_CHARS", 2000)
    for path in text_folder.iterdir():
        path.unlink()
    rows = [{"text": "plain words"}] * 3000 + [{"text": "слово" if late else "words"}] * 3000
    (text_folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = plan(tokenizer_name=make_tokenizer(tmp_path / "t"))
    told = "of the tokens are unknown to the tokenizer"
    assert told in found.summary and (told in capsys.readouterr().out) == late
    inputs = SimpleNamespace(text=found)
    results = _losses(SimpleNamespace(train_data=TrainData(text=None, local=None)), inputs)
    assert [result.state for result in results] == ["warn"] * late
    assert not late or "documents from all over the text" in results[0].text
