"""What a process finds around itself, held against what the libraries need, before they are imported.

Decisions:
- An empty variable is an unset one. Variables of a launcher come all together or not at all: one that was left behind
  is refused by its name, not waited for. NODE_RANK alone is worked out, which torchrun sets under another name.
- A user id without an entry in the user database (`docker run -u 1234`) gets a name, and where it has no home that it
  can write, one in the temporary folder: torch's compiler and others ask for both.
- COLUMNS of 0 or 1, as some launchers set it, is no width of a terminal: 80 is taken.
- The soft limit of open files is raised to the hard one.
"""

from __future__ import annotations

import os
import pwd
import resource
import stat
import tempfile
from collections.abc import Mapping
from contextlib import suppress

from moe.common.errors import InputError

LEAST = {
    "RANK": 0,
    "WORLD_SIZE": 1,
    "LOCAL_RANK": 0,
    "LOCAL_WORLD_SIZE": 1,
    "NODE_RANK": 0,
    "GROUP_RANK": 0,
    "MASTER_PORT": 1,
}
MEETING = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what ranks need
MOST_PORT = 65_535
LINE = 80  # columns
LEAST_FILES = 128  # open at once by a run with two loader workers


def settle() -> None:
    """Call first in each command.

    Raises:
        InputError: variables of a launcher that make no sense; too few files may be open.
    """
    for name in (*LEAST, *MEETING):
        if os.environ.get(name, "x").strip() == "":
            del os.environ[name]
    if number("COLUMNS", LINE) < 2:
        os.environ["COLUMNS"] = str(LINE)
    _check_ranks(os.environ)
    _number_the_node()
    _name_the_user()
    _raise_file_limit()


def number(name: str, default: int) -> int:
    """A launcher's variable; `default` where it is unset, empty, or refused by `settle`."""
    text = os.environ.get(name, "").strip()
    return int(text) if text.isdecimal() else default


def is_silent() -> bool:
    """Whether this process is a rank that leaves the talking to rank 0."""
    return number("RANK", 0) > 0 and number("WORLD_SIZE", 1) > 1


def _check_ranks(environ: Mapping[str, str]) -> None:
    unset = "start with `composer -n RANKS ...`, or unset it"
    for name, least in LEAST.items():
        if name in environ and not (environ[name].strip().isdecimal() and int(environ[name]) >= least):
            raise InputError(
                f"the environment's {name} ({environ[name]!r}) must be an integer of at least {least}; {unset}"
            )
    if number("MASTER_PORT", 1) > MOST_PORT:
        raise InputError(
            f"the environment's MASTER_PORT ({environ['MASTER_PORT']}) must be at most {MOST_PORT}; {unset}"
        )
    for name, size in (("RANK", "WORLD_SIZE"), ("LOCAL_RANK", "LOCAL_WORLD_SIZE")):
        rank, ranks = number(name, 0), number(size, 1)
        if rank >= ranks:
            raise InputError(f"the environment's {name} ({rank}) is not below {size} ({ranks}); {unset}")
    missing = [name for name in MEETING if name not in environ]
    if number("WORLD_SIZE", 1) > 1 and missing:
        raise InputError(
            f"the environment's WORLD_SIZE ({environ['WORLD_SIZE']}) says that {number('WORLD_SIZE', 1) - 1} other "
            f"rank(s) take part, and {', '.join(missing)} of a launcher is not set; {unset}"
        )


def _number_the_node() -> None:
    """torchrun calls it GROUP_RANK; Composer reads NODE_RANK where a run resumes, and only there."""
    if number("WORLD_SIZE", 1) > 1 and "NODE_RANK" not in os.environ:
        by_order = number("RANK", 0) // number("LOCAL_WORLD_SIZE", 1)
        os.environ["NODE_RANK"] = str(number("GROUP_RANK", by_order))


def _name_the_user() -> None:
    try:
        pwd.getpwuid(os.getuid())
        return
    except KeyError:
        pass
    name = f"uid-{os.getuid()}"
    if not any(os.environ.get(variable) for variable in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        os.environ["USER"] = os.environ["LOGNAME"] = name
    home = os.environ.get("HOME", "")
    if not home or not os.access(home, os.W_OK):
        os.environ["HOME"] = _own_folder(os.path.join(tempfile.gettempdir(), f"moe-home-{os.getuid()}"))


def _own_folder(path: str) -> str:
    """`path`, made if need be; another one where somebody else has put something there, who could read what we keep."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return path if own else tempfile.mkdtemp(prefix="moe-home-")


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # a hard limit above what the kernel takes
            return
    if hard != resource.RLIM_INFINITY and hard < LEAST_FILES:
        raise InputError(
            f"only {hard} files may be open at once (ulimit -Hn), {LEAST_FILES} are needed; raise the hard limit"
        )
