"""The callbacks that the yaml names, as one callback among ours: after all others of an event, before the saver.

Decisions:
- They are one entry of a checkpoint, each under its class's full name: Composer keeps a state by the class's short name
  alone, and would give one callback the state of another.
- What is saved of them is their state at the last step's end. A step that is abandoned and an evaluation that is
  interrupted are done again after a resume, and must not be counted twice.
- A state is plain values and tensors. That is tried before the start is recorded, once more before the first step, and
  before each save, which is given up rather than written for nobody to read.
- Each rank has its own callbacks; the state of rank 0's is saved, and all ranks load it.
- Their random draws are a function of (seed, step, rank, callback, event) and move none of the run's.
- What they log gets a row at the step that it is of, whatever `log_interval` says.
"""

from __future__ import annotations

import copy
import io
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from composer import Callback, Event, Logger, State
from composer.core.serializable import Serializable
from composer.utils import dist
from torch.utils._pytree import tree_map

from moe.common.errors import InputError, RunFailed
from moe.config import Config
from moe.train.callbacks.own_random import own_random
from moe.train.callbacks.user_classes import UserClass, load_user_classes
from moe.train.checkpointing.checkpoints import ALLOWED_TYPES
from moe.train.distributed.ranks import agreed
from moe.train.logs import RunLog

FIX = "keep numbers, text, lists, dicts and plain tensors in state_dict"


class UserCallbacks(Callback):
    """Raises InputError where a state cannot be kept in a checkpoint."""

    def __init__(self, found: Sequence[UserClass], *, seed: int):
        self.classes = found
        self.sources = {one.key: one.sha256 for one in found}  # sha256 of the source of each
        self.callbacks = {one.key: one.callback for one in found}
        self.seed = seed
        self._step = -1
        self._having = [key for key, one in self.callbacks.items() if _has_state(one)]
        self._times: Counter[tuple[str, str]] = Counter()  # in this step, of a callback and an event
        self._kept: dict[str, Any] = {}
        for key in self._having:
            with suppress(Exception):  # a state may need the event `init`; it is tried again at the first step
                self._kept[key] = self._state(key)
        self._check()

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        step = int(state.timestamp.batch)
        if step != self._step:
            self._step, self._times = step, Counter()
        for key, callback in self.callbacks.items():
            if not _acts(callback, event):
                continue
            time = self._times[key, event.value]
            self._times[key, event.value] += 1
            logs = [log for log in logger.destinations if isinstance(log, RunLog)]
            before = [dict(log.pending) for log in logs]
            with own_random(self.seed, step, dist.get_global_rank(), key, event.value, time):
                try:
                    callback.run_event(event, state, logger)
                except (SystemExit, InputError, RunFailed) as error:  # would end the run without a traceback
                    raise RuntimeError(f"callbacks: {key} ended the run at {event.value}: {error!r}") from error
            for log, former in zip(logs, before, strict=True):
                log.of_users |= {name for name, value in log.pending.items() if former.get(name, ...) is not value}
        if event in (Event.FIT_START, Event.BATCH_END):
            self._kept = {key: self._state(key) for key in self._having}
        if event == Event.FIT_START:
            self._check()

    def state_dict(self) -> dict[str, Any]:
        """Raises RunFailed where a state cannot be kept."""
        if dist.get_global_rank() == 0 and (error := self._error()):
            raise RunFailed(f"{error}; this step is not saved, earlier checkpoints are complete")
        return self._kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, callback in self.callbacks.items():
            if key in state:
                callback.load_state_dict(copy.deepcopy(state[key]))
                self._kept[key] = state[key]

    def close(self, state: State, logger: Logger) -> None:
        with ExitStack() as stack:  # calls all of them, also where one fails
            for callback in self.callbacks.values():
                stack.callback(callback.close, state, logger)

    def post_close(self) -> None:
        with ExitStack() as stack:
            for callback in self.callbacks.values():
                stack.callback(callback.post_close)

    def _state(self, key: str) -> Any:
        """A copy, as a callback changes its own."""
        return tree_map(_copied, self.callbacks[key].state_dict())

    def _check(self) -> None:
        if error := self._error():
            raise InputError(error)

    def _error(self) -> str | None:
        for key, state in self._kept.items():
            if reason := _unkept(state):
                return f"callbacks: the state of {key} cannot be kept in a checkpoint: {reason}; {FIX}"
        return None


def build_user_callbacks(config: Config) -> UserCallbacks:
    """Raises InputError, on every rank alike, where one cannot be used."""
    made: list[UserCallbacks] = []

    def make() -> None:
        made.append(UserCallbacks(load_user_classes(config.callbacks, seed=config.seed), seed=config.seed))

    agreed(make, here=True)
    return made[0]


def _has_state(callback: Callback) -> bool:
    return type(callback).state_dict is not Serializable.state_dict


def _acts(callback: Callback, event: Event) -> bool:
    """Whether it does anything at `event`."""
    if type(callback).run_event is not Callback.run_event or event.value in vars(callback):
        return True
    return getattr(type(callback), event.value) is not getattr(Callback, event.value)


def _copied(leaf: Any) -> Any:
    return leaf.detach().clone() if isinstance(leaf, torch.Tensor) else copy.deepcopy(leaf)


def _unkept(state: Any) -> str | None:
    """Why a checkpoint with `state` could not be read again; None where it could. Tensors are not copied for it."""

    def light(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if type(leaf) not in (torch.Tensor, torch.nn.Parameter):
            raise TypeError(f"it holds a {type(leaf).__name__}")
        return torch.empty(0)

    file = io.BytesIO()
    try:
        torch.save(tree_map(light, state), file)
        file.seek(0)
        with torch.serialization.safe_globals(ALLOWED_TYPES):
            torch.load(file, weights_only=True)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return next((line for line in lines if "GLOBAL" in line), lines[0] if lines else type(error).__name__)
    return None
