"""That one process alone trains in a run folder: its lock, and what a start that is refused takes away again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moe.common.errors import InputError
from moe.common.locks import Busy, take_lock
from moe.common.paths import refuse_irregular
from moe.train.checkpointing.checkpoints import step_folders
from moe.train.checkpointing.record import RUN_FILE
from moe.train.checkpointing.retention import remove_checkpoint

LOCK_PATIENCE = 12.0  # seconds


def lock_folder(path: Path, report: Callable[[str], None], *, create: bool = True) -> Any:
    for attempt in range(int(LOCK_PATIENCE * 10)):
        try:
            return take_lock(path / ".lock", report, create=create)
        except Busy as busy:  # perhaps the loader workers of a killed run, which leave within seconds
            holder = str(busy)
            if not attempt:
                report(f"{path} is in use by {holder}; waiting up to {LOCK_PATIENCE:g} s for its end ...")
            time.sleep(0.1)
    raise InputError(
        f"save_folder ({path}) is in use by another training process ({holder}); "
        "wait for it, stop it, or give another run_name"
    )


def state_of(path: Path) -> tuple[bytes, ...]:
    """What another process would change first."""
    record = path / RUN_FILE
    if record.exists():
        refuse_irregular(record)
    return record.read_bytes() if record.exists() else b"", *[os.fsencode(folder) for folder in step_folders(path)]


def take_away(path: Path) -> None:
    """What this start has made: a file, a checkpoint that was fetched, W&B's folder."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
    elif path.name.startswith("step-"):
        remove_checkpoint(path)
    else:
        shutil.rmtree(path)
