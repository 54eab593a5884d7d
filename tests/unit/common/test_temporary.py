"""No room in the temporary folder."""

import errno
import tempfile

import pytest

from moe.common.errors import InputError
from moe.common.temporary import room_for
from moe.data.text.tables_of_files import FileTable
from moe.data.write.streamed_json import Packed


@pytest.mark.parametrize("make", [lambda: FileTable([]), Packed], ids=["files", "rows"])
def test_no_folder_at_all_is_one_message(monkeypatch, make):
    """With a read-only system gettempdir itself raises, in the message about it, too."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(
        tempfile, "_get_default_tempdir", lambda *given: (_ for _ in ()).throw(FileNotFoundError(2, "none"))
    )
    monkeypatch.setenv("TMPDIR", "/full")
    with pytest.raises(InputError, match=r"cannot be written to /full \(none\); make room there"):
        make()


def test_a_full_disk_names_the_temporary_folder_and_not_the_output():
    def write(*given):
        raise OSError(errno.ENOSPC, "No space left on device")

    rows = Packed()
    rows._file.close()
    rows._file = type("Full", (), {"write": write})()
    with pytest.raises(InputError, match=r"the list of what was read cannot be written to .*TMPDIR"):
        rows.add([1])
    with pytest.raises(InputError, match="any cannot be written"), room_for("any"):
        write()
