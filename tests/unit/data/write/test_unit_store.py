"""Done units in a folder, read by several threads."""

import errno
import io
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from moe.data.write import unit_store


def test_headers_of_arrays_are_parsed_one_at_a_time_and_files_read_at_once(monkeypatch):
    """CPython issue 106905: "AST constructor recursion depth mismatch" now and then."""
    content, load = io.BytesIO(), np.load
    np.save(content, np.arange(5))
    reading, parsing, most = [], [], {"reading": 0, "parsing": 0}

    def counted(name, active, call):
        def run(*given):
            active.append(given)
            most[name] = max(most[name], len(active))
            time.sleep(0.01)
            active.pop()
            return call(*given)

        return run

    folder = SimpleNamespace(read=counted("reading", reading, lambda name: content.getvalue()))
    monkeypatch.setattr(unit_store.np, "load", counted("parsing", parsing, load))
    store = unit_store.UnitStore(folder)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(store._array, ["a.npy"] * 16))
    assert all((array == np.arange(5)).all() for array in found)
    assert most["parsing"] == 1 and most["reading"] > 1


@pytest.mark.parametrize("array", [np.arange(5, dtype=np.uint64), np.empty(0, np.uint32)])
def test_an_array_is_saved_as_numpy_saves_it(tmp_path, array):
    unit_store.save_array(tmp_path / "ours.npy", array)
    np.save(tmp_path / "theirs.npy", array)
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


@pytest.mark.parametrize("limit", [50, 5000])
def test_an_array_that_cannot_be_saved_says_why(tmp_path, limit):
    """numpy says how many values it wrote, and no number of an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            unit_store.save_array(tmp_path / "a.npy", np.arange(3000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
