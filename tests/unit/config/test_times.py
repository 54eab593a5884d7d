import pytest

from moe.config import Every, Time, parse_time


def test_tokens_and_batches_are_read_and_written() -> None:
    assert parse_time("10_000tok") == Time(10_000, "tok") and str(parse_time("5ba")) == "5ba"


@pytest.mark.parametrize("text", ["500", "-1ba", "1ep", "1.5tok", "", "tok", "5 ba x"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_time(text)
    with pytest.raises(ValueError, match="must be above 0"):
        parse_time("0ba")


def test_steps_cover_the_tokens() -> None:
    assert Time(1000, "tok").to_steps(300) == 4
    assert Time(900, "tok").to_steps(300) == 3
    assert Time(7, "ba").to_steps(300) == 7


def test_an_interval_in_tokens_is_due_when_a_multiple_is_reached() -> None:
    every = Every(Time(1000, "tok"), tokens_per_step=300, total_steps=12)
    assert [step for step in range(1, 13) if every.due(step)] == [4, 7, 10, 12]


def test_an_interval_in_batches_is_due_at_multiples_and_at_the_last_step() -> None:
    every = Every(Time(5, "ba"), tokens_per_step=300, total_steps=12)
    assert [step for step in range(1, 13) if every.due(step)] == [5, 10, 12]


@pytest.mark.parametrize("interval", ["1ba", "3ba", "7ba", "100ba", "5tok", "8tok", "20tok", "64tok", "10000tok"])
@pytest.mark.parametrize("total", [1, 6, 7, 21])
def test_how_often_something_is_due_is_counted_without_walking_there(interval: str, total: int) -> None:
    every = Every(parse_time(interval), tokens_per_step=8, total_steps=total)
    assert every.times == sum(every.due(step) for step in range(1, total + 1))
