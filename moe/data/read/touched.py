"""Text files that were touched, since an earlier start or while a run reads them: are they the same?

By size and samples (moe/data/text/content.py), as at a start. A stat record saves the look and decides nothing, so what
is touched, copied or replaced by the same bytes changes nothing; of other bytes the positions of the run would mean
other documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from moe.common.errors import InputError
from moe.common.units import note
from moe.data.text.content import BLOCK_BYTES, BLOCKS, Known, sample_of, stat_of
from moe.data.text.files import SourceFile

ALL_BYTES = (BLOCKS + 2) * BLOCK_BYTES  # a file up to this size is sampled with all of its bytes


def touched_line(files: Sequence[SourceFile], known: Known) -> str | None:
    """What to say of files that are the same by samples alone; None where there is none.

    known: of the start before.
    """
    versions = set(known.values())
    count = sum(
        not file.remote
        and file.size > ALL_BYTES
        and file.version in versions
        and (file.kind, *(file.stat or ())) not in known
        for file in files
    )
    if not count:
        return None
    return (
        f"train_data.text: {count} files were touched or copied since the last start: taken for the same by size and "
        "samples; train_data.text.verify=full compares all bytes"
    )


def refuse_changed(file: SourceFile) -> None:
    """Call before and after a file is read. Raises InputError where it is not the one that the run began with."""
    now = None if file.remote else stat_of(file.path)
    if now is None or now == list(file.stat or ()):  # one that is gone is reported by what opens it
        return
    if now[0] != file.size or _sample(file, tuple(now)) != file.version:
        raise InputError(
            f"{file.name}: changed while the run reads it ({file.size:,} bytes when this began, {now[0]:,} now); put "
            "it back as it was: the same command resumes"
        )


@lru_cache(maxsize=4096)
def _sample(file: SourceFile, now: tuple[int, ...]) -> str:
    """Once for each time that it is touched."""
    try:
        found = sample_of(file.path, file.kind)
    except OSError:  # reported by what opens it
        return file.version
    if file.stat is not None and found == file.version and file.size > ALL_BYTES:
        note(f"train_data.text: {file.name} was touched meanwhile: taken for the same by size and samples")
    return found
