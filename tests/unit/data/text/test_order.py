"""The order in which documents go out."""

from dataclasses import replace

import numpy as np
import pytest

from moe.data.text.files import SourceFile, Unit, key_of
from moe.data.text.order import shuffled_order


@pytest.mark.parametrize("number", [1 << 20, (1 << 20) + 3, 5_000_000])
def test_a_dataset_may_have_more_than_a_million_files(number):
    """OverflowError as a traceback from the 1,048,577th file on: its key has more than 64 bits."""
    unit = Unit(number, SourceFile("a", "", "txt", 9, ""), 4, 9, 5)
    order = shuffled_order(0, 1000, seed=17, unit=unit.key)
    assert sorted(order.tolist()) == list(range(1000))
    assert key_of(unit.name) == unit.key, "its name stays its own"
    following = replace(unit, file_index=number + 1)
    assert (order != shuffled_order(0, 1000, seed=17, unit=following.key)).any()


def test_the_order_of_keys_that_fit_is_as_ever():
    assert shuffled_order(5, 8, seed=17, unit=3 << 44 | 9).tolist() == [6, 1, 7, 4, 3, 0, 2, 5]
    assert shuffled_order(0, 8, seed=0, unit=np.iinfo(np.uint64).max).tolist() == [0, 2, 1, 4, 6, 3, 7, 5]
