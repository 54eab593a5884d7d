"""One line per log interval, and after the first step of each start, for the person at the terminal. Logs no metrics.

    step 120/1,200  10%  62.9M/629M tok  loss 4.512  ppl 91.1  lr 9.1e-04  grad 0.52  12.3k tok/s  1h02m left

The rate is that of the interval, without evaluations and checkpoints; the time left counts only training. The first
step, which compiles and warms up, tells its seconds instead. Shown only where there is something to tell: the share of
the GPU's peak (mfu), steps skipped, spikes. Where steps are slow, a line every 30 s says how far this one is:

    ... in step 121/1,200 since 24 s, 2 microbatches done; the last step took 41.2 s
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from composer import Logger, State
from composer.loggers import LoggerDestination

from moe.common.units import clock, say, short
from moe.config.times import Every
from moe.train.callbacks.pulse import Pulse


class Console(LoggerDestination):
    """A logger, so that it sees what the callbacks of the same step have logged.

    busy: what keeps the run between two steps, where something does.
    """

    def __init__(self, every: Every, busy: Callable[[], str] = lambda: ""):
        self.every = every
        self.busy = busy
        self.total_steps = every.total_steps
        self.tokens_per_step = every.tokens_per_step
        self.latest: dict[str, float] = {}
        self._eval_start = self._step_start = 0.0
        self._first = True
        self._step = 0  # the last that has ended
        self._step_seconds: float | None = None
        self._microbatches = 0  # done of the step that is being taken, or batches of an evaluation
        self._evaluates = ""  # what
        self._pulse = Pulse(self._how_far)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.latest.update(metrics)

    def fit_start(self, state: State, logger: Logger) -> None:
        self._step, self._step_start = int(state.timestamp.batch), time.monotonic()
        self._pulse.start()

    def batch_start(self, state: State, logger: Logger) -> None:
        self._step_start, self._microbatches = time.monotonic(), 0

    def after_backward(self, state: State, logger: Logger) -> None:
        self._microbatches += 1

    def batch_end(self, state: State, logger: Logger) -> None:
        self._step = step = int(state.timestamp.batch)
        self._step_seconds = time.monotonic() - self._step_start
        if self.every.due(step) or self._first:
            self._say(self._line(step))
        self._first = False
        self._step_start = time.monotonic()  # evaluations and saves come before the next begins

    def fit_end(self, state: State, logger: Logger) -> None:
        self._pulse.stop()

    def close(self, state: State, logger: Logger) -> None:
        self._pulse.stop()

    def _say(self, line: str) -> None:
        say(line)
        self._pulse.heard()

    def _how_far(self) -> str:
        if busy := self.busy():
            return busy
        now = time.monotonic()
        if self._evaluates:
            return f"... {self._evaluates} since {now - self._eval_start:.0f} s, {self._microbatches} batches done"
        step, since = min(self._step + 1, self.total_steps), now - self._step_start
        parts = [f"... in step {step:,}/{self.total_steps:,} since {since:.0f} s"]
        done = self._microbatches
        parts += [f", {done} microbatch{'es' * (done > 1)} done"] if done else []
        parts += [f"; the last step took {self._step_seconds:.1f} s"] if self._step_seconds is not None else []
        return "".join(parts)

    def _line(self, step: int) -> str:
        rates = {name: value for name, value in self.latest.items() if name.startswith("optim/lr/")}
        parts = [
            f"step {step:,}/{self.total_steps:,}",
            f"{100 * step / self.total_steps:.0f}%",
            f"{short(step * self.tokens_per_step)}/{short(self.total_steps * self.tokens_per_step)} tok",
        ]
        if "train/loss" in self.latest:
            parts += [f"loss {self.latest['train/loss']:.4f}", f"ppl {self.latest['train/perplexity']:.4g}"]
        parts += [
            f"lr {max(rates.values()):.2e}",
            f"grad {self.latest['optim/grad_norm']:.3g}",
        ]
        if self.every.due(step):
            rate = self.latest["throughput/tokens_per_sec"]
            left = (self.total_steps - step) * self.tokens_per_step / rate
            parts += [f"{short(rate)} tok/s", f"{clock(left)} left"]
        else:
            parts.append(f"first step {self._step_seconds or 0.0:.1f} s")
        if "throughput/device/mfu" in self.latest:
            parts.insert(-1, f"mfu {self.latest['throughput/device/mfu']:.1%}")
        if self.latest["optim/skipped_steps"]:
            parts.append(f"skipped {self.latest['optim/skipped_steps']:.0f}")
        if self.latest.get("train/loss_spikes"):
            parts.append(f"spikes {self.latest['train/loss_spikes']:.0f}")
        return "  ".join(parts)

    def eval_start(self, state: State, logger: Logger) -> None:
        self._eval_start, self._microbatches = time.monotonic(), 0
        self._pulse.start()
        self._evaluates = f"{state.dataloader_label} at step {int(state.timestamp.batch):,}"

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        self._microbatches += 1

    def eval_end(self, state: State, logger: Logger) -> None:
        self._evaluates = ""
        label = state.dataloader_label  # eval, or eval/NAME where there are several validation sets
        loss, perplexity = self.latest[f"metrics/{label}/loss"], self.latest[f"metrics/{label}/perplexity"]
        bits = self.latest.get(f"metrics/{label}/bits_per_byte")
        seconds = time.monotonic() - self._eval_start
        self._say(
            f"{label} at step {int(state.timestamp.batch):,}: loss {loss:.4f}  ppl {perplexity:.4g}  "
            + ("" if bits is None else f"bits/byte {bits:.4f}  ")
            + f"({short(int(state.eval_timestamp.token))} tok, {clock(seconds)})"
        )

    def log_table(
        self, columns: list[str], rows: list[list[Any]], name: str = "Table", step: int | None = None
    ) -> None:
        for prompt, text in rows:
            self._say(f"  {prompt} → {' '.join(text.split())}")
