"""Statistics over units, without holding every document's length."""

import numpy as np
import pytest

from moe.data.write.gather import add_lengths, length_statistics


@pytest.mark.parametrize("count", [1, 2, 99, 101, 1000])
def test_lengths_counted_unit_by_unit_give_the_statistics_of_all_documents(count):
    lengths = np.random.default_rng(count).integers(1, 200, count).astype(np.uint32)
    counts = np.empty((0, 2), np.int64)
    for unit in np.array_split(lengths, 3):
        counts = add_lengths(counts, unit)
    p50, p99 = np.percentile(lengths, [50, 99], method="lower")
    expected = {"mean": round(float(lengths.mean()), 2), "p50": p50, "p99": p99, "max": lengths.max()}
    assert length_statistics(counts) == expected
    assert len(counts) == len(set(lengths.tolist()))
