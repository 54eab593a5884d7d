"""A start says at once that it is there."""

import os
import subprocess
import sys

import pytest

from moe.run import main


def test_the_first_line_comes_before_anything_is_read_or_imported(capsys, monkeypatch) -> None:
    def fails(*args: object) -> None:
        raise KeyError("the config is read")

    monkeypatch.setattr("moe.run.load_config", fails)
    with pytest.raises(KeyError, match="the config is read"):
        main(["c.yaml"])
    assert capsys.readouterr().out == "moe: reading c.yaml ...\n"


def test_only_rank_0_says_the_first_line(capsys, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["nowhere.yaml"]) == 2
    assert "reading" not in capsys.readouterr().out


def test_what_stands_before_the_first_line_is_light() -> None:
    code = "import sys, moe.run; sys.exit(bool({'torch', 'composer', 'numpy', 'streaming'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ)).returncode == 0
