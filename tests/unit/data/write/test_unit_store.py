"""Done units in a folder, read by several threads."""

import io
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np

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
