"""Files in the temporary folder: one message where there is no room for them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from moe.common.errors import InputError


@contextmanager
def room_for(what: str) -> Iterator[None]:
    """Within it `what` is written there.

    Raises:
        InputError: in the place of OSError: the disk is full, or there is no folder that can be written to.
    """
    try:
        yield
    except OSError as error:
        where = tempfile.tempdir or os.environ.get("TMPDIR") or "the temporary folder"  # gettempdir may be what fails
        raise InputError(
            f"{what} cannot be written to {where} ({error.strerror or error}); make room there, or name another folder "
            "in the variable TMPDIR"
        ) from None
