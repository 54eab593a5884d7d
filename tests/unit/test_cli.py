import pytest

from moe.cli.main import COMMANDS, main


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
