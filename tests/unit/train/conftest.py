"""What runs in this process share.

A run keeps its shared memory until the process ends, and each new dataset opens all of it: it is released here.
"""

import atexit
import contextlib
import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb.sdk.data_types._private  # noqa: F401 - makes W&B's folder for media; not inside the first run's own folder

from moe.train.stop import StopSignal
from tests.unit.train.runs import EPOCH, train


@pytest.fixture(scope="session")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data, as its first samples only: an epoch of EPOCH steps."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    index = folder / "data/train/index.json"
    content = json.loads(index.read_text())
    content["shards"][0]["samples"] = EPOCH * 8 + 3
    index.write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def whole(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The uninterrupted run on `small`."""
    patch = pytest.MonkeyPatch()
    patch.setattr(StopSignal, "install", lambda self: None)
    code, folder = train(small, tmp_path_factory.mktemp("whole"), f"save_interval={EPOCH}ba", "eval_data=null")
    patch.undo()
    assert code == 0
    return folder


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
