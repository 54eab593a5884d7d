"""W&B runs in a process of its own, which may be killed, full or wrong: the training and its end are as without it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe.train.callbacks.progress import Progress, watched
from moe.train.logs import wandb_writer
from moe.train.stop import Stopped
from tests.unit.train.runs import rows, train


class LostRun:
    """A W&B run whose process is gone after `taken` rows."""

    def __init__(
        self, taken: int = 0, error: Callable[[], Exception] = lambda: ConnectionResetError("Connection lost")
    ):
        self.left, self.error = taken, error

    def log(self, row: dict[str, Any], step: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error()

    def finish(self, exit_code: int) -> None:
        raise self.error()


@pytest.fixture
def lose(monkeypatch) -> Callable[[LostRun], list[str]]:
    import wandb

    def use(run: LostRun) -> list[str]:
        ended: list[str] = []
        monkeypatch.setattr(wandb, "init", lambda **settings: run)
        monkeypatch.setattr(wandb, "teardown", lambda: ended.append("at exit"))
        return ended

    return use


def test_a_run_whose_wandb_process_is_killed_trains_to_its_end_and_is_done(
    tiny: Path, tmp_path: Path, lose, capsys
) -> None:
    """B12: the end of a complete run was a ConnectionResetError, `failed`, exit code 1."""
    from wandb.sdk.mailbox.mailbox import MailboxClosedError

    ended = lose(LostRun(2, lambda: MailboxClosedError()))  # an Exception, and no OSError
    settings = ["loggers.wandb={project: p, mode: offline}", "eval_data=null", "scheduler.t_warmup=1ba"]
    code, folder = train(tiny, tmp_path, *settings, "max_duration=5ba")
    told = capsys.readouterr()
    assert code == 0 and "Traceback" not in told.err
    assert json.loads((folder / "run.json").read_text())["state"] == "done"
    assert list(rows(folder, "train/loss")) == [1, 2, 3, 4, 5]
    warnings = [line for line in told.out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 2, warnings
    assert "from step 3 on: W&B: MailboxClosedError; training continues" in warnings[0]
    assert "W&B did not take the end of the run: MailboxClosedError; all rows are in metrics.jsonl" in warnings[1]
    assert ended == ["at exit"], "W&B's own try at exit would be a traceback"


def test_a_stop_stays_a_stop_and_the_watchdog_ends_whatever_the_logs_do(tmp_path: Path, lose) -> None:
    """B12: after SIGTERM the lost connection took the place of the stop: exit code 1, for 75."""
    lose(LostRun())
    places = {"folder": tmp_path, "config": {}, "tags": [], "entity": None}
    _, finish = wandb_writer(project="p", mode="offline", run_id="x", name="n", **places)
    watchdog = Progress(3600.0, stacks=tmp_path, rank=0, note=lambda state: None, end=lambda code: None)
    with pytest.raises(Stopped), watched(watchdog, finish):
        raise Stopped
    assert watchdog._over.is_set()
    watchdog = Progress(3600.0, stacks=tmp_path, rank=0, note=lambda state: None, end=lambda code: None)

    def interrupted(code: int) -> None:
        raise KeyboardInterrupt  # a second Ctrl+C, while W&B sends its last rows

    with pytest.raises(KeyboardInterrupt), watched(watchdog, interrupted):
        pass
    assert watchdog._over.is_set()


def test_any_error_of_wandb_is_one_that_the_logs_report(tmp_path: Path, lose) -> None:
    """B12: only OSErrors of a row were a warning."""
    lose(LostRun(0, lambda: RuntimeError("the service  has\nended")))
    places = {"folder": tmp_path, "config": {}, "tags": [], "entity": None}
    write, _ = wandb_writer(project="p", mode="offline", run_id="x", name="n", **places)
    with pytest.raises(OSError, match=r"^W&B: the service has ended$"):
        write(1, {"train/loss": 1.0, "experts/load": [1.0, 2.0]})
