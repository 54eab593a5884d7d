"""What is used of Streaming, imported without its own datasets for text, vision and multimodal data.

Nothing here needs those, and what they import (AutoTokenizer, torchvision) is half of a reader's start. Whoever asks
for `streaming.text` and the like gets them all the same.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

NOT_NEEDED = ("multimodal", "text", "vision")
_left_out = [] if "streaming" in sys.modules else [f"streaming.{name}" for name in NOT_NEEDED]

sys.modules.update({name: ModuleType(name) for name in _left_out})
try:
    import streaming
    from streaming import Stream, StreamingDataLoader, StreamingDataset
    from streaming.base import dataset as stock_dataset
    from streaming.base.constant import BARRIER_FILELOCK, CACHE_FILELOCK, DEFAULT_TIMEOUT, LOCALS, SHM_TO_CLEAN, TICK
    from streaming.base.dataset import _Iterator, _ShardState
    from streaming.base.format.base import FileInfo, Reader
    from streaming.base.format.mds import MDSReader
    from streaming.base.shared import SharedMemory, _get_path
    from streaming.base.shared import prefix as stock_prefix
    from streaming.base.shared.prefix import _unpack_locals
    from streaming.base.storage import CloudDownloader
    from streaming.base.util import wait_for_file_to_exist
    from streaming.base.world import World
finally:
    for _name in _left_out:
        del sys.modules[_name]


def _when_asked(name: str) -> Any:
    if name in NOT_NEEDED:
        return import_module(f"streaming.{name}")
    raise AttributeError(f"module 'streaming' has no attribute {name!r}")


if _left_out:
    for _name in NOT_NEEDED:
        delattr(streaming, _name)
    streaming.__getattr__ = _when_asked  # type: ignore[method-assign]

__all__ = [
    "BARRIER_FILELOCK",
    "CACHE_FILELOCK",
    "DEFAULT_TIMEOUT",
    "LOCALS",
    "SHM_TO_CLEAN",
    "TICK",
    "CloudDownloader",
    "FileInfo",
    "MDSReader",
    "Reader",
    "SharedMemory",
    "Stream",
    "StreamingDataLoader",
    "StreamingDataset",
    "World",
    "_Iterator",
    "_ShardState",
    "_get_path",
    "_unpack_locals",
    "stock_dataset",
    "stock_prefix",
    "wait_for_file_to_exist",
]
