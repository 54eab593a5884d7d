"""`eval_tasks`: tasks scored while a run trains; in this process, with the tasks that need no network."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from moe.common.errors import InputError
from moe.train.callbacks.task_scores import TaskScores
from moe.train.logs import RunLog, logged_at
from moe.train.stop import EXIT_STOPPED as STOPPED
from moe.train.stop import StopSignal
from tests.unit.train.runs import assert_same_run, train

TASKS = Path(__file__).resolve().parents[3] / "yamls" / "tasks"
SETTINGS = ["max_duration=12ba", "scheduler.t_warmup=2ba", "eval_data=null", "save_interval=6ba"]


def tasks(*names: str, **settings: object) -> str:
    given = {"names": list(names), "interval": "6ba", "limit": 5, "include_path": str(TASKS), **settings}
    return "eval_tasks=" + json.dumps(given)


@pytest.fixture(autouse=True)
def no_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own tasks, which take it 20 s to list, are none of these."""
    import lm_eval.tasks

    known = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **k: known(**{**k, "include_defaults": False}))


ALL = tasks("offline_ends", "offline_last_word", "offline_text", "offline_copy")


def scores(folder: Path) -> list[dict]:
    """Rows of scores, without the time they took."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [{k: v for k, v in row.items() if k != "tasks/seconds"} for row in lines if "tasks/seconds" in row]
    assert len({row["step"] for row in found}) == len(found), "a step is scored twice"
    return found


@pytest.fixture(scope="module")
def plain(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that scores nothing, with dropout."""
    return run_once(small, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def scored(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with scores."""
    return run_once(small, tmp_path_factory.mktemp("scored"), ALL, "loggers.tensorboard={}")


def run_once(small: Path, folder: Path, *settings: str) -> Path:
    patch = pytest.MonkeyPatch()
    patch.setattr(StopSignal, "install", lambda self: None)
    code, run = train(small, folder, *SETTINGS, *settings)
    patch.undo()
    assert code == 0
    return run


def test_scoring_changes_nothing_of_the_run(plain: Path, scored: Path) -> None:
    """Bit for bit, with dropout: losses, weights."""
    assert_same_run(scored, plain)


def test_scores_go_where_metrics_go_with_their_errors(scored: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = scores(scored)
    assert [row["step"] for row in found] == [6, 12]
    text = (TASKS.parents[1] / "docs" / "monitoring.md").read_text()
    listed = set(re.findall(r"^\| `(tasks/[^`]+)` \(3\)", text, re.MULTILINE))
    keys = [key for key in found[0] if key.startswith("tasks/")]
    logged = {re.sub("/[a-z_]+?(_stderr)?$", r"/METRIC\1", key).replace(key.split("/")[1], "TASK") for key in keys}
    assert logged | {"tasks/seconds"} == listed
    for key in ("offline_ends/acc_norm", "offline_last_word/perplexity", "offline_text/bits_per_byte"):
        assert all(row[f"tasks/{key}"] >= 0 and row[f"tasks/{key}_stderr"] >= 0 for row in found), key
    assert found[0]["tasks/offline_text/bits_per_byte"] != found[1]["tasks/offline_text/bits_per_byte"]
    board = EventAccumulator(str(scored / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("tasks/offline_ends/acc")] == [6, 12]


def test_a_scoring_cut_short_is_made_up_with_the_same_scores(
    small: Path, tmp_path: Path, scored: Path, monkeypatch, capsys
) -> None:
    """A signal between two requests, at the first scoring and at the last: 75, and nothing is lost or doubled."""
    signals: list[StopSignal] = []
    monkeypatch.setattr(StopSignal, "install", lambda self: signals.append(self))
    plain, begun = TaskScores._between, []

    def between(self, state, what):
        goes_on = plain(self, state, what)
        begun.append(what)

        def then() -> bool:
            if len(begun) in (2, 2 + 4 + 3):  # within a task
                signals[-1].received = signal.SIGTERM
            return goes_on()

        return then

    monkeypatch.setattr(TaskScores, "_between", between)
    for after, steps in ((6, []), (12, [6])):
        code, folder = train(small, tmp_path, *SETTINGS, ALL)
        assert code == STOPPED and [row["step"] for row in scores(folder)] == steps
        assert (folder / f"step-{after:08d}").is_dir()
        assert "stopped by SIGTERM" in capsys.readouterr().out
    monkeypatch.setattr(TaskScores, "_between", plain)
    code, folder = train(small, tmp_path, *SETTINGS, ALL)
    assert code == 0 and scores(folder) == scores(scored)
    assert_same_run(folder, scored)
    capsys.readouterr()
    assert train(small, tmp_path, *SETTINGS, ALL)[0] == 0
    shown = capsys.readouterr().out
    assert "complete: step 12 of 12" in shown and "tasks at step" not in shown


def test_a_task_that_fails_is_told_once_and_the_run_continues(
    small: Path, tmp_path: Path, plain: Path, monkeypatch, capsys
) -> None:
    import moe.train.callbacks.task_scores as module

    score = module.score_task

    def fails(lm, task):
        if task.name == "offline_text":
            raise InputError(f"{task.about} cannot be scored: no room")
        return score(lm, task)

    monkeypatch.setattr(module, "score_task", fails)
    code, folder = train(small, tmp_path, *SETTINGS, tasks("offline_text", "offline_last_word"))
    shown = capsys.readouterr().out
    assert (
        code == 0
        and shown.count("warning: eval_tasks.names (offline_text) cannot be scored: no room; the run con") == 1
    )
    assert "tasks   offline_text, offline_last_word: 10 questions every 6ba, 2 times; " in shown
    assert shown.count("tasks at step 6: offline_last_word acc 0.") == shown.count("tasks at step 12: ") == 1
    assert "note: offline_last_word: contexts cut in front to max_seq_len (32): " in shown
    assert [sorted(row)[1] for row in scores(folder)] == ["tasks/offline_last_word/acc"] * 2
    assert_same_run(folder, plain)


BAD = {
    "unknown": (tasks("no_such_task"), "eval_tasks.names: lm-eval does not know no_such_task"),
    "no folder": (tasks("offline_ends", include_path="nowhere"), "eval_tasks.include_path (nowhere): there is no"),
    "too much": (
        tasks("long_copy", include_path="{own}"),
        "eval_tasks.names (long_copy) cannot be scored: it asks for",
    ),
    "no data": (tasks("no_data", include_path="{own}"), "eval_tasks.names: the data of no_data is not available: "),
    "no examples": (tasks("no_shots", include_path="{own}", fewshot=2), "(no_shots): no_shots takes no examples"),
    "twice": (tasks("offline_ends", "offline_ends"), "eval_tasks.names (offline_ends) must be"),
    "none": (tasks(), "eval_tasks.names is empty"),
    "interval": (tasks("offline_ends", interval="5"), "eval_tasks.interval (5) is not a duration"),
    "limit": (tasks("offline_ends", limit=0), "eval_tasks.limit (0) must be at least 1"),
    "shots": (tasks("offline_ends", fewshot=-1), "eval_tasks.fewshot (-1) must be at least 0"),
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tasks that cannot be scored."""
    folder = tmp_path / "own"
    folder.mkdir()
    text = (TASKS / "offline_copy.yaml").read_text()
    (folder / "words.py").write_text((TASKS / "words.py").read_text())
    (folder / "long.yaml").write_text(text.replace("offline_copy", "long_copy").replace("toks: 16", "toks: 400"))
    (folder / "shots.yaml").write_text(text.replace("offline_copy", "no_shots") + "num_fewshot: 0\n")
    data = text.replace("offline_copy", "no_data").replace(
        "custom_dataset: !function words.copies", "dataset_path: me/x"
    )
    (folder / "data.yaml").write_text(data)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return folder


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_scored_is_told_before_anything_is_made(
    tiny: Path, tmp_path: Path, own: Path, capsys, case: str
) -> None:
    setting, message = BAD[case]
    code, folder = train(tiny, tmp_path, *SETTINGS, setting.replace("{own}", str(own)))
    error = capsys.readouterr().err
    assert code == 2 and message in error and "Traceback" not in error
    assert not folder.exists() or not list(folder.glob("*.json*")), "nothing of a run is there"
    if case == "no data":
        assert "load_dataset('me/x')" in error and f"bring the folder {tmp_path / 'cache' / 'me___x'} here" in error


def test_the_check_has_a_line_for_the_tasks(tiny: Path, tmp_path: Path) -> None:
    from moe.config import load_config
    from moe.plan.checks.tasks import check_tasks
    from moe.train.inputs import check_data
    from tests.tiny import tiny_config, write_config

    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    said: list[str] = []
    config = load_config(path, [tasks("offline_ends", "offline_text")])
    (line,) = check_tasks(config, check_data(config, said.append), said.append)
    assert (line.name, line.state) == ("tasks", "pass")
    assert (
        "offline_ends, offline_text: 10 questions every 6ba, 7 times; " in line.text
        and "of the run's time" in line.text
    )
    (line,) = check_tasks(load_config(path, [tasks("no_such_task")]), None, said.append)
    assert line.state == "fail" and "does not know no_such_task" in line.text
    assert check_tasks(load_config(path), None, said.append) == []


def test_between_two_requests_the_watchdog_hears_and_a_limit_of_time_acts() -> None:
    heard: list[None] = []
    scores = TaskScores.__new__(TaskScores)
    scores.alive, scores.stop = lambda: heard.append(None), StopSignal()
    state = SimpleNamespace(device=SimpleNamespace(_device="cpu"))
    between = scores._between(state, "offline_ends (1 of 2 tasks) at step 6")
    assert not between() and not between() and len(heard) == 2
    assert re.fullmatch(r"\.\.\. offline_ends \(1 of 2 tasks\) at step 6 since \d+ s, 2 batches done", scores.busy)
    scores.stop.time_limit = -1.0
    assert between()


def test_scores_are_a_row_of_their_own_in_every_log() -> None:
    logs: tuple[list, list] = ([], [])
    log = RunLog([lambda step, row, to=to: to.append((step, dict(row))) for to in logs], every=None)
    log.log_metrics({"tasks/a/acc": 0.5, "tasks/seconds": 1.0, "train/loss": 2.0}, step=7)
    assert logs[0] == logs[1] == [(7, {"tasks/a/acc": 0.5, "tasks/seconds": 1.0})]
    assert log.pending == {"train/loss": 2.0}, "waits for its own time"
    assert logged_at(b'{"step": 7, "tasks/seconds": 1.0}\n', 7, "tasks/seconds")
    assert not logged_at(b'{"step": 7, "tasks/a/acc": 1.0}\n{"step": 8, "tasks/seconds": 1}\n', 7, "tasks/seconds")
