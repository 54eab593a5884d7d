"""Deterministic algorithms on a GPU, asked for where a step computes and nowhere else."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moe.cli import train as command
from moe.common.errors import RunFailed
from moe.config import load_config
from moe.train import fit
from moe.train.callbacks import build
from moe.train.callbacks.console import Console
from moe.train.callbacks.fixed_order import FixedOrder
from moe.train.composer_model import MoEModel
from tests.unit.train.runs import train


@pytest.mark.parametrize("wanted", [True, False])
def test_a_step_is_computed_in_a_fixed_order_and_nothing_else_is(tiny, tmp_path, monkeypatch, wanted) -> None:
    seen: dict[str, set[bool]] = {"forward": set(), "backward": set(), "evaluation": set(), "after": set()}
    asked = torch.are_deterministic_algorithms_enabled
    plain_loss, plain_end = MoEModel.loss, Console.batch_end
    plain_eval = MoEModel.eval_forward

    has_gpu = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True))

    def loss(self, *args):
        seen["forward"].add(asked())
        found = plain_loss(self, *args)
        next(iter(found.values())).register_hook(lambda grad: seen["backward"].add(asked()))
        return found

    monkeypatch.setattr(build, "torch", has_gpu)
    monkeypatch.setattr(MoEModel, "loss", loss)
    monkeypatch.setattr(
        MoEModel, "eval_forward", lambda *a, **k: seen["evaluation"].add(asked()) or plain_eval(*a, **k)
    )
    monkeypatch.setattr(Console, "batch_end", lambda *a: seen["after"].add(asked()) or plain_end(*a))
    settings = ["max_duration=2ba", "scheduler.t_warmup=1ba", f"deterministic={wanted}"]
    assert train(tiny, tmp_path, *settings)[0] == 0
    assert seen == {"forward": {wanted}, "backward": {wanted}, "evaluation": {False}, "after": {False}}


def test_what_was_set_before_is_set_afterwards() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        order = FixedOrder()
        order.before_forward(None, None)
        assert not torch.is_deterministic_algorithms_warn_only_enabled(), "with a warning alone attention keeps its way"
        order.after_backward(None, None)
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_an_operation_that_knows_no_such_way_ends_the_run_with_the_setting(monkeypatch) -> None:
    class OneStep:
        engine = type("", (), {"close": staticmethod(lambda: None)})
        state = type("", (), {"max_duration": 1})

        def eval(self):
            torch.use_deterministic_algorithms(True)
            try:
                torch.empty(2, 2).put_(torch.tensor([0]), torch.tensor([1.0]))  # torch refuses
            finally:
                torch.use_deterministic_algorithms(False)

    monkeypatch.setattr(fit, "interrupted_by_lost_processes", lambda watchdog: torch.no_grad())
    said = "deterministic: put_ does not have a deterministic implementation; set deterministic=false"
    with pytest.raises(RunFailed, match=f"^{said}$"):
        fit._train(
            OneStep(), None, eval_first=True, scores=None, more_steps=False, fix="set activation_checkpointing=true"
        )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_step_that_does_not_fit_the_gpu_ends_the_run_with_the_fix_on_the_rank_that_met_it(
    monkeypatch, capsys, rank: int
) -> None:
    config = load_config(str(Path(__file__).parents[3] / "yamls/quick.yaml"), [])

    class OneStep:
        engine = type("", (), {"close": staticmethod(lambda: None)})
        state = type("", (), {"max_duration": 1})

        def eval(self):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore words")

    def train(config, stop):
        fit._train(
            OneStep(), None, eval_first=True, scores=None, more_steps=False, fix="set activation_checkpointing=true"
        )

    monkeypatch.setattr(fit, "interrupted_by_lost_processes", lambda watchdog: torch.no_grad())
    monkeypatch.setattr(command, "train", train)
    monkeypatch.setattr(command, "load_config", lambda *_: config)
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items():
        monkeypatch.setattr(command, name, value)
    assert command.main(["c.yaml"]) == 1
    said = "CUDA out of memory. Tried to allocate 2 GiB.; set activation_checkpointing=true, and run the same"
    assert f"rank {rank}: {said}" in capsys.readouterr().err


def test_cublas_is_told_before_the_first_product_of_a_run() -> None:
    """torch 2.7 looks once, at the first; trials and evaluations come before the first step."""
    check = "import os, moe.train.fit; print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    env = {name: value for name, value in os.environ.items() if name != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", check], env=env, capture_output=True, text=True)
    assert done.stdout == ":4096:8\n", done.stderr
