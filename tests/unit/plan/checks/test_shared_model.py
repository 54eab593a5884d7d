"""A run whose ranks share the model (parallelism.fsdp2): its memory is that of a share, and a step that one process
cannot hold is left out."""

import dataclasses
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch

from moe.cli.main import main
from moe.config import Config, load_config
from moe.plan.checks import trial
from moe.plan.checks.memory import check_memory, why_not_alone
from moe.train.inputs import check_data
from tests.tiny import tiny_config, write_config

LARGE = Path(__file__).parents[4] / "yamls/30b_a3b.yaml"


def host(monkeypatch: pytest.MonkeyPatch, available: float) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: namedtuple("memory", "available")(int(available)))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 80 GB that is played, in a host of 2 TB."""
    found = namedtuple("card", "name total_memory")("a card", 80 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    host(monkeypatch, 2e12)


def large(*overrides: str) -> Config:
    return load_config(LARGE, ["device_train_microbatch_size=1", "compile=true", *overrides])


def test_memory_is_that_of_a_share(card: None) -> None:
    found = check_memory(large(), vocab_size=151936, ranks=8, launched=False)
    assert found.state == "pass" and ", of 80.00 GB; the largest microbatch that fits is " in found.text
    assert "at microbatch 1 on each of the 8 GPUs here, which share the model (computed)" in found.text
    found = check_memory(large("parallelism.replicas=2"), vocab_size=151936, ranks=64, launched=True)
    assert found.state == "pass" and "on each of 64 ranks, 32 of which share the model" in found.text


def test_a_share_that_does_not_fit_is_told_what_is_left_to_do(card: None) -> None:
    found = check_memory(large(), vocab_size=151936, ranks=2, launched=True)
    assert found.state == "warn" and " has 80.00 GB; train on more ranks, which divide the model" in found.text
    found = check_memory(large("activation_checkpointing=false"), vocab_size=151936, ranks=2, launched=True)
    assert " has 80.00 GB; set activation_checkpointing=true, then train on more ranks" in found.text
    found = check_memory(large("parallelism.fsdp2=false"), vocab_size=151936, ranks=8, launched=True)
    assert found.state == "warn" and "on each of 8 ranks (computed)" in found.text
    assert found.text.endswith("; set parallelism.fsdp2=true, which divides the model among the ranks")


def test_one_gpu_cannot_share(card: None) -> None:
    found = check_memory(large(), vocab_size=151936, ranks=1, launched=False)
    assert found.state == "warn" and "with the one GPU here (computed)" in found.text
    assert found.text.endswith(
        "; train on more ranks, which divide the model further (check=true with their launcher counts them)"
    )


def test_why_a_step_is_left_out(card: None, monkeypatch: pytest.MonkeyPatch) -> None:
    why = why_not_alone(large(), vocab_size=151936)
    assert why is not None and "a card has 80.00 GB" in why and "GB for the undivided model" in why
    assert why_not_alone(large("parallelism.fsdp2=false"), vocab_size=151936) is None, "it must fit, and is tried"
    small = load_config(LARGE.with_name("500m.yaml"), ["parallelism.fsdp2=true", "device_train_microbatch_size=1"])
    assert why_not_alone(small, vocab_size=50257) is None
    host(monkeypatch, 1e9)
    why = why_not_alone(small, vocab_size=50257)
    assert why is not None and "this machine has 1.00 GB" in why, "the weights are made there"


@pytest.fixture
def shared(tiny: Path, tmp_path: Path) -> list[str]:
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    return [str(path), f"save_folder={tmp_path / 'run'}", "parallelism.fsdp2=true", "eval_data=null"]


def test_a_step_that_one_process_cannot_hold_is_left_out_with_a_line(shared, monkeypatch, capsys) -> None:
    host(monkeypatch, 1e6)
    assert main(["check", *shared]) == 0
    out = capsys.readouterr().out
    assert (
        "warn  step           left out: one process would need " in out and "checkpoint" not in out.split("step ")[-1]
    )
    host(monkeypatch, 1e12)
    assert main(["check", *shared]) == 0
    assert "pass  step " in capsys.readouterr().out


@pytest.mark.parametrize(("divided", "state"), [("true", "warn"), ("false", "fail")])
def test_one_gpu_that_runs_out_of_memory_fails_only_a_run_that_does_not_share(
    tiny: Path, tmp_path: Path, monkeypatch, divided: str, state: str
) -> None:
    def full(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(trial, "_Trial", full)
    config = load_config(tiny / "tiny.yaml", [f"parallelism.fsdp2={divided}"])
    inputs = check_data(config, report=lambda line: None)
    (found,) = trial.try_step(config, inputs, place=tmp_path, report=lambda line: None)
    assert found.name == "step" and found.state == state and "CUDA out of memory" in found.text
    assert found.text.startswith("left out: ") == (state == "warn")
    if state == "fail":
        again = dataclasses.replace(config, activation_checkpointing=True, device_train_microbatch_size=1)
        (found,) = trial.try_step(again, inputs, place=tmp_path, report=lambda line: None)
        assert found.text.endswith("2 GiB; take a smaller model"), "no advice that is taken already"
