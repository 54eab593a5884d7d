"""A checkpoint of one kind of device is resumed on another."""

from functools import partial

import composer.trainer.trainer as composer_trainer
import pytest

from moe.train.checkpointing.composer_state import without_empty_scalers
from tests.unit.train.runs import SHORT, train


def test_a_cpus_checkpoint_resumes_where_the_gradient_scaler_is_on(tiny, tmp_path, monkeypatch, capsys) -> None:
    """G2: as on a GPU, whatever the precision is; on a CPU the scaler is off and saves nothing."""
    assert train(tiny, tmp_path, *SHORT, "max_duration=2ba", "save_interval=2ba")[0] == 0
    for name in ("ClosureGradScaler", "GradScaler"):
        on = partial(getattr(composer_trainer, name), device="cpu", enabled=True)
        with pytest.raises(RuntimeError, match="empty"):
            on().load_state_dict({})
        monkeypatch.setattr(composer_trainer, name, on)
    assert train(tiny, tmp_path, *SHORT, "max_duration=3ba")[0] == 0
    assert "resumed from step 2" in capsys.readouterr().out


def test_a_scaler_that_has_a_state_keeps_it() -> None:
    content = {"timestamp": {"step": 3}, "scaler": {"GradScaler": {"scale": 65536.0}, "ClosureGradScaler": {}}}
    kept = without_empty_scalers(content)
    assert kept == {"timestamp": {"step": 3}, "scaler": {"GradScaler": {"scale": 65536.0}}}
    assert without_empty_scalers({"timestamp": 1}) == {"timestamp": 1}
