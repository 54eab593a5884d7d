"""A hub on loopback that holds one dataset, some/set."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from moe.data import hub_client
from tests.unit.data.hub_server import Hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


@pytest.fixture
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Start a hub with the dataset some/set, `folder`; everything speaks to the last one started."""
    started = []

    def start(*args, datasets=None, **settings) -> Hub:
        started.append(Hub({"some/set": folder} if datasets is None else datasets, *args, **settings))
        monkeypatch.setenv("HF_ENDPOINT", started[-1].url)
        monkeypatch.setattr(hub_client, "FIRST_PAUSE_S", 0.01)
        monkeypatch.setattr(hub_client, "_last_reported", [])
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
        return started[-1]

    yield start
    for server in started:
        server.close()
