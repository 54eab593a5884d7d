"""What a dataset is known by follows what its files hold, whatever is done to them otherwise."""

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe.data.text import content
from moe.data.text.content import known_of
from moe.data.text.files import Source
from moe.data.text.sources import resolve

STEPS = st.lists(
    st.tuples(st.sampled_from(["touch", "copy", "again", "link", "edit", "size", "back"]), st.integers(0, 2)),
    min_size=1,
    max_size=8,
)


def look(root: Path, known) -> Source:
    return resolve(dataset=(str(root),), config=None, split="train", revision=None, known=known)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
@pytest.mark.parametrize("remembers", [True, False])
def test_what_is_done_to_files_changes_their_name_only_where_it_changes_their_bytes(tmp_path, remembers, steps):
    """B1: touches, copies, links, edits of a byte with the time set back; with all stat records of before, and
    without any.
    """
    patch = pytest.MonkeyPatch()
    patch.setattr(content, "SETTLED_NS", 20_000_000)  # some ticks of the file system's clock
    root, far = tmp_path / "here", tmp_path / "far"
    for folder in (root, far):
        shutil.rmtree(folder, ignore_errors=True)
    root.mkdir()
    for i in range(3):
        (root / f"{i}.txt").write_bytes(bytes([65 + i]) * 200_000 * i + b"some text")
    known: dict = {}
    for what, which in steps:
        before = look(root, known)
        if remembers:
            known |= known_of((file.kind, file.version, file.stat) for file in before.files)
        path = root / f"{which}.txt"
        held, times = path.read_bytes(), path.stat()
        if what == "touch":
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
        elif what == "copy":
            shutil.copytree(root, far, dirs_exist_ok=True)
            shutil.rmtree(root)
            os.rename(far, root)
        elif what == "again":
            path.unlink()
            path.write_bytes(held)
        elif what == "link":
            (tmp_path / "kept").mkdir(exist_ok=True)
            place = tmp_path / "kept" / str(len(os.listdir(tmp_path / "kept")))
            shutil.copyfile(path, place)
            path.unlink()
            os.symlink(place, path)
        elif what == "size":
            path.write_bytes(held + b"!")
        else:
            with open(path, "r+b") as file:
                file.write(bytes([held[0] ^ 1]))
            if what == "back":
                os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        now = look(root, known)
        changed = [a.name for a, b in zip(before.files, now.files, strict=True) if a.version != b.version]
        assert changed == ([path.name] if path.read_bytes() != held else []), what
    patch.undo()
