"""Whether a file of the hub came as its listing says: the hash of all its bytes, made while they are read.

- LFS files are listed with their sha256, all files with the name that git gives their content: the sha1 of
  `blob SIZE`, NUL and the bytes, or of an LFS file's pointer, which holds its sha256 and size. Where a listing has no
  sha256 both are tried, as a mirror may not say that a file is one of LFS.
- A file whose parts this process reads one after the other, as units of work, is hashed to its end, however large it
  is: the next part resumes from the hash at its first byte, so that what is read again there is hashed as it came
  again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

KEPT_STATES, KEPT_FILES = 4, 64
KINDS = {"sha256": "sha256", "git": "git blob id"}
_states: OrderedDict[tuple[str, str], OrderedDict[int, _State]] = OrderedDict()  # by (path, listed), then by position
_proven: dict[tuple[str, str], str] = {}


class _State:
    """The hashes of a file's first bytes."""

    def __init__(self, size: int) -> None:
        self.sha256, self.git = hashlib.sha256(), git_hash(size)

    def copy(self) -> _State:
        new = _State(0)
        new.sha256, new.git = self.sha256.copy(), self.git.copy()
        return new


class Proof:
    """Of one stream of a file. path: below the endpoint. listed: `sha256:HEX` or `git:HEX`."""

    def __init__(self, path: str, size: int, listed: str) -> None:
        self._path, self._size, self._listed = path, size, listed
        self._kind, _, self._wanted = listed.partition(":")
        self._state: _State | None = None
        self._hashed = 0

    def add(self, first: int, content: bytes) -> str | None:
        """Bytes from `first` on. Returns what is wrong, where these complete the file and it is not the listed one."""
        if self._state is None:
            self._begin(first)
        if self._state is None or first != self._hashed:
            return None
        self._state.sha256.update(content)
        if self._kind == "git":
            self._state.git.update(content)
        self._hashed += len(content)
        if self._hashed < self._size:
            self._keep(self._state.copy())
            return None
        _states.pop((self._path, self._listed), None)
        found = self._found(self._state)
        if self._wanted not in found:
            return f"{KINDS[self._kind]} {found[0]}, the hub says {self._wanted}"
        _proven[self._path, self._listed] = KINDS[self._kind]
        return None

    def _begin(self, first: int) -> None:
        known = _states.get((self._path, self._listed), OrderedDict())
        if first == 0:
            self._state = _State(self._size)
        elif first in known:
            self._state, self._hashed = known[first].copy(), first

    def _keep(self, state: _State) -> None:
        states = _states.setdefault((self._path, self._listed), OrderedDict())
        states[self._hashed] = state
        while len(states) > KEPT_STATES:
            states.popitem(last=False)
        while len(_states) > KEPT_FILES:
            _states.popitem(last=False)

    def _found(self, state: _State) -> list[str]:
        sha256 = state.sha256.hexdigest()
        if self._kind == "sha256":
            return [sha256]
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {self._size}\n".encode()
        of_pointer = git_hash(len(pointer))
        of_pointer.update(pointer)
        return [state.git.hexdigest(), of_pointer.hexdigest()]


def git_hash(size: int) -> hashlib._Hash:
    """The hash of a git blob of so many bytes, before the first of them."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def verified_against(path: str, listed: str | None) -> str | None:
    """What this process has held all bytes of a file against; None for nothing. Arguments as of Proof."""
    return None if listed is None else _proven.get((path, listed))
