"""The short version of `make chaos`: four kills."""

from pathlib import Path

from tests.chaos.kills import run


def test_row01_row02_row11_killed_in_any_way_the_same_command_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    kinds = {(1, False): ["write", "worker", "launcher"], (2, False): ["rank"]}
    done = run(tmp_path / "chaos", kinds, steps=60, seed=3, documents=200, new=False)
    assert len(done) == 4
    assert all(kill.seconds < 30 for kill in done if kill.kind == "launcher")
