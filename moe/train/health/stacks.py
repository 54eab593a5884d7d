"""Where every thread of this process stands, as text.

- The main thread comes first: it is the one that hangs. faulthandler writes a hundred threads at most, newest first.
- No source is read: the disk may be what the process hangs on.
"""

from __future__ import annotations

import sys
import threading
from types import FrameType


def stacks() -> str:
    """Of each thread its name, and its calls, the most recent first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    found = sorted(sys._current_frames().items(), key=lambda item: item[0] != main)
    return "\n".join(_stack(names.get(ident, "not of Python"), ident, frame) for ident, frame in found)


def _stack(name: str, ident: int, frame: FrameType | None) -> str:
    lines = [f"Thread {name} (0x{ident:016x}), most recent call first:"]
    while frame is not None:
        lines.append(f'  File "{frame.f_code.co_filename}", line {frame.f_lineno} in {frame.f_code.co_name}')
        frame = frame.f_back
    return "\n".join(lines) + "\n"
