"""All ranks of a start meet before torch's process group is made, which waits in C and says nothing.

Decisions:
- Rank 0 serves a TCPStore, under torchrun its agent does; everybody looks at it from Python, a few times a second. So
  a signal ends the wait, and who is missing is said. A port is tried with a plain socket first: torch's own attempt
  prints a C++ stack for each that fails.
- Each process writes an entry with a token of its own; rank 0 posts the roster of all entries, and only when each
  process has found its token there is the meeting over. A rank that a launcher started anew, or that met the server of
  a start which is about to end, is in no complete roster and meets again.
- One launcher a machine: two ranks with the same shared memory and the same LOCAL_RANK are refused. What counts is
  /dev/shm itself, not a host's name: Streaming's leader of each machine shares through it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from moe.common.environment import number
from moe.common.errors import InputError
from moe.common.units import clock

LOOK = 0.2  # seconds between two looks at the store
SAID_AGAIN = 30.0  # seconds between two lines about who is missing
ONE_TRY = 1.0  # seconds that one attempt to connect may take
TAKEN = 60.0  # seconds that an earlier start may still hold the port; what holds it longer is something else
HEARD = 5.0  # seconds that rank 0 keeps a refusal for the others to read


class NotMet(Exception):
    """Not all ranks came in `start_timeout`. The message says who is missing."""


@dataclass(frozen=True)
class Member:
    """A rank as it presents itself. `memory` is one for all processes that share /dev/shm, and for no others."""

    rank: int
    local_rank: int
    local_size: int
    world_size: int
    host: str
    address: str
    memory: str
    pid: int
    token: str

    @staticmethod
    def here() -> Member:
        return Member(
            rank=number("RANK", 0),
            local_rank=number("LOCAL_RANK", 0),
            local_size=number("LOCAL_WORLD_SIZE", 1),
            world_size=number("WORLD_SIZE", 1),
            host=os.uname().nodename,
            address=_own_address(),
            memory=_shared_memory(),
            pid=os.getpid(),
            token=uuid.uuid4().hex,
        )


def meet(me: Member, *, seconds: float, say: Callable[[str], None]) -> tuple[Any, list[Member]]:
    """The store that the process group is made with, and all ranks in order.

    say: tells people, on the first rank of each machine.

    Raises:
        InputError: on every rank: two launchers on one machine, two machines of one number, sizes that differ.
        NotMet: somebody is missing after `seconds`.
    """
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    others = me.world_size - 1
    say(f"waiting for {others} other rank{'s' * (others > 1)} at {place} ...")
    watch = _Watch(seconds, say)
    while True:
        store = _connect(me, watch, place)
        with suppress(RuntimeError):  # the server is gone: it was that of a start that has ended
            return store, (_lead if me.rank == 0 else _follow)(store, me, watch)
        if me.rank == 0:
            raise NotMet(f"the store at {place} does not answer any more")


class _Watch:
    """Says from time to time what is waited for, and ends the wait."""

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self.seconds, self.say = seconds, say
        self.start = time.monotonic()
        self.said = self.start - SAID_AGAIN + 2.0  # first after two seconds: most starts need no line

    def look(self, state: Callable[[], str]) -> None:
        now = time.monotonic()
        if now - self.start > self.seconds:
            raise NotMet(f"{state()}, after {clock(self.seconds)} (start_timeout)")
        if now - self.said >= SAID_AGAIN:
            self.said = now
            self.say(f"{state()}; waiting for {clock(self.start + self.seconds - now)} more (start_timeout)")
        time.sleep(LOOK)


def _connect(me: Member, watch: _Watch, place: str) -> Any:
    """A store to meet at, as its server on rank 0, where no agent of torchrun is that.

    Raises:
        InputError: the port is not to be had.
    """
    from torch.distributed import PrefixStore, TCPStore

    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = me.rank == 0 and not agent
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    start = time.monotonic()
    while True:
        if serves or _answers(host, port):
            try:
                store = TCPStore(
                    host,
                    port,
                    is_master=serves,
                    timeout=timedelta(seconds=ONE_TRY if serves else 10 * ONE_TRY),
                    wait_for_workers=False,
                    multi_tenant=True,
                )
                # torchrun's agent keeps its store over restarts of the ranks
                attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
                return PrefixStore(f"moe/{os.environ.get('TORCHELASTIC_RUN_ID', '')}/{attempt}", store)
            except RuntimeError as error:
                taken = "EADDRINUSE" in str(error)
                if serves and ("EACCES" in str(error) or (taken and time.monotonic() - start > TAKEN)):
                    why = f"still in use by another process after {clock(TAKEN)}" if taken else "not open to this user"
                    raise InputError(
                        f"the ranks cannot meet at {place}: port {port} is {why} on {me.host}; give another one "
                        "(--master-port, MASTER_PORT)"
                    ) from None
                reason = "the port is in use" if taken else str(error).splitlines()[0][:200]
                state = f"rank {me.rank} cannot meet the others at {place} ({reason})"
        else:
            state = f"rank 0 does not answer at {place}"
        watch.look(partial(str, state))


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=ONE_TRY).close()
        return True
    except OSError:
        return False


def _lead(store: Any, me: Member, watch: _Watch) -> list[Member]:
    store.set(f"here/{me.rank}", _packed(me))
    while True:
        members = _present(store, me.world_size)
        if error := _error(members):
            store.set("refused", error)
            _wait_until_heard(store, members, me)
            raise InputError(error)
        if len(members) == me.world_size:
            store.set("roster", json.dumps([dataclasses.asdict(member) for member in members]))
            if all(store.check([f"found/{member.token}"]) for member in members if member.rank != me.rank):
                store.set("done", store.get("roster"))
                return members
        watch.look(partial(_here_and_missing, members, me))


def _follow(store: Any, me: Member, watch: _Watch) -> list[Member]:
    store.set(f"here/{me.rank}", _packed(me))
    while True:
        if store.check(["refused"]):
            store.set(f"heard/{me.token}", "")
            raise InputError(store.get("refused").decode())
        if store.check(["done"]) and (members := _roster(store.get("done"), me)):
            return members
        if store.check(["roster"]) and _roster(store.get("roster"), me):
            store.set(f"found/{me.token}", "")
        other = _unpacked(store.get(f"here/{me.rank}"))
        if other.token != me.token:
            raise InputError(_taken(me, other))
        watch.look(lambda: _here_and_missing(_present(store, me.world_size), me))


def _present(store: Any, world_size: int) -> list[Member]:
    keys = [f"here/{rank}" for rank in range(world_size)]
    return [_unpacked(store.get(key)) for key in keys if store.check([key])]


def _roster(posted: bytes, me: Member) -> list[Member] | None:
    members = [Member(**entry) for entry in json.loads(posted)]
    return members if any(member.token == me.token for member in members) else None


def _error(members: list[Member]) -> str | None:
    """What makes these no one run."""
    sizes: dict[tuple[int, int], Member] = {}
    for member in members:
        sizes.setdefault((member.world_size, member.local_size), member)
    if len(sizes) > 1:
        (one, this), (two, that) = list(sizes.items())[:2]
        return (
            f"rank {this.rank} on {this.host} was started with {one[0]} ranks, {one[1]} on its machine, and rank "
            f"{that.rank} on {that.host} with {two[0]}, {two[1]} on its machine; give every launcher the same numbers"
        )
    seen: dict[tuple[str, int], Member] = {}
    for member in members:
        other = seen.setdefault((member.memory, member.local_rank), member)
        if other is not member:
            return (
                f"ranks {other.rank} and {member.rank} run on one machine ({member.host}) under two launchers, both "
                f"with LOCAL_RANK {member.local_rank}; start one launcher a machine, with -n for all its ranks"
            )
    return None


def _taken(me: Member, other: Member) -> str:
    return (
        f"rank {me.rank} is taken: {me.host} and {other.host} were both started with it; give each machine a number of "
        "its own (--node-rank; of composer --node_rank)"
    )


def _wait_until_heard(store: Any, members: list[Member], me: Member) -> None:
    end = time.monotonic() + HEARD
    keys = [f"heard/{member.token}" for member in members if member.rank != me.rank]
    while time.monotonic() < end and not all(store.check([key]) for key in keys):
        time.sleep(LOOK)


def _here_and_missing(members: list[Member], me: Member) -> str:
    """Who is missing: by machine where all of one's ranks are, else by rank."""
    here = {member.rank for member in members}
    said = []
    for first in range(0, me.world_size, me.local_size):
        ranks = range(first, min(first + me.local_size, me.world_size))
        missing = [rank for rank in ranks if rank not in here]
        node = f"node {first // me.local_size}"
        if len(missing) == len(ranks):
            said.append(node)
        elif missing:
            said.append(f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} of {node}")
    more = f" and {len(said) - 8} more" if len(said) > 8 else ""
    missed = f", missing: {', '.join(said[:8])}{more}" if said else ", not all of them have seen the others"
    return f"{len(members)} of {me.world_size} ranks are here{missed}"


def _packed(member: Member) -> str:
    return json.dumps(dataclasses.asdict(member))


def _unpacked(entry: bytes) -> Member:
    return Member(**json.loads(entry))


def _own_address() -> str:
    """The address that the others see this machine under; a datagram's socket sends nothing to find it."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "1"))))
        return str(probe.getsockname()[0])
    return ""


def _shared_memory() -> str:
    """Two containers of one machine may share /dev/shm or not: its device number tells, the boot id the machine."""
    boot = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with suppress(OSError):
        return f"{boot or os.uname().nodename}:{os.stat('/dev/shm').st_dev}"
    return boot or os.uname().nodename
