"""A result is whole or not there: written aside, renamed when it has been proven."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from moe.errors import InputError, RunFailed


@contextlib.contextmanager
def written_aside(out: Path, *, overwrite: bool, replaceable: Callable[[Path], bool]) -> Iterator[Path]:
    """An empty folder beside `out` that takes its place when the block ends well, and is removed when it does not.

    replaceable: whether what stands in the way may go under --overwrite, asked before anything is done.

    Raises:
        InputError: `out` is there already, or nothing can be written beside it.
        RunFailed: writing failed half way.
    """
    out = out.expanduser()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not overwrite:
            raise InputError(f"--out ({out}) is there already; give another folder, or --overwrite to replace it")
        if not replaceable(out):
            raise InputError(f"--out ({out}) holds something else; --overwrite replaces only what this script made")
    aside, old = out.with_name(f".writing-{out.name}"), out.with_name(f".replaced-{out.name}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--out ({out}): {error.filename} cannot be written ({error.strerror})") from None
    try:
        yield aside
        if out.exists():
            out.rename(old)
        aside.rename(out)
    except OSError as error:
        raise RunFailed(f"--out ({out}): {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
