"""FSDP2 in two gloo ranks, against the same model whole on each. New processes import this file: it is light."""

import json
import math
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from moe.model import Transformer
from moe.train.distributed import sharding
from moe.train.distributed.sharding import padded_experts, shard_transformer
from tests.ranks import on_ranks
from tests.tiny import EVERY_OPTION

pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="older torch is refused: moe.train.distributed.sharding"
)

SHAPE = {
    "vocab_size": 96,
    "eos_id": 0,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 1,
    "n_experts": 4,
    "top_k": 2,
    "expert_hidden": 24,
}


EVERY = {**EVERY_OPTION, "balance": "sign"}


def transformer(**changes):
    torch.manual_seed(0)
    model = Transformer(**{**SHAPE, **changes})
    for router in model.routers:
        if router.bias_E is not None:
            router.bias_E.copy_(torch.tensor([0.1, -0.1, 0.2, -0.2]))
    return model


def sharded(*, compiled=False, precision="fp32", **changes):
    model = transformer(**changes)
    if compiled:
        model.compile_blocks(backend="aot_eager")
    shard_transformer(model, world_size=2, on_gpu=False, precision=precision)
    return model


def batch(rank, step=0):
    g = torch.Generator().manual_seed(10 * step + rank)
    return torch.randint(1, SHAPE["vocab_size"], (2, 16), generator=g)


@pytest.mark.parametrize(
    ("ranks", "replicas", "hidden", "along"),
    [(2, 1, 24, (1, 1)), (3, 1, 24, (1, 2)), (3, 1, 25, (0, 0)), (4, 2, 24, (1, 1))],
)
def test_a_model_that_is_made_by_share_has_the_weights_of_one_that_is_made_alone(
    ranks, replicas, hidden, along
) -> None:
    """Rows that do not divide evenly; experts by number, by rows and by columns: 2 ranks have 3 of them, 3 ranks 4."""

    def work(rank):
        changes = {
            **SHAPE,
            **EVERY,
            "n_experts": 7 - ranks if ranks == 3 else 3,
            "vocab_size": 97,
            "expert_hidden": hidden,
        }
        whole = Transformer(**changes, seed=5)
        with torch.device("meta"):
            model = Transformer(**changes, seed=5)
        shard_transformer(model, world_size=ranks, on_gpu=False, replicas=replicas, seed=5)
        moe = model.blocks[-1].moe
        assert (moe.w13.placements[-1].dim, moe.w2.placements[-1].dim) == along
        found, expected = model.state_dict(), whole.state_dict()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            own = found[name].full_tensor() if isinstance(found[name], DTensor) else found[name]
            assert torch.equal(own, value), name

    on_ranks(ranks, work)


def loss_of(model, tokens, autocast=False):
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        parts = model(tokens, tokens)
        return parts.loss / 30 + parts.routers.score_E.square().sum() / 1e4 + parts.routers.z.sum() / 1e3


def gradients(rank):
    for precision, tolerance in (("fp32", 1e-6), ("amp_bf16", 1e-2)):
        autocast = precision != "fp32"
        for how in ({}, {"activation_checkpointing": True}, {"compiled": True}, EVERY):
            model, whole = (
                sharded(**how, precision=precision),
                transformer(**{k: v for k, v in how.items() if k in EVERY}),
            )
            for step in range(2):  # the second adds to the first, as microbatches do
                loss_of(model, batch(rank, step), autocast).backward()
                losses = [loss_of(whole, batch(other, step), autocast) / 2 for other in range(2)]
                sum(losses).backward()
            for (name, p), (_, q) in zip(whole.named_parameters(), model.named_parameters(), strict=True):
                assert isinstance(q, DTensor) and q.dtype == q.grad.dtype == torch.float32
                assert q.to_local().shape[0] == p.shape[0] // 2, f"{name} is split over dim 0: experts stay whole"
                torch.testing.assert_close(q.grad.full_tensor(), p.grad, atol=tolerance * p.grad.abs().max(), rtol=0)


def test_what_amp_casts_is_gathered_cast_and_no_bit_of_losses_weights_or_momenta_changes() -> None:
    """2 and 4 ranks, FSDP2 and HSDP. And of 6 experts 4 ranks have rows each, and train them as one rank does."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.train.distributed.amp_bits"],
        cwd=Path(__file__).resolve().parents[4], capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 4
    alone, along, losses, weights = lines.pop()
    assert alone == "alone" and along == [1, 1] and losses < 1e-5 and weights < 1e-5
    for kind, same, tensors, exact, gathered in lines:
        assert same == int(kind.split(" ranks")[0].split()[-1]) and tensors > 100, f"{kind}: on each rank, all it keeps"
        assert exact == ["torch.float32"] and gathered == ["torch.bfloat16", "torch.float32"], "experts, router"


def test_an_assertion_that_fails_in_one_rank_fails_the_test() -> None:
    """The tests below assert in their ranks alone."""

    def work(rank):
        assert rank == 0, "rank 1 differs"

    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="rank 1 differs"):
        on_ranks(2, work)


def kept_weights(rank):
    for precision, dtype in (("fp32", torch.float32), ("amp_bf16", torch.bfloat16)):
        model, kept = sharded(precision=precision), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            loss = loss_of(model, batch(rank), autocast=precision != "fp32")
        experts = [t for t in kept if t.shape in {(4, 48, 32), (4, 32, 24)}]
        assert len(experts) >= 4, "two layers' w13 and w2 are saved for the backward pass"
        assert {t.dtype for t in experts} == {dtype}
        assert all(t.untyped_storage().size() == 0 for t in experts), "and lie nowhere until then, nor does a cast"
        loss.backward()


def both(rank):
    gradients(rank)
    kept_weights(rank)


def test_gradients_are_the_mean_over_the_ranks_and_no_gathered_weights_stay_in_memory() -> None:
    """Gradients in fp32 and bf16; plain, with activation checkpointing, compiled, with every option of the model. New
    processes cost seconds: one start serves both.
    """
    on_ranks(2, both, fork=False)


def test_the_norm_is_that_of_all_shards_and_one_ranks_infinity_skips_the_step_on_all() -> None:
    from moe.train.callbacks.gradients import GradientClipping

    def work(rank):
        model, whole, mesh = sharded(), transformer(), init_device_mesh("cpu", (2,))
        callback, logged = GradientClipping(0.05, max_skipped_steps=3), {}
        logger = types.SimpleNamespace(log_metrics=logged.update)

        def clip(net):
            state = types.SimpleNamespace(model=net, timestamp=types.SimpleNamespace(batch=0))
            callback.after_train_batch(state, logger)
            return logged["optim/grad_norm"]

        for p, q in zip(whole.parameters(), model.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = distribute_tensor(p.grad.clone(), mesh, [Shard(0)])
        assert clip(model) == pytest.approx(clip(whole), rel=1e-5)
        for p, q in zip(whole.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(q.grad.full_tensor(), p.grad, atol=1e-7, rtol=1e-4)
        if rank:
            next(model.parameters()).grad.to_local()[0, 0] = math.inf
        assert not math.isfinite(clip(model)) and callback.skipped == 1
        assert all(p.grad is None for p in model.parameters())

    on_ranks(2, work)


def test_a_save_that_only_rank_0_knows_to_have_failed_is_repeated_by_all_who_must_gather() -> None:
    from moe.train.callbacks.saver import CheckpointSaver

    def work(rank):
        saver = types.SimpleNamespace(saved_step=5 if rank else -1)
        state = types.SimpleNamespace(device=types.SimpleNamespace(_device="cpu"), fsdp_enabled=True)
        assert CheckpointSaver._to_be_saved(saver, 5, state)
        saver.saved_step = 5
        assert not CheckpointSaver._to_be_saved(saver, 5, state)

    on_ranks(2, work)


@pytest.mark.parametrize("fsdp2", [False, True])
def test_a_step_is_abandoned_only_where_one_rank_can_save_alone(fsdp2: bool) -> None:
    from moe.train.callbacks.saver import CheckpointSaver

    stopped = []
    saver = types.SimpleNamespace(
        stop=types.SimpleNamespace(abandons=lambda device: True), stop_here=lambda *args: stopped.append(args)
    )
    state = types.SimpleNamespace(fsdp_enabled=fsdp2, device=types.SimpleNamespace(_device="cpu"))
    CheckpointSaver.before_forward(saver, state, None)
    assert bool(stopped) != fsdp2


def test_on_one_rank_the_key_changes_nothing_but_a_line(tiny: Path, tmp_path: Path, capsys) -> None:
    from tests.unit.train.runs import assert_same_run, train

    settings = ["max_duration=4ba", "scheduler.t_warmup=1ba", "eval_data=null"]
    assert train(tiny, tmp_path, *settings, name="plain")[0] == 0
    capsys.readouterr()
    assert train(tiny, tmp_path, *settings, "parallelism.fsdp2=true", name="alone")[0] == 0
    assert "parallelism.fsdp2: true -> false, because it needs 2 or more ranks" in capsys.readouterr().out
    assert_same_run(tmp_path / "alone", tmp_path / "plain")


def test_a_torch_that_was_found_wrong_is_refused_by_name(monkeypatch) -> None:
    monkeypatch.setattr(sharding.torch, "__version__", "2.7.0+cu126")
    with pytest.raises(sharding.InputError, match=r"fsdp2 \(true\) needs torch 2.11 or newer, and this is 2.7.0; up"):
        sharding.check_torch()
    monkeypatch.setattr(sharding.torch, "__version__", "2.12.0a0")
    sharding.check_torch()


@pytest.mark.parametrize(
    ("shape", "ranks", "replicas", "said"),
    [
        ((8, 100, 50), 8, 1, None),
        ((8, 100, 50), 64, 8, None),
        ((8, 128, 50), 64, 1, None),
        ((8, 100, 64), 64, 1, None),
        ((8, 100, 50), 64, 1, "64 ranks share 8 experts, .* 8 times as much; set parallelism.replicas=8$"),
        ((8, 100, 30), 12, 1, "1.5 times as much; set parallelism.replicas=2$"),
        ((1, 33, 11), 2, 1, "set parallelism.fsdp2=false$"),
    ],
)
def test_more_ranks_than_experts_that_divide_nothing_are_named_with_what_avoids_it(shape, ranks, replicas, said):
    line = padded_experts(shape, ranks, replicas)
    assert line is None if said is None else re.search(said, line)
