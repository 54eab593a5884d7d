import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from streaming.base.constant import SHM_TO_CLEAN
from streaming.base.shared.prefix import _pack_locals, _unpack_locals

from moe.common.errors import InputError
from moe.data import clean_stale_shared_memory
from moe.data.read.shared_memory import SHM, folders_of, refuse_little
from tests.starts import popen
from tests.unit.data.read.loaders import train_loader

SCRIPT = """
import sys, time
from moe.data import StreamSpec, build_train_loader
loader = build_train_loader({"": StreamSpec(sys.argv[1], None, "train")}, seq_len=16, eos_id=0, vocab_size=300,
                            document_mask=True, device_batch_size=8, seed=17, num_workers=0)
next(iter(loader))
print("READY", flush=True)
time.sleep(300)
"""
pytestmark = pytest.mark.skipif(not SHM.is_dir(), reason="this system has no /dev/shm")


def segments_over(folder: Path) -> list[str]:
    return [p.name for p in SHM.glob("[0-9]*_locals") if str(folder / "train").encode() in p.read_bytes()]


def start(folder: Path) -> subprocess.Popen:
    # a session of its own, tracker included: kill -9 of a node leaves nobody to clean up
    process = popen([sys.executable, "-c", SCRIPT, str(folder)], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None and process.stdout.readline() == b"READY\n"
    return process


def end(process: subprocess.Popen) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_only_the_dead_runs_segments_are_removed(token_folder, tmp_path):
    folder = str(token_folder / "train")
    dead, alive = start(token_folder), start(token_folder)
    try:
        first, second = sorted(segments_over(token_folder))
        end(dead)
        assert clean_stale_shared_memory([str(tmp_path / "elsewhere")]) == []
        removed = clean_stale_shared_memory([folder])
        assert first in removed and second not in removed
        assert all(name.startswith(first[:6]) for name in removed)
        assert segments_over(token_folder) == [second]
    finally:
        end(alive)
    assert second in clean_stale_shared_memory([folder])
    assert segments_over(token_folder) == []


def test_folders_of_a_closed_dataset_are_still_read():
    content = _pack_locals(["/data/a/train", "/data/b"], 12)
    assert folders_of(content) == folders_of(b"\0\0\0\0" + content[4:]) == ["/data/a/train", "/data/b"]


UNREADABLE = [b"Traceback (most recent call last)", b"\x01\0\0", b"\xff\0\0\0" + b"\xfe" * 80]


@pytest.mark.parametrize("content", UNREADABLE, ids=["text", "short", "no UTF-8"])
def test_a_segment_that_no_run_can_read_is_removed(monkeypatch, tmp_path, content):
    """H5: else all starts on the machine end with Streaming's traceback, until somebody removes it by hand."""
    monkeypatch.setattr("moe.data.read.shared_memory.SHM", tmp_path)
    (tmp_path / "999997_locals").write_bytes(content)
    (tmp_path / "999998_locals").write_bytes(_pack_locals(["/data/b"], 999998))
    with pytest.raises(ValueError):
        _unpack_locals(content)
    assert clean_stale_shared_memory(["/data/a"]) == ["999997_locals"]


def test_an_empty_segment_is_removed_with_its_number_and_others_are_not(monkeypatch, tmp_path):
    """A run that was killed as it made its first segment: "cannot mmap an empty file" for all that came after."""
    monkeypatch.setattr("moe.data.read.shared_memory.SHM", tmp_path)
    for name, content in (("999995_barrier", b""), ("999996_barrier", b"content"), ("something_else", b"")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "999997_locals").write_bytes(_pack_locals(["/data/another"], 999997))
    (tmp_path / "999997_barrier").write_bytes(b"")
    assert clean_stale_shared_memory(["/data/a"]) == ["999995_barrier", "999997_barrier", "999997_locals"]


def test_other_datasets_of_the_machine_are_not_kept_open(token_folder):
    """H4: Streaming keeps six files for each that it meets; a limit on open files is a run's."""
    places = (SHM, Path(tempfile.gettempdir()))  # a number whose lock is there is passed over
    number = next(n for n in range(10**6) if not any(list(place.glob(f"{n:06}_*")) for place in places))
    others = [SHM / f"{number:06}_{name}" for name in SHM_TO_CLEAN]
    try:
        for other in others:
            other.write_bytes(_pack_locals(["/another/dataset"], number))
        loader = train_loader(token_folder)
        links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        opened = {Path(os.readlink(link)) for link in links if os.path.islink(link)}
        assert not opened & {*others}
        assert loader.dataset._shm_prefix_int > number, "they were looked at"
    finally:
        for other in others:
            other.unlink(missing_ok=True)


def test_too_little_room_is_refused_with_the_keys_that_need_less(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10 << 20))
    refuse_little(1 << 15, num_workers=8, converted=True)  # 0.5 MB, and 17 batches of 0.5 MB
    with pytest.raises(InputError, match=r"has 10\.5 MB free, about 18\.4 MB are needed; .*lower num_workers \(8\)"):
        refuse_little(1 << 16, num_workers=8, converted=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1 << 18))
    with pytest.raises(InputError, match=r"mount more \(docker run --shm-size=1g\)$"):
        refuse_little(1 << 16, num_workers=0, converted=True)
    refuse_little(1 << 16, num_workers=0, converted=False)  # text alone, read in the trainer itself
