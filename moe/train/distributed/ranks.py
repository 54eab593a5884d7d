"""Which rank this process is, and how all ranks come to one answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from moe.common.environment import number
from moe.common.errors import InputError, Unreachable
from moe.common.s3 import RemoteAway

T = TypeVar("T")
RANK, LOCAL_RANK, WORLD_SIZE = number("RANK", 0), number("LOCAL_RANK", 0), number("WORLD_SIZE", 1)
MACHINES = max(1, WORLD_SIZE // number("LOCAL_WORLD_SIZE", WORLD_SIZE))


def agreed(call: Callable[[], T], *, here: bool) -> T:
    """What `call` gives on rank 0, after it was made on all ranks that are `here`. Raises as `on_each` does."""
    return on_each(call, here=here)[0]


def on_each(call: Callable[[], T], *, here: bool) -> list[T]:
    """What `call` gives on each rank; None on one that is not `here`.

    Raises:
        InputError, Unreachable: on every rank alike, where it failed on one.
    """
    from composer.utils import dist

    refusal: InputError | Unreachable | None = None
    result = None
    if here:
        try:
            result = call()
        except (InputError, Unreachable) as error:
            refusal = Unreachable(str(error)) if isinstance(error, Unreachable) else InputError(str(error))
        except OSError as error:  # RemoteError among them
            kind = Unreachable if isinstance(error, RemoteAway) else InputError
            refusal = kind(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    answers: list[Any] = dist.all_gather_object((refusal, result))
    if refusals := [found for found, _ in answers if found is not None]:
        raise refusals[0]
    return [result for _, result in answers]
