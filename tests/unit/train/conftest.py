"""A run in this process keeps its shared memory until the process ends, and each new dataset opens all of it."""

import atexit
import contextlib
import gc
from collections.abc import Iterator

import pytest
import wandb.sdk.data_types._private  # noqa: F401 - makes W&B's folder for media; not inside the first run's own folder

from moe.train.stop import StopSignal


@pytest.fixture(autouse=True)
def _leave_signals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StopSignal, "install", lambda self: None)


@pytest.fixture(autouse=True)
def _release_shared_memory() -> Iterator[None]:
    yield
    from streaming.base.shared.memory import SharedMemory

    gc.collect()
    for memory in [found for found in gc.get_objects() if type(found) is SharedMemory]:
        atexit.unregister(memory.cleanup)
        with contextlib.suppress(BufferError):  # an array still looks into it
            memory.cleanup()
