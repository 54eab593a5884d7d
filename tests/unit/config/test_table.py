from pathlib import Path

from moe.config.table import render, rows

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def test_the_page_in_docs_is_what_the_dataclasses_say() -> None:
    assert PAGE.read_text() == render(), "run: python -m moe.config.table > docs/configuration.md"


def test_every_setting_has_a_meaning() -> None:
    found = rows()
    assert {"model.top_k", "optimizer.adamw.betas", "loggers.wandb.project", "keep_every"} <= {row[0] for row in found}
    assert [row[0] for row in found if not row[3] and row[1] != "section"] == []
