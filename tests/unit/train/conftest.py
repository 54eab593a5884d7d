"""What runs in this process share."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
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


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes a module into the working directory, which is this test's own, in the place of one that was imported."""
    monkeypatch.chdir(tmp_path)
    path, names = list(sys.path), set()

    def written(name: str, code: str) -> None:
        sys.modules.pop(name, None)
        names.add(name)
        (tmp_path / f"{name}.py").write_text(code)

    yield written
    sys.path[:] = path
    for name in names:
        sys.modules.pop(name, None)
