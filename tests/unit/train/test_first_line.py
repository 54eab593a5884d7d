"""A start says at once that it is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe.cli.train import main
from moe.model import Transformer
from moe.train.compiling import COMPILED
from tests.unit.train.runs import rows, train


def test_the_first_line_comes_before_anything_is_read_or_imported(capsys, monkeypatch) -> None:
    def fails(*args: object) -> None:
        raise KeyError("the config is read")

    monkeypatch.setattr("moe.cli.train.load_config", fails)
    with pytest.raises(KeyError, match="the config is read"):
        main(["c.yaml"])
    assert capsys.readouterr().out == "moe: reading c.yaml ...\n"


def test_only_rank_0_says_the_first_line(capsys, monkeypatch) -> None:
    launcher = {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": 29500}
    for name, value in {**launcher, "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, str(value))
    assert main(["nowhere.yaml"]) == 2
    assert "reading" not in capsys.readouterr().out


def test_what_stands_before_the_first_line_is_light() -> None:
    code = "import sys, moe.cli.train; sys.exit(bool({'torch', 'composer', 'numpy', 'streaming'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 0


def test_the_console_tells_the_first_step_of_each_start_and_the_logs_that_of_the_run(
    tiny: Path, tmp_path: Path, capsys
) -> None:
    """D7: the loss that a run begins with is in the logs; a resume adds no row."""
    settings = ["scheduler.t_warmup=1ba", "eval_data=null", "log_interval=3ba", "save_interval=4ba"]

    def steps() -> list[str]:
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
        assert all("loss " in line for line in lines) and "first step" in lines[0] and "tok/s" not in lines[0]
        assert all("tok/s" in line and "first step" not in line for line in lines[1:])
        return [line.split("/")[0] for line in lines]

    assert train(tiny, tmp_path, *settings, "max_duration=4ba")[0] == 0
    assert steps() == ["step 1", "step 3", "step 4"]
    code, folder = train(tiny, tmp_path, *settings, "max_duration=8ba")
    assert code == 0 and steps() == ["step 5", "step 6", "step 8"]
    assert list(rows(folder, "train/loss")) == list(rows(folder, "train/perplexity")) == [1, 3, 4, 6, 8]


@pytest.mark.parametrize("setting", ["true", "false"])
def test_a_compiled_run_says_so_before_its_first_step(tiny: Path, tmp_path: Path, capsys, monkeypatch, setting) -> None:
    monkeypatch.setattr(Transformer, "compile_blocks", lambda self: setattr(self, "compiled", True))
    monkeypatch.setattr("moe.train.composer_model.check_compiler", lambda setting: None)
    assert train(tiny, tmp_path, f"compile={setting}", "scheduler.t_warmup=1ba", "max_duration=2ba")[0] == 0
    lines = capsys.readouterr().out.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("eval at step 0"))
    assert lines[:first].count(COMPILED) == lines.count(COMPILED) == (setting == "true")


def test_compile_without_a_compiler_is_one_message_before_the_folder(
    tiny: Path, tmp_path: Path, capsys, no_compiler: None
) -> None:
    code, folder = train(tiny, tmp_path, "compile=true")
    assert code == 2 and not folder.exists()
    err = capsys.readouterr().err
    assert err.strip().startswith("error: compile (true) needs a C++ compiler") and "Traceback" not in err


def test_the_end_runs_exit_handlers_and_flushes_and_does_not_take_the_interpreter_apart() -> None:
    code = """
import atexit
from moe.train.run import end
class Kept:
    def __del__(self):
        print("taken apart")
kept = Kept()
atexit.register(print, "handler")
print("last words")
end(75)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (75, "last words\nhandler\n", "")


def test_an_exit_handler_that_hangs_does_not_hang_the_run() -> None:
    code = """
import atexit, threading
import moe.train.run
moe.train.run.LONGEST_END = 0.2
held = threading.Lock()
held.acquire()
atexit.register(held.acquire)
moe.train.run.end(75)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 75
