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
