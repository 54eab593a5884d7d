"""A hub on loopback that holds one dataset, some/set; and its files as they are asked for."""

from moe.data import hub
from moe.data.text.sources import hub_source
from tests.unit.data.hub_server import SHA

BASE = f"datasets/some/set/resolve/{SHA}"


def source(**changes):
    return hub_source("some/set", **{"config": None, "split": "train", "revision": None, **changes})


def stream(size: int, name: str = "a.txt", **settings) -> hub.HubFile:
    return hub.HubFile(f"{BASE}/{name}", size, **{"block_bytes": 1000, **settings})
