"""How many bytes of checkpoints this process has written, read again or sent so far.

While they move, a run that waits for them makes progress (moe/train/callbacks/progress.py).
"""

from __future__ import annotations


class Moved:
    bytes = 0

    def add(self, count: int) -> None:
        """From any thread: of two at once one may be lost, and the sum has moved all the same."""
        self.bytes += count


MOVED = Moved()
