"""Scores lm-eval's tasks on the model in memory, at each `eval_tasks.interval` and at the last step.

| metric | meaning |
|---|---|
| `tasks/TASK/METRIC` | a task's score, such as `tasks/arc_easy/acc_norm` |
| `tasks/TASK/METRIC_stderr` | its standard error |
| `tasks/seconds` | how long the scoring took; in the row of every scoring that was made to its end |

Decisions:
- After the save of the same step, so that a scoring may be cut short: a request to stop acts between two requests, and
  the resumed run begins with the scoring. Its scores are logged all at once, or not.
- Nothing of the run is touched: random states are put back, the model is left in training mode, and counts of experts
  are taken from training steps alone.
- A task that fails is reported once, with its cause, and the run continues without its scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from composer import Callback, Logger, State
from composer.core.precision import get_precision_context

from moe.common.errors import InputError
from moe.common.task_metrics import ERROR, SECONDS, key_of
from moe.common.units import clock, say
from moe.config.times import Every
from moe.evaluate.ranks import ScoringStopped
from moe.evaluate.scores import TaskScore, main_scores, score_task, scores_of
from moe.model import Transformer
from moe.train.callbacks.saver import CheckpointSaver
from moe.train.distributed.ranks import RANK
from moe.train.eval_tasks import PreparedTasks
from moe.train.stop import Stopped, StopSignal


class TaskScores(Callback):
    """Args:
    batch_tokens: tokens in a forward pass.
    alive: called between requests, for the watchdog.
    spent: called with the seconds of a scoring that Composer's clock counts as training.
    """

    def __init__(
        self,
        tasks: PreparedTasks,
        model: Transformer,
        every: Every,
        *,
        batch_tokens: int,
        stop: StopSignal,
        saver: CheckpointSaver,
        alive: Callable[[], None],
        spent: Callable[[float], None],
    ):
        from moe.evaluate.adapter import ModelLM

        self.tasks = tasks.tasks
        self.lm = ModelLM(model, tasks.requests, batch_tokens=batch_tokens)
        self.every = every
        self.stop = stop
        self.saver = saver
        self.alive = alive
        self.spent = spent
        self.busy = ""  # with what
        self._reported: set[str] = set()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        if self.every.due(int(state.timestamp.batch)):
            start = time.monotonic()
            self.score(state, logger)
            self.spent(time.monotonic() - start)

    def score(self, state: State, logger: Logger) -> None:
        """Raises Stopped where the run is to end; everything is saved then."""
        start, step = time.monotonic(), int(state.timestamp.batch)
        scores: dict[str, list[TaskScore]] = {}
        try:
            with get_precision_context(state.precision, state.precision_config):
                for number, task in enumerate(self.tasks, 1):
                    what = f"{task.name} ({number} of {len(self.tasks)} tasks) at step {step:,}"
                    self.lm.ranks.between = self._between(state, what)
                    try:
                        scores[task.name] = scores_of(score_task(self.lm, task), task.name)
                    except Exception as error:
                        self._report_failed(task.name, error)
                    for line in self.lm.requests.notes(task.name):
                        self._report(line)
        except ScoringStopped:
            if self.stop.training:
                self.saver.stop_here(state, logger)
            raise Stopped from None
        finally:
            self.busy = ""
        seconds = time.monotonic() - start
        logger.log_metrics({**_metrics(scores), SECONDS: seconds})
        if scores:
            shown = [_shown(score) for of_task in scores.values() for score in main_scores(of_task)]
            _say(f"tasks at step {step:,}: {'  '.join(shown)}  ({clock(seconds)})")

    def _between(self, state: State, what: str) -> Callable[[], bool]:
        begun, done = time.monotonic(), 0

        def between() -> bool:
            nonlocal done
            done += 1
            self.alive()
            self.busy = f"... {what} since {time.monotonic() - begun:.0f} s, {done:,} batches done"
            return self.stop.agreed(state.device._device)

        self.busy = f"... {what}"
        return between

    def _report_failed(self, name: str, error: Exception) -> None:
        cause = str(error) if isinstance(error, InputError) else f"{name}: {type(error).__name__}: {error}"
        if name not in self._reported:
            self._reported.add(name)
            _say(f"warning: {cause}; the run continues without its scores")

    def _report(self, line: str) -> None:
        if line not in self._reported:
            self._reported.add(line)
            _say(f"note: {line}")


def _say(line: str) -> None:
    if RANK == 0:  # not on each machine
        say(line)


def _metrics(scores: dict[str, list[TaskScore]]) -> dict[str, float]:
    found = {}
    for score in [score for of_task in scores.values() for score in of_task]:
        found[key_of(score.task, score.metric)] = score.value
        if score.error is not None:
            found[key_of(score.task, score.metric) + ERROR] = score.error
    return found


def _shown(score: TaskScore) -> str:
    error = "" if score.error is None else f" ±{score.error:.3f}"
    return f"{score.task} {score.metric} {score.value:.3f}{error}"
