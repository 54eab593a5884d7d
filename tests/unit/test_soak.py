"""benchmarks/soak.py: which looks at a run's processes count as level, on made series of a run of 50,000 steps."""

import os

import numpy as np
import pytest

from benchmarks.growth import GROWS, LEVEL, UNKNOWN
from benchmarks.soak import TRAINER, WORKER, Look, look, table

EPOCH = 2000  # steps
ALL = ("trainer, MB", "trainer, open files", "helper, MB", "helper, open files")


def looks_of(
    trainer: float = 0.0,
    worker: float = 0.0,
    one: float = 0.0,
    later: float = 0.0,
    files: float = 0.0,
    epochs: int = 25,
    every: int = 40,
) -> list[Look]:
    """At a trainer, two workers an epoch and a helper, which grow by so many MB (files: open ones) in 1,000 steps.

    Args:
        worker: every worker in its life.
        one: a single worker, of the third epoch.
        later: each worker from its birth on, as what it is forked from.
    """
    draw = np.random.default_rng(3)

    def held(mb: float, step: int, tooth: float) -> float:
        """With the sawtooth of an allocator, and noise."""
        return mb + tooth * (step % 700 < 200) + draw.normal(0, tooth / 10)

    found = []
    for epoch in range(epochs):
        born = EPOCH * epoch
        for step in range(born, born + EPOCH, every):
            done, lived = step / 1e3, (step - born) / 1e3
            found.append(Look(step, 1, TRAINER, held(600 + trainer * done, step, 3.0), int(30 + files * done)))
            found.append(Look(step, 2, "helper", 12.0, 9))
            for number in range(2):
                grows = one if (epoch, number) == (2, 1) else worker
                base = 480 if epoch else 450  # forked from a trainer that had hardly begun
                mb = held(base + grows * lived + later * born / 1e3, step, 0.2)
                found.append(Look(step, 100 + 2 * epoch + number, WORKER if lived else "python", mb, 17))
        found.append(Look(born + EPOCH, 100 + 2 * epoch, "", 0.0, 0))  # met as it ended
    found += [Look(EPOCH * epochs, 1, TRAINER, 300.0, 5)] * 3  # takes itself down
    return found


def levels(looks: list[Look]) -> dict[str, str]:
    lines, fine = table(looks, 1000)
    found = {line[2:].split(" | ")[0]: line.removesuffix(" |").split(" | ")[-1] for line in lines}
    assert fine == (set(found.values()) == {LEVEL})
    return found


def test_a_level_run_is_level_and_every_process_has_its_row() -> None:
    workers = ("loader worker, 48 processes, MB", "loader worker, 48 processes, open files")
    assert levels(looks_of()) == dict.fromkeys([*ALL, *workers], LEVEL)


@pytest.mark.parametrize(
    ("grown", "row"),
    [
        ({"trainer": 0.2}, "trainer, MB"),  # 10 MB over the run
        ({"files": 0.06}, "trainer, open files"),  # three of them
        ({"worker": 0.2}, "loader worker, 48 processes, MB"),
        ({"one": 1.0}, "loader worker, 48 processes, MB"),
        ({"later": 0.2}, "loader worker, 48 processes, MB"),
    ],
    ids=str,
)
def test_what_grows_is_found_and_nothing_else(grown: dict[str, float], row: str) -> None:
    assert {name: level for name, level in levels(looks_of(**grown)).items() if level != LEVEL} == {row: GROWS}


def test_one_worker_that_grows_is_shown_by_itself() -> None:
    lines, _ = table(looks_of(one=1.0), 1000)
    (line,) = [line for line in lines if line.startswith("| loader worker, 48 processes, MB")]
    together, steepest, later = (float(cell.split(" ± ")[0]) for cell in line.split(" | ")[4:7])
    assert abs(together) < 0.05 and abs(later) < 0.01 and steepest == pytest.approx(1.0, abs=0.2)


def test_a_run_too_short_to_say_does_not_count_as_level() -> None:
    found = levels(looks_of(epochs=1, every=100))
    assert found["trainer, MB"] == UNKNOWN and found["helper, MB"] == LEVEL
    assert found["loader worker, 2 processes, open files"] == UNKNOWN, "nothing came after them"


@pytest.mark.parametrize("missing", [TRAINER, WORKER])
def test_a_run_in_which_a_process_was_not_seen_is_not_level(missing: str) -> None:
    pids = {look.pid for look in looks_of() if look.kind == missing}
    few = {look.pid: look for look in looks_of() if look.pid in pids}
    seen = [look for look in looks_of() if look.pid not in pids]
    assert table(seen, 1000)[1] is table([*seen, *few.values()], 1000)[1] is False


def test_what_is_looked_at_is_what_the_table_is_made_of() -> None:
    looks = [look(10 * step, os.getpid(), TRAINER) for step in range(200)]
    lines, _ = table(looks, 100)
    assert [line.split(" | ")[0] for line in lines] == [f"| {TRAINER}, MB", f"| {TRAINER}, open files"]
    assert looks[0].mb > 10 and looks[0].files > 2
