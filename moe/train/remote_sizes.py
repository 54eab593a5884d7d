"""Are the shards of a `remote` there, and as large as index.json says? By listing it, in pages, before the first step.

Without this a shard that was cut short, or never arrived, ends a run when it is needed, which may be days later.
- Rank 0 lists while the rest of the start continues; of 30,000 shards on s3 that is 30 requests.
- A remote that cannot be listed may still be read, and need not be where all shards are in `local`: a line says so.
- What a machine holds already is not fetched, unless a `cache_limit` may remove it; of several, rank 0's is asked.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress

from moe.common.errors import InputError
from moe.common.s3 import client
from moe.common.units import say
from moe.config import Config
from moe.data.folders import LocalFolder
from moe.data.locations import open_folder
from moe.data.read.index import read_index
from moe.data.read.mixture import StreamSpec
from moe.data.read.verify import size_error
from moe.train.distributed.ranks import MACHINES
from moe.train.inputs import Inputs

SHOWN = 5  # shards that are named
LONGEST = 60.0  # seconds that a start waits for a listing
UNCHECKED = "the sizes of its shards are not checked before the run, each is verified as it arrives"


def check_remote_sizes(config: Config, inputs: Inputs) -> list[str]:
    """Holds every remote against the index in `local`; gives a line for each that cannot be listed.

    Raises InputError naming the shards that are missing or of another size, with what to do.
    """
    lines = []
    sections = (
        ("train_data", inputs.train_streams, config.train_data.cache_limit),
        ("eval_data", inputs.eval_streams, None),
    )
    for section, streams, limit in sections:
        kept = limit is None
        for name, spec in streams.items():
            key = f"{section}.streams.{name}" if name else section
            if spec.remote is not None and (line := _check(f"{key}.remote ({spec.remote})", spec, kept)):
                lines.append(line)
    return lines


def remotes_of(inputs: Inputs) -> list[str]:
    specs = [*inputs.train_streams.values(), *inputs.eval_streams.values()]
    return [spec.remote for spec in specs if spec.remote is not None]


def _check(remote: str, spec: StreamSpec, kept: bool) -> str | None:
    try:
        sizes = _listed(f"{str(spec.remote).rstrip('/')}/{spec.split}")
    except (InputError, OSError) as error:
        return f"{remote} cannot be listed ({error}): {UNCHECKED}"
    here = open_folder(os.path.join(spec.local, spec.split))
    shards = read_index(here)
    found = [(shard, size_error(spec.split, shard, sizes, packed=True)) for shard in shards]
    errors = [(shard, error) for shard, error in found if error]
    if errors and kept:
        held = here.sizes()
        errors = [(shard, error) for shard, error in errors if held.get(shard.name) != shard.bytes]
    if not errors:
        if MACHINES > 1 and any(error for _, error in found):
            return f"{remote}: not all shards are as {here}/index.json says; this machine needs none of them from there"
        return None
    lines = [f"{remote}: {len(errors):,} of {len(shards):,} shards are not as {here}/index.json says"]
    lines += [f"  {error}" for _, error in errors[:SHOWN]]
    lines += [f"  and {len(errors) - SHOWN:,} more"] if len(errors) > SHOWN else []
    lines += [
        f"Restore them there, or convert again; where the data was made anew, remove {spec.local}, which holds the "
        "index of the former"
    ]
    raise InputError("\n".join(lines))


def _listed(folder: str) -> dict[str, int]:
    """Bytes of every file there. Raises InputError or OSError where that cannot be known."""
    place = open_folder(folder)
    if isinstance(place, LocalFolder):
        try:
            os.scandir(place.path).close()  # `sizes` passes over what cannot be read
        except FileNotFoundError:
            return {}
    return place.sizes()


def begin_check(config: Config, inputs: Inputs) -> Callable[[], None]:
    """Begins `check_remote_sizes` in a thread. What it gives waits for that, says its lines and raises its error."""
    remotes = remotes_of(inputs)
    if not remotes:
        return lambda: None
    if any(remote.startswith("s3://") for remote in remotes):
        with suppress(Exception):  # of the thread: it comes again there
            client()  # two threads that import the same packages may see them half made
    found: list[list[str] | BaseException] = []

    def check() -> None:
        try:
            found.append(check_remote_sizes(config, inputs))
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=check, name="remote sizes", daemon=True)
    thread.start()

    def wait() -> None:
        thread.join(LONGEST)
        outcome = found[0] if found else [f"the remote is not listed after {LONGEST:.0f} s: {UNCHECKED}"]
        if isinstance(outcome, BaseException):
            raise outcome
        for line in outcome:
            say(f"warning: {line}")

    return wait
