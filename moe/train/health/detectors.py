"""What in a run's numbers should make a person look. Numbers in, alarms out: no Composer, no clock, no disk.

- Each detector looks at the rows of metrics as they are logged, and says in plain words what it sees, or None.
- An alarm speaks when it starts, and again only after QUIET rows in a row without it.
- Medians are those of this start of the command, after a warm-up: what a resumed run was like on another machine says
  nothing about this one. Only the losses and the count of skipped steps survive a resume.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, ClassVar

from moe.common.units import clock, short
from moe.config.balance import WITH_RATE

QUIET = 20
Row = Mapping[str, Any]  # a row of metrics, and what the callback adds to it


@dataclass(frozen=True)
class Alarm:
    name: str
    message: str  # what is seen, and the likely cause
    fix: str


class Detector(ABC):
    name: ClassVar[str]
    cause: ClassVar[str]
    fix: ClassVar[str]  # RATE stands for the key of the rate that trains the matrices

    @abstractmethod
    def seen(self, row: Row) -> str | None:
        """What is wrong in this row, or None."""


class LossNotFalling(Detector):
    """The loss is not below what it was at half of the tokens so far.

    A loss that follows a power law falls by the same share of what can be learned in every doubling of the tokens; over
    a fixed number of tokens the fall would be lost in noise late in a run. Medians are over ROWS rows, later over SHARE
    of all. A long run keeps means of 2, 4, 8, ... rows, never more than MOST: memory, checkpoints and the time of a row
    do not grow with the run.
    """

    name = "loss_not_falling"
    cause = "the learning rate is too high, or the model has learned what this data holds"
    fix = "halve RATE, or lengthen scheduler.t_warmup; after a jump go back with resume_from=step:N"
    ROWS, SHARE, MOST = 10, 0.05, 2000

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.each = 1  # rows that one of them is the mean of
        self.begun: list[float] = []  # rows of the next one

    def keep(self, loss: float) -> None:
        self.begun.append(loss)
        if len(self.begun) == self.each:
            self.losses.append(fmean(self.begun))
            self.begun = []
        while len(self.losses) >= self.MOST:
            pairs = zip(self.losses[::2], self.losses[1::2], strict=False)  # the last of an odd number is dropped
            self.losses, self.each = [fmean(pair) for pair in pairs], 2 * self.each

    def seen(self, row: Row) -> str | None:
        if math.isfinite(row.get("train/loss", math.nan)):
            self.keep(row["train/loss"])
        half, window = len(self.losses) // 2, max(self.ROWS, round(self.SHARE * len(self.losses)))
        if half < window:
            return None
        before, now = median(self.losses[half - window : half]), median(self.losses[-window:])
        if now < before:
            return None
        tokens = short((len(self.losses) - half) * self.each * row["tokens_per_row"])
        return f"the loss has not fallen over the last {tokens} tokens: {now:.4f}, after {before:.4f} (medians)"


class LossRising(Detector):
    """The loss of three rows is RISE nats above the lowest that three rows have had, or above the first."""

    name = "loss_rising"
    cause = "the learning rate is too high, or the text has changed"
    fix = "halve RATE, or lengthen scheduler.t_warmup; go back with resume_from=step:N"
    RISE, ROWS = 0.5, 3

    def __init__(self) -> None:
        self.recent: deque[float] = deque(maxlen=self.ROWS)
        self.lowest = math.inf

    def seen(self, row: Row) -> str | None:
        if math.isfinite(row.get("train/loss", math.nan)):
            self.recent.append(row["train/loss"])
            self.lowest = row["train/loss"] if math.isinf(self.lowest) else self.lowest
        if len(self.recent) < self.ROWS:
            return None
        now = median(self.recent)
        self.lowest = min(self.lowest, now)
        if now <= self.lowest + self.RISE:
            return None
        return f"the loss has risen to {now:.4f}, from {self.lowest:.4f}"


class GradientNorm(Detector):
    """A norm 10 times the median of the steps before; every step is looked at."""

    name = "gradient_norm"
    cause = "a learning rate at the edge of what is stable, or a batch of broken text"
    fix = "one alone is clipped and does no harm; if more come, halve RATE or lengthen scheduler.t_warmup"
    FACTOR, WARMUP, HISTORY = 10.0, 50, 200

    def __init__(self) -> None:
        self.norms: deque[float] = deque(maxlen=self.HISTORY)
        self.worst: tuple[float, float] | None = None

    def add(self, norm: float) -> None:
        if not math.isfinite(norm):
            return
        if len(self.norms) >= self.WARMUP:
            middle = median(self.norms)
            if norm > self.FACTOR * middle and (self.worst is None or norm > self.worst[0]):
                self.worst = (norm, middle)
        self.norms.append(norm)

    def seen(self, row: Row) -> str | None:
        worst, self.worst = self.worst, None
        if worst is None:
            return None
        return f"a gradient norm of {worst[0]:.3g} is more than {self.FACTOR:.0f} times its median, {worst[1]:.3g}"


class NonFinite(Detector):
    name = "non_finite"
    cause = "a learning rate that is too high, or fp16"
    fix = (
        "halve RATE, or use precision=amp_bf16; the weights are sound, and the run stops by itself after "
        "max_skipped_steps in a row"
    )

    def __init__(self) -> None:
        self.skipped = 0

    def seen(self, row: Row) -> str | None:
        skipped = int(row.get("optim/skipped_steps", self.skipped))
        new, self.skipped = skipped - self.skipped, skipped
        if new > 0:
            return f"{new} step(s) were skipped because the gradient was not finite ({skipped} in total)"
        if not math.isfinite(row.get("train/loss", 0.0)):
            return f"the loss is {row['train/loss']}"
        return None


class DeadExpert(Detector):
    name = "dead_expert"
    cause = "the router has settled on other experts"
    fix = (
        f"raise model.balance_loss (with balance {WITH_RATE} model.balance_rate), or lower RATE; best from a "
        "checkpoint before it: resume_from=step:N"
    )
    STEPS = 200

    def seen(self, row: Row) -> str | None:
        prefix = "experts/idle_steps/"
        dead = {n.removeprefix(prefix): v for n, v in row.items() if n.startswith(prefix) and v >= self.STEPS}
        if not dead:
            return None
        layers = ", ".join(layer.replace("layer_", "layer ") for layer in dead)
        return f"an expert has had less than 1% of its share of tokens for {max(dead.values()):.0f} steps, in {layers}"


class DataWait(Detector):
    """The first row is not looked at: the loader's processes start in it."""

    name = "data_wait"
    cause = "the loader is slower than the device: too few processes, slow storage, or text tokenised as it is read"
    fix = "raise num_workers, put the data on a local disk, or convert the text first"
    SHARE, ROWS = 0.05, 3

    def __init__(self) -> None:
        self.shares: deque[float] = deque(maxlen=self.ROWS)
        self.first = True

    def seen(self, row: Row) -> str | None:
        if not self.first:
            self.shares.append(row["throughput/data_wait"])
        self.first = False
        if len(self.shares) < self.ROWS or median(self.shares) <= self.SHARE:
            return None
        return f"{median(self.shares):.0%} of a step's time is spent waiting for data"


class Throughput(Detector):
    name = "throughput"
    cause = "something else on this machine, a device that is too hot, or data that comes slowly"
    fix = "look at throughput/data_wait, other processes (top, nvidia-smi), the device's clock and temperature"
    SHARE, RECENT, WARMUP, HISTORY = 0.8, 7, 20, 200

    def __init__(self) -> None:
        self.rates: deque[float] = deque(maxlen=self.HISTORY)

    def seen(self, row: Row) -> str | None:
        self.rates.append(row["throughput/tokens_per_sec"])
        now, usual = median([*self.rates][-self.RECENT :]), median(self.rates)
        if len(self.rates) < self.WARMUP or now >= self.SHARE * usual:
            return None
        return f"{short(now)} tokens/s is {1 - now / usual:.0%} below the {short(usual)} that are usual in this run"


class DiskSpace(Detector):
    name = "disk_space"
    cause = "checkpoints or other files have filled the disk"
    fix = (
        "free some space, or lower save_num_checkpoints_to_keep; training continues until max_failed_saves saves in "
        "a row have failed"
    )

    def seen(self, row: Row) -> str | None:
        free, needed = row.get("disk_free", math.inf), row["checkpoint_bytes"]
        if free >= 2 * needed:
            return None
        return f"{short(free)}B are free where the checkpoints lie, fewer than two more need ({short(needed)}B each)"


class TimeLimit(Detector):
    """Speaks in the last tenth of the time, and not before its last half hour."""

    name = "time_limit"
    cause = "time_limit is shorter than the run"
    fix = "nothing is lost: it saves and exits 75, and the same command resumes"

    def seen(self, row: Row) -> str | None:
        left, limit = row.get("seconds_left"), row.get("time_limit")
        if left is None or limit is None or left > min(limit / 10, 1800):
            return None
        last = row["step"] + int(max(left, 0) / row["throughput/step_seconds"])
        if last >= row["total_steps"]:
            return None
        return f"time_limit is over in {clock(max(left, 0))}, at about step {last:,} of {row['total_steps']:,}"


class Detectors:
    """All of them. rate: the key that sets the rate of the matrices (`moe.optim.rates.main_rate_key`)."""

    def __init__(self, rate: str = "optimizer.lr") -> None:
        self.rate = rate
        self.falling, self.rising = LossNotFalling(), LossRising()
        self.gradient, self.non_finite = GradientNorm(), NonFinite()
        of_training: list[Detector] = [self.falling, self.rising, self.gradient, self.non_finite, DeadExpert()]
        self.all = [*of_training, DataWait(), Throughput(), DiskSpace(), TimeLimit()]
        self.quiet: dict[str, int] = {}  # rows without the alarm, of those that have spoken

    def check(self, row: Row) -> list[Alarm]:
        """Alarms that start with this row."""
        started = []
        for detector in self.all:
            found = detector.seen(row)
            if found is not None and self.quiet.get(detector.name, QUIET) >= QUIET:
                message = f"{found}; likely cause: {detector.cause}"
                started.append(Alarm(detector.name, message, detector.fix.replace("RATE", self.rate)))
            if found is not None:
                self.quiet[detector.name] = 0
            elif detector.name in self.quiet:
                self.quiet[detector.name] += 1
        return started

    def state_dict(self) -> dict[str, Any]:
        falling = self.falling
        kept = {"losses": [*falling.losses], "each": falling.each, "begun": [*falling.begun]}
        return {**kept, "lowest": self.rising.lowest, "skipped": self.non_finite.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.falling.each = state.get("each", 1)  # states of 0.2.0 and before have all rows
        self.falling.losses.extend(state["losses"])
        self.falling.begun = list(state.get("begun", []))
        self.rising.lowest = state["lowest"]
        self.non_finite.skipped = state["skipped"]
