"""Ranks that would each train a run of their own are refused; each machine may keep its data where it likes."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from moe.common.errors import InputError
from moe.config import Config, load_config
from moe.data.read.mixture import StreamSpec
from moe.train import same_start
from moe.train.inputs import Inputs
from tests.ranks import on_ranks
from tests.tiny import tiny_config, write_config


@pytest.fixture
def config(tiny: Path, tmp_path: Path) -> Config:
    return load_config(str(write_config(tmp_path / "c.yaml", tiny_config(tiny))), [])


def start(config: Config, monkeypatch: pytest.MonkeyPatch, data: str, other_data: str, **other: Any) -> None:
    """Two ranks; rank 1 has `other` for settings, and `other_data`."""
    monkeypatch.setattr(same_start, "WORLD_SIZE", 2)

    def rank_of(rank: int) -> None:
        mine = dataclasses.replace(config, **other) if rank else config
        same_start.check_same_start(mine, Inputs(9, 0, other_data if rank else data, []))

    on_ranks(2, rank_of)


def refused(
    config: Config, monkeypatch: pytest.MonkeyPatch, said: str, data: str, other_data: str, **other: Any
) -> None:
    """As `start`; each rank must say `said`."""
    monkeypatch.setattr(same_start, "WORLD_SIZE", 2)

    def rank_of(rank: int) -> None:
        mine = dataclasses.replace(config, **other) if rank else config
        with pytest.raises(InputError) as error:
            same_start.check_same_start(mine, Inputs(9, 0, other_data if rank else data, []))
        assert said in str(error.value) and "rank 1 on" in str(error.value), str(error.value)

    on_ranks(2, rank_of)


def test_another_rate_on_one_machine_is_refused_on_all(config: Config, monkeypatch) -> None:
    """DDP sends weights once: they drifted apart, and rank 0's were saved."""
    host = os.uname().nodename
    rate = config.optimizer.lr
    said = f"optimizer.lr: {rate} on {host}, 0.5 on {host}"
    refused(config, monkeypatch, said, "d", "d", optimizer=dataclasses.replace(config.optimizer, lr=0.5))


@pytest.mark.parametrize(
    ("data", "other", "said"),
    [
        ("0123", "4567", "train_data: was data 0123, is 4567"),
        ("text a | x=1 | commit=1", "text b | x=2 | commit=2", "was x=1"),
    ],
)
def test_other_data_on_one_machine_are_refused_on_all(
    config: Config, monkeypatch, data: str, other: str, said: str
) -> None:
    """Each trained on its own: an older conversion, or the hub's newest commit where no revision is given."""
    refused(config, monkeypatch, said, data, other)


def test_other_validation_data_on_one_machine_are_refused_on_all(config: Config, monkeypatch) -> None:
    """Their losses were a mixture of two sets, or the ranks had batches of different number and waited for ever."""
    monkeypatch.setattr(same_start, "WORLD_SIZE", 2)

    def rank_of(rank: int) -> None:
        monkeypatch.setattr(same_start, "shards_fingerprint", lambda folder: f"of rank {rank}")
        inputs = Inputs(9, 0, "d", [], eval_streams={"": StreamSpec("data", None, "val")})
        with pytest.raises(InputError, match=r"validation data.all: of rank 0 on .*, of rank 1 on"):
            same_start.check_same_start(config, inputs)

    on_ranks(2, rank_of)


def test_where_a_machine_keeps_its_own_does_not_count(config: Config, monkeypatch) -> None:
    data = dataclasses.replace(config.train_data, local="/scratch/7/data")
    start(config, monkeypatch, "d", "d", train_data=data, tokenizer="/scratch/tok", num_workers=7, save_folder="x")
