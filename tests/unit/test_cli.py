import pytest

from moe.cli.main import COMMANDS, main
from moe.common.errors import RunFailed, Unreachable


@pytest.mark.parametrize("command", COMMANDS)
def test_help_tells_what_the_command_does_and_not_how_it_is_written(
    command: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"usage: moe {command} ")
    assert "Decisions:" not in shown and " - " not in shown and "Raises:" not in shown


def test_the_version_is_told(capsys: pytest.CaptureFixture) -> None:
    """D9: of moe and of what trains."""
    import torch

    import moe

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    shown = capsys.readouterr().out
    assert end.value.code == 0 and shown.startswith(f"moe {moe.__version__} (Python 3.") and shown.count("\n") == 1
    assert f"torch {torch.__version__.split('+')[0]}" in shown


def test_train_gets_all_words_and_ends_the_process_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr("moe.cli.train.main", lambda argv: seen.append(argv) or 75)
    monkeypatch.setattr("moe.cli.train.end", lambda code: seen.append([str(code)]))
    main(["train", "c.yaml", "optimizer.lr=5e-4", "run_name=-1"])
    assert seen == [["c.yaml", "optimizer.lr=5e-4", "run_name=-1"], ["75"]]


def test_a_command_that_is_not_there_is_told_with_the_nearest(capsys: pytest.CaptureFixture) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: there is no command moe trian; did you mean moe train?\n"
    assert main(["x"]) == 2
    assert "there are: demo, new, " in capsys.readouterr().err


def test_only_what_must_be_given_is_called_required(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["estimate"])
    assert capsys.readouterr().err.endswith("the following arguments are required: config\n")


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError(28, "No space left on device")])
def test_a_pipe_or_disk_that_fails_inside_of_a_training_is_not_the_reader_of_its_output(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a command shows something, `| head` that has read enough is exit code 0."""

    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("moe.cli.train.main", fail)
    with pytest.raises(type(error)):
        main(["train", "c.yaml"])


@pytest.mark.parametrize(("program", "recorded"), [("/home/me/.venv/bin/moe", "moe"), ("train.py", "train.py")])
def test_the_recorded_command_has_no_folder_of_the_machine(
    program: str, recorded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe.train.checkpointing.changes import command

    monkeypatch.setattr("sys.argv", [program, "train", "c.yaml", "run_name=a b"])
    assert command() == f"{recorded} train c.yaml 'run_name=a b'"


@pytest.mark.parametrize(("error", "code"), [(RunFailed("it broke"), 1), (Unreachable("it is away"), 75)])
def test_what_ends_the_work_of_any_command_is_one_message(monkeypatch, capsys, error: RunFailed, code: int) -> None:
    def run(args):
        raise error

    monkeypatch.setattr("moe.cli.diff.run", run)
    assert main(["diff", "a", "b"]) == code
    assert capsys.readouterr().err == f"error: {error}\n"
