"""The step that `moe check` takes."""

from pathlib import Path

from moe.config import load_config
from moe.plan.checks.trial import _Trial
from moe.train import loaders
from moe.train.inputs import check_data


def test_its_batch_is_made_as_a_runs_is(tiny: Path, monkeypatch) -> None:
    """On a GPU documents are counted before it leaves; else varlen attention has room for one a token."""
    plain = loaders.batch_transforms
    monkeypatch.setattr(loaders, "batch_transforms", lambda config, meta, on_gpu: plain(config, meta, on_gpu=True))
    config = load_config(tiny / "tiny.yaml", ["device_train_microbatch_size=4"])
    trial = _Trial(config, check_data(config, report=lambda line: None))
    assert trial.batch["document_ends"].shape == (4, 8) and trial.batch["tokens"].shape == (4, 32)
    assert trial.step().state in ("pass", "warn")
