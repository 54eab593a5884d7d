"""Whole starts in odd surroundings: a launcher's variables, a user without a name, few files, outputs in inputs."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from moe.cli.train import main
from tests.tiny import tiny_config, write_config, write_text
from tests.unit.train.runs import rows

ROOT = Path(__file__).resolve().parents[3]
BRIEF = {"max_duration": "2ba", "scheduler": {"name": "constant_with_warmup", "t_warmup": "1ba"}, "eval_data": None}


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def test_a_start_that_waits_for_another_rank_says_so_and_ends_at_a_signal(tiny: Path, tmp_path: Path) -> None:
    """B8: WORLD_SIZE=2 with all that a launcher sets: half an hour of silence that no signal ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    config = write_config(tmp_path / "c.yaml", tiny_config(tiny, save_folder=str(tmp_path / "run"), **BRIEF))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), str(config)],
        env=environment(**ranks, MASTER_ADDR="127.0.0.1", MASTER_PORT=port),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    try:
        wanted = f"waiting for 1 other rank at 127.0.0.1:{port} ...\n"
        assert wanted in iter(process.stdout.readline, ""), process.stderr.read()
        time.sleep(0.5)  # it is in C now
        process.send_signal(signal.SIGTERM)
        sent = time.monotonic()
        assert process.wait(60) == 75 and time.monotonic() - sent < 10
        assert "stopped by SIGTERM before a step was taken" in process.stdout.read()
        assert "Traceback" not in process.stderr.read() and not (tmp_path / "run").exists()
    finally:
        process.kill()


NAMELESS = """
import atexit, os, pwd, resource, runpy, sys

def unknown(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")

pwd.getpwuid = unknown
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
atexit.register(lambda: print("files at the end:", resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_user_without_a_name_and_64_open_files_train(tiny: Path, tmp_path: Path) -> None:
    """C15, C16: `docker run -u 1234` (simulated: the database knows nobody) and `ulimit -n 64`, in a whole run."""
    names = ("LOGNAME", "USER", "LNAME", "USERNAME", "TORCHINDUCTOR_CACHE_DIR")
    nameless = {name: value for name, value in environment().items() if name not in names}
    nameless |= {"HOME": str(tmp_path / "no-such-home"), "TMPDIR": str(tmp_path)}
    settings = {**BRIEF, "save_folder": str(tmp_path / "run"), "num_workers": 2, "loggers": {"tensorboard": {}}}
    config = write_config(tmp_path / "c.yaml", tiny_config(tiny, **settings))
    command = [sys.executable, "-c", NAMELESS, str(ROOT / "train.py"), str(config)]
    done = subprocess.run(command, env=nameless, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert json.loads((tmp_path / "run/run.json").read_text())["state"] == "done"
    assert (tmp_path / f"moe-home-{os.getuid()}").is_dir(), "a home to write in"
    assert f"files at the end: {resource.getrlimit(resource.RLIMIT_NOFILE)[1]}\n" in done.stdout


def test_too_few_open_files_are_refused_before_anything(tiny: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """C16: a hard limit of 64, in whole starts of the trainer and of a command."""
    from moe.cli.main import main as moe

    monkeypatch.setattr(resource, "getrlimit", lambda which: (64, 64))
    config = str(write_config(tmp_path / "c.yaml", tiny_config(tiny, save_folder=str(tmp_path / "run"), **BRIEF)))
    for start in (lambda: main([config]), lambda: moe(["check", config])):
        assert start() == 2
        assert capsys.readouterr().err.count("only 64 files may be open at once (ulimit -Hn), 128 are needed") == 1
    assert not (tmp_path / "run").exists()


def test_a_run_whose_folder_lies_in_its_own_text_resumes(tiny: Path, tmp_path: Path, capsys) -> None:
    """B4: its logs became text of the dataset, which was another one then: it never resumed."""
    (tmp_path / "text").mkdir()
    text = write_text(tmp_path / "text/a.jsonl", documents=60).parent
    data = {"train_data": {"text": {"dataset": str(text), "val_fraction": 0.1, "lanes": 4}}}

    def start(folder: Path, steps: int, code: int = 0) -> Path:
        settings = {**BRIEF, **data, "max_duration": f"{steps}ba", "save_folder": str(folder)}
        assert main([str(write_config(tmp_path / "c.yaml", tiny_config(tiny, **settings)))]) == code
        return folder

    outside = start(tmp_path / "outside", 6)
    start(text / "runs/one", 3)
    shutil.copytree(outside, text / "runs/other")  # the logs of others are no text either
    capsys.readouterr()
    inside = start(text / "runs/one", 6)
    out = capsys.readouterr().out
    assert "resumed from step 3" in out and f"{text}: 1 files, " in out
    assert rows(inside, "train/loss") == rows(outside, "train/loss")
    start(text, 3, code=2)
    assert "Traceback" not in (err := capsys.readouterr().err) and err.count("error: ") == 1 and str(text) in err
    assert sorted(path.name for path in text.iterdir()) == ["a.jsonl", "runs"], "what is refused has changed nothing"
