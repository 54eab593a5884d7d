"""Files that were met before."""

import os

from moe.data.text.walk import Seen


def test_thousands_of_files_by_name_are_looked_at_once_each():
    """Each was compared with all before it: 16,000 took 21 seconds."""
    seen = Seen()
    looked = []
    seen.key = lambda place, key=seen.key: looked.append(place) or key(place)
    for number in range(1, 501):
        assert seen.is_new(os.stat_result((0, number, 7, 0, 0, 0, 0, 0, 0, 0)))
    assert not seen.is_new(os.stat_result((0, 250, 7, 0, 0, 0, 0, 0, 0, 0)))
    assert seen.is_new(os.stat_result((0, 250, 8, 0, 0, 0, 0, 0, 0, 0))), "on another disk"
    assert len(looked) < 2000
