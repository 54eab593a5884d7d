"""A forked start shows what a new process shows."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import starts

SHOW = """
import json, os, random, signal, sys, threading, warnings
import numpy, torch
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "env": dict(os.environ), "main": __name__,
    "parent": os.getppid(), "session": os.getsid(0) == os.getpid(), "group": os.getpgid(0) == os.getpid(),
    "files": sorted(os.listdir("/proc/self/fd"))[:4], "term": str(signal.getsignal(signal.SIGTERM)),
    "int": str(signal.getsignal(signal.SIGINT)), "pipe": str(signal.getsignal(signal.SIGPIPE)),
    "threads": threading.active_count(), "torch_threads": torch.get_num_threads(), "seed": torch.initial_seed(),
    "encoding": [sys.stdout.encoding, sys.stderr.errors, sys.stdin.encoding],
    "buffered": [sys.stdout.write_through, sys.stdout.line_buffering, sys.stderr.line_buffering],
    "random": random.random(), "numpy": numpy.random.rand(), "ours": [m for m in sys.modules if m[:3] == "moe"],
    "stdin": sys.stdin.read(), "mask": len(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
}))
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("starts") / "show.py"
    path.write_text(SHOW)
    return path


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_forked_start_finds_what_a_new_process_finds(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unbuffered: str
) -> None:
    env = {**starts.FIRST, "CHAOS_X": "1", "PYTHONPATH": str(tmp_path), "PYTHONUNBUFFERED": unbuffered}
    found = []
    for new in (False, True):
        settings = {"cwd": tmp_path, "env": env, "text": True, "start_new_session": True, "stdin": subprocess.PIPE}
        settings |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = starts.popen([sys.executable, str(script), "a", "--b"], new=new, **settings)
        assert isinstance(process, starts._Forked) is not new
        out, err = process.communicate("x\n", timeout=60)
        assert process.returncode == 0 and not err, err
        found.append(json.loads(out))
        own = found[-1]
        assert own["parent"] == os.getpid()
    for own in found:
        del own["random"], own["numpy"], own["seed"]
    environments = [own.pop("env") for own in found]
    assert found[0] == found[1]
    assert {**environments[0], **environments[1]} == environments[0]
    assert all(name.startswith(("KMP_", "TORCHINDUCTOR_")) for name in environments[0].keys() - environments[1].keys())


def test_forked_starts_draw_their_own_numbers(script: Path) -> None:
    drawn = [json.loads(starts.run([sys.executable, str(script)], text=True, timeout=60).stdout) for _ in range(2)]
    assert all(drawn[0][name] != drawn[1][name] for name in ("random", "numpy", "seed"))


@pytest.mark.parametrize(
    ("code", "expected", "says"),
    [
        ("", 0, ""),
        ("raise SystemExit(75)", 75, ""),
        ("raise SystemExit('no')", 1, "no"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os._exit(3)", 3, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import atexit; atexit.register(print, 'last', file=__import__('sys').stderr)", 0, "last"),
    ],
)
def test_its_end_is_seen(code: str, expected: int, says: str) -> None:
    done = starts.run([sys.executable, "-c", code], text=True, timeout=60)
    assert done.returncode == expected and says in done.stderr


def test_what_differs_in_a_variable_that_is_read_early_or_in_flags_is_a_new_process(script: Path) -> None:
    command = [sys.executable, str(script)]
    assert starts._can_fork(command, starts.FIRST)
    assert not starts._can_fork(command, {**starts.FIRST, "OMP_NUM_THREADS": "7"})
    assert not starts._can_fork(command, {**starts.FIRST, "PYTHONHASHSEED": "1"})
    assert not starts._can_fork(command, {k: v for k, v in starts.FIRST.items() if k != "PATH"})
    assert not starts._can_fork([sys.executable, "-O", str(script)], None)
    assert not starts._can_fork(["bash", "-c", "true"], None)


def test_ranks_are_children_of_a_forked_launcher(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import json, os, sys\nprint(json.dumps([os.environ['RANK'], os.getppid(), sys.argv[1:]]), flush=True)\n"
        "sys.exit(int(os.environ['RANK']) * 5)"
    )
    composer = str(Path(sys.executable).with_name("composer"))
    process = starts.popen([composer, "-n", "2", str(script), "x"], stdout=subprocess.PIPE, text=True, env=starts.FIRST)
    assert isinstance(process, starts._Forked)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 5
    ranks = [json.loads(line) for line in out.splitlines() if line.startswith("[")]
    assert sorted(ranks) == [["0", process.pid, ["x"]], ["1", process.pid, ["x"]]]
