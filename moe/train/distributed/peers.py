"""The other ranks of a start, as they presented themselves: which of them are gone, for people."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moe.train.distributed.meeting import Member
from moe.train.distributed.writes import Writes


class Peers:
    """Args:
    members: all ranks, in order; store: where they met; as `meet` gives them.
    """

    def __init__(self, members: list[Member], rank: int, store: Any = None) -> None:
        self.members = members
        self.writes = Writes(store) if store is not None else None
        self.me = members[rank]

    def gone(self) -> str:
        """Ranks under this one's launcher whose process is dead: "rank 1 on node0 (pid 123)"; "" where none is."""
        size = self.me.local_size
        beside = [other for other in self.members if other.rank // size == self.me.rank // size]
        return ", ".join(
            f"rank {other.rank} on {other.host} (pid {other.pid})" for other in beside if _is_dead(other.pid)
        )

    def lost(self, error: str) -> str:
        """Who it was, by a collective's error, which names an address; "another rank" where that tells nothing."""
        if gone := self.gone():
            return gone
        for address in re.findall(r"\[([0-9a-fA-F.:]+)\]:\d", error):
            there = [other for other in self.members if address in (other.address, f"::ffff:{other.address}")]
            there = [other for other in there if other.host != self.me.host]
            if there:
                ranks = ", ".join(str(other.rank) for other in there)
                return f"{there[0].host} (rank{'s' * (len(there) > 1)} {ranks})"
        return "another rank"

    def named(self, rank: int) -> str:
        return f"rank {rank} on {self.members[rank].host}"


def _is_dead(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists()
    return state in "ZX"
