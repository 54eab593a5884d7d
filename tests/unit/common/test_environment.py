"""What a process finds around itself: a launcher's variables, a user without a name, a limit of open files."""

import errno
import fcntl
import os
import pwd
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from moe.common.environment import settle
from moe.common.errors import InputError
from moe.common.locks import Busy, held_by, sign, take_lock

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"RANK": "first"}, r"RANK \('first'\) must be an integer of at least 0"),
        ({"WORLD_SIZE": "0"}, r"WORLD_SIZE \('0'\) must be an integer of at least 1"),
        ({"LOCAL_RANK": "-1"}, r"LOCAL_RANK \('-1'\)"),
        ({"RANK": "1"}, r"RANK \(1\) is not below WORLD_SIZE \(1\)"),
        ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"}, r"LOCAL_RANK \(3\) is not below LOCAL_WORLD_SIZE \(2\)"),
        ({"WORLD_SIZE": "2"}, r"WORLD_SIZE \(2\) says that 1 other .* RANK, LOCAL_RANK, .*MASTER_PORT of a launcher"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT"),
        ({"MASTER_PORT": "70000"}, r"MASTER_PORT \(70000\) must be at most 65535"),
    ],
)
def test_a_launchers_variables_that_make_no_sense_are_refused_by_name(monkeypatch, variables, told: str) -> None:
    """B8: they were waited for, or ended in a traceback."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=told):
        settle()


@pytest.mark.parametrize(("more", "node"), [({"GROUP_RANK": "3"}, "3"), ({}, "2"), ({"NODE_RANK": "7"}, "7")])
def test_torchruns_number_of_the_node_is_known_by_the_name_that_composer_reads(monkeypatch, more, node: str) -> None:
    """A run under torchrun started, and its resume ended in MissingEnvironmentError: NODE_RANK."""
    ranks = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**ranks, "MASTER_ADDR": "here", "MASTER_PORT": "1", **more}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("NODE_RANK", more.get("NODE_RANK", ""))
    settle()
    assert os.environ["NODE_RANK"] == node


def test_an_empty_variable_is_an_unset_one(monkeypatch) -> None:
    """B8: RANK= was a traceback."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"):
        monkeypatch.setenv(name, " " * (name == "RANK"))
    settle()
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"} & os.environ.keys()


@pytest.mark.parametrize("variables", [{"RANK": "1"}, {"RANK": "", "WORLD_SIZE": "2"}, {"WORLD_SIZE": "two"}])
def test_each_command_speaks_whatever_was_left_in_the_environment(monkeypatch, capsys, variables) -> None:
    """B8: `RANK=1 moe check` said nothing and answered 0."""
    from moe.cli.main import main as moe
    from moe.cli.train import main as train

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    yaml = str(ROOT / "yamls/500m.yaml")
    for command in (lambda: moe(["check", yaml]), lambda: train([yaml])):
        assert command() == 2
        assert capsys.readouterr().err.count("the environment's") == 1


WAITS = """
from collections import deque
from ctypes import CDLL
from itertools import chain, repeat
from moe.train.stop import StopSignal
c, stop = CDLL(None), StopSignal()
stop.install()
# 20 s in C, and the word from within it: no handler of Python runs
waits = chain(map(c.puts, [b"waiting"]), map(c.fflush, [None]), map(c.usleep, repeat(100_000, 200)))
deque(waits, maxlen=0)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_wait_in_c(number: int) -> None:
    """B8: a rendezvous that nobody came to was ended by neither SIGTERM nor Ctrl+C."""
    process = subprocess.Popen([sys.executable, "-c", WAITS], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    sent = time.monotonic()
    assert process.wait(30) == 75 and time.monotonic() - sent < 5
    assert "before a step was taken" in process.stdout.read()


TRAINS = """
import threading, time
from collections import deque
from ctypes import CDLL
from itertools import repeat
from moe.train.stop import StopSignal
stop = StopSignal()
stop.install()
stop.training = True
threading.Timer(1.5, lambda: print(stop.received, flush=True)).start()
print("training", flush=True)
deque(map(CDLL(None).usleep, repeat(100_000, 25)), maxlen=0)  # a collective, in C: no handler of Python runs
time.sleep(1)
print(stop._interrupts, flush=True)
"""


def test_a_signal_is_acted_on_once_whether_its_handler_comes_to_run_or_not() -> None:
    """A collective that waits in C ate signals until stall_timeout; the handler, late, is no second Ctrl+C."""
    process = subprocess.Popen([sys.executable, "-c", TRAINS], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "training\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0 and out.splitlines() == [str(signal.SIGINT), "1"], out


NAMELESS = """
import getpass, os
import torch._inductor.runtime.cache_dir_utils as dirs
from moe.common.environment import settle
os.setuid(54321)  # after the imports: this interpreter may lie where nobody else reads
settle()
print(getpass.getuser(), dirs.default_cache_dir())
open(os.path.join(os.path.expanduser("~"), "written"), "w").close()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_user_without_a_name_gets_one_and_a_home_to_write_in() -> None:
    """C15: `docker run -u 1234` ended in a KeyError of getpass."""
    with pytest.raises(KeyError):
        pwd.getpwuid(54321)
    names = ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME", "TORCHINDUCTOR_CACHE_DIR")
    env = {name: value for name, value in os.environ.items() if name not in names}
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        env |= {"HOME": "/", "TMPDIR": folder}
        done = subprocess.run([sys.executable, "-c", NAMELESS], cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("uid-54321 ") and Path(folder, "moe-home-54321/written").exists()


@pytest.mark.parametrize("taken", ["nothing", "own", "a file", "a link", "another's"])
def test_a_home_in_the_temporary_folder_is_ones_own(tmp_path: Path, monkeypatch, taken: str) -> None:
    """C15: a name that can be guessed may be taken: another's folder, a link elsewhere, a file."""

    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    place = tmp_path / f"moe-home-{os.getuid()}"
    if taken == "a file":
        place.touch()
    elif taken == "a link":
        place.symlink_to(tmp_path)
    elif taken != "nothing":
        place.mkdir()
    if taken == "another's":
        if os.getuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(place, 54321, -1)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("USER", "me")
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    settle()
    home = Path(os.environ["HOME"])
    assert home.parent == tmp_path and home.is_dir() and not home.is_symlink() and home.stat().st_uid == os.getuid()
    assert (home == place) == (taken in ("nothing", "own"))


def test_the_limit_of_open_files_is_raised_or_told(monkeypatch) -> None:
    """C16: 64 open files."""
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: asked.append(limits))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 4096))
    settle()
    assert asked == [(4096, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    with pytest.raises(InputError, match=r"only 64 files may be open at once \(ulimit -Hn\)"):
        settle()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told_by_its_own_words_and_the_work_goes_on(
    tmp_path: Path, monkeypatch, number: int
) -> None:
    """B7: every OSError was another process at work, for ever. (Simulated: fcntl's errors.)"""
    from moe.train.checkpointing.run_folder import open_run_folder

    def refuses(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    said: list[str] = []
    folder = open_run_folder(str(tmp_path / "a"), run_name="a", autoresume=True, resume_from=None, report=said.append)
    folder.begin(said.append)
    assert folder.lock is not None and folder.recorded
    assert len(said) == 1 and os.strerror(number) in said[0] and "continuing" in said[0]
    assert held_by(tmp_path / "a/.lock") is None, "nobody is known to hold it"


def test_locks_are_taken_as_nfsv4_wants_them(tmp_path: Path, monkeypatch) -> None:
    """B7: there a shared lock needs a file open for reading, an exclusive one a file open for writing, or it is EBADF.
    (Simulated.)
    """
    from moe.data.write.state import open_workspace

    plain = fcntl.flock

    def as_nfs(file, operation: int) -> None:
        mode = fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE
        if mode == (os.O_WRONLY if operation & fcntl.LOCK_SH else os.O_RDONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        plain(file, operation)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    for shared in (True, False):
        with open_workspace(tmp_path / f"out-{shared}", overwrite=False).lock({}, [], shared=shared):
            with pytest.raises(Busy):
                take_lock(tmp_path / f"out-{shared}.partial/.lock", print)
            assert (held_by(tmp_path / f"out-{shared}.partial/.lock") is None) == shared
    lock = take_lock(tmp_path / "mine", print)
    sign(lock)
    with pytest.raises(Busy, match=f"pid {os.getpid()} on "):
        take_lock(tmp_path / "mine", print)


def test_only_a_held_lock_is_another_process(tmp_path: Path) -> None:
    """B7: and a lock file that its holder removed is no lock."""
    held = take_lock(tmp_path / "a", print)
    with pytest.raises(Busy, match="an unknown process"):
        take_lock(tmp_path / "a", print)
    (tmp_path / "a").unlink()
    take_lock(tmp_path / "a", print).close()
    held.close()
    take_lock(tmp_path / "b", print, shared=True)
    take_lock(tmp_path / "b", print, shared=True)
    with pytest.raises(FileNotFoundError):
        take_lock(tmp_path / "c", print, create=False)


@pytest.mark.parametrize("columns", ["0", "1"])
def test_a_terminal_of_no_width_has_eighty_columns(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    settle()
    assert os.environ["COLUMNS"] == "80"
    monkeypatch.setenv("COLUMNS", "40")
    settle()
    assert os.environ["COLUMNS"] == "40"
