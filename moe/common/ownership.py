"""What may be removed: only what carries our own mark and holds nothing else.

    FOLDER/.made.json   {"made_by": "moe", "kind": "export", "files": [...]}, written last; files is null in the making,
                        where it is not known yet what will be in it

- The mark lists every file. A file, link or empty folder that it does not list is a stranger: the folder is refused by
  that name, and nothing is touched.
- Removal takes the files one by one and then the folders that are empty: what comes in at the last moment stays.
- A place is resolved before it is judged: links, `.` and `..`. Root, home, the current folder and all above them are
  never replaced.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from moe.common.errors import InputError

MARK = ".made.json"
SHOWN = 3  # strangers named in a message


def replaceable_place(path: Path, flag: str) -> Path:
    """`path` without links, `.` and `..`.

    Raises:
        InputError: it is root, home, the current folder, or above one of these; or it cannot be resolved.
    """
    try:
        found = path.resolve()
        used = {"root": Path("/"), "the home folder": Path.home().resolve(), "the current folder": Path.cwd()}
    except (OSError, RuntimeError) as error:  # a loop of links; no home folder
        raise InputError(f"{flag} ({path}) cannot be resolved ({error}); give another folder") from None
    for name, place in used.items():
        if found == place or found in place.parents:
            what = "is" if found == place else "is above"
            raise InputError(f"{flag} ({path}) {what} {name}; give a folder of its own, such as {path / 'NAME'}")
    return found


def entries(folder: Path) -> list[str]:
    """All that lies below `folder`, sorted: files, links and empty folders, by their names relative to it."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        if not folders and not files and Path(place) != folder:
            found.append(place)
        found += [os.path.join(place, name) for name in [*files, *links]]
    return sorted(os.path.relpath(name, folder) for name in found)


def refuse_strangers(folder: object, names: Iterable[str], is_ours: Callable[[str], bool], flag: str) -> None:
    """Raises InputError where one of `names`, which lie in `folder`, is not ours."""
    strange = [name for name in names if not is_ours(name)]
    if strange:
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        raise InputError(
            f"{flag}: {folder} also holds {', '.join(strange[:SHOWN])}{more}, which was not made here and would be "
            "lost; move that away, or give another folder"
        )


def begin(folder: Path, kind: str, files: list[str] | None = None) -> None:
    """Mark a folder that is being made. files: what will be in it, where that is known."""
    _write(folder, kind, files)


def finish(folder: Path, kind: str) -> None:
    """Mark a complete folder, with all that is in it."""
    _write(folder, kind, [name for name in entries(folder) if name != MARK])


def marked_files(folder: Path, kind: str) -> list[str] | None:
    """What the mark of `kind` lists; None where there is no such mark, or it lists nothing."""
    made = _read(folder)
    return made["files"] if made is not None and made["kind"] == kind else None


def carries_mark(folder: Path, kind: str) -> bool:
    made = _read(folder)
    return made is not None and made["kind"] == kind and not folder.is_symlink()


def refuse_unless_own(folder: Path, kind: str, flag: str) -> None:
    """Raises InputError unless `folder` carries the mark of `kind` and holds nothing else."""
    made = _read(folder)
    if made is None or made["kind"] != kind or folder.is_symlink():
        raise InputError(
            f"{flag}: {folder} holds something else, with no mark ({MARK}) of {kind}; only what this program made is "
            "replaced. Give another folder, or remove that one yourself"
        )
    if made["files"] is not None:
        known = {MARK, *made["files"]}
        refuse_strangers(folder, entries(folder), known.__contains__, flag)


def remove_own(folder: Path, kind: str, flag: str) -> None:
    """Remove `folder`, where it is there. Raises InputError as `refuse_unless_own` does; nothing is removed then."""
    if not os.path.lexists(folder):
        return
    refuse_unless_own(folder, kind, flag)
    made = _read(folder)
    assert made is not None
    if made["files"] is None:
        shutil.rmtree(folder)
    else:
        remove_files(folder, [*made["files"], MARK])


def remove_files(folder: Path, names: Iterable[str]) -> None:
    """Remove these files of `folder`, the folders this leaves empty, and `folder` itself if it is one of them."""
    names = list(names)
    for name in names:
        (folder / name).unlink(missing_ok=True)
    parents = {parent for name in names for parent in (folder / name).parents if folder in parent.parents}
    for place in [*sorted(parents, key=lambda place: -len(place.parts)), folder]:
        try:
            place.rmdir()
        except OSError:  # it holds what was not named, or is gone
            continue


def mark(kind: str, files: list[str] | None) -> bytes:
    """What stands in a mark."""
    return json.dumps({"made_by": "moe", "kind": kind, "files": files}).encode() + b"\n"


def _write(folder: Path, kind: str, files: list[str] | None) -> None:
    (folder / MARK).write_bytes(mark(kind, files))


def _read(folder: Path) -> dict | None:
    try:
        return read_mark((folder / MARK).read_bytes())
    except OSError:
        return None


def read_mark(content: bytes) -> dict | None:
    """`kind` and `files` of a mark; None where it is none of ours."""
    try:
        made = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(made, dict) or made.get("made_by") != "moe":
        return None
    files = made.get("files")
    if files is not None and not (isinstance(files, list) and all(_is_below(name) for name in files)):
        return None
    return {"kind": made.get("kind"), "files": files}


def _is_below(name: object) -> bool:
    """Whether a name out of a mark is that of something below the folder: the mark may have been edited."""
    return isinstance(name, str) and "\0" not in name and not os.path.isabs(name) and ".." not in name.split("/")
