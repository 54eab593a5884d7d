"""`auto`: found by a trial that leaves no trace, kept in run.json, not searched again. The memory of a GPU is played by
a forward pass that refuses large batches.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moe.config import load_config
from moe.model.step import make_step
from moe.optim.groups import build_optimizer
from moe.train import microbatch, microbatch_trial
from moe.train.composer_model import MoEModel, build_model
from moe.train.distributed.sharding import shard_transformer
from moe.train.inputs import check_data
from moe.train.microbatch_trial import find_microbatch
from tests.ranks import on_ranks
from tests.unit.train.runs import assert_same_run, die_after, rows, train


@pytest.fixture
def made(tiny: Path):
    config = load_config(tiny / "tiny.yaml")
    model = build_model(config, check_data(config, print))
    return model, build_optimizer(config.optimizer, model.transformer)


@pytest.fixture
def memory_for(monkeypatch):
    """memory_for(n): batches of more than n sequences do not fit; returns the sizes that are tried."""
    plain = MoEModel.forward
    tried = []

    def set_limit(sequences):
        def forward(self, batch):
            tried.append(len(batch["tokens"]))
            if len(batch["tokens"]) > sequences:
                raise torch.OutOfMemoryError("no memory")
            return plain(self, batch)

        monkeypatch.setattr(MoEModel, "forward", forward)
        return tried

    return set_limit


def find(model, optimizer, rank_batch=24):
    return find_microbatch(
        model, optimizer, rank_batch=rank_batch, seq_len=32, precision="fp32", device=torch.device("cpu")
    )


@pytest.mark.parametrize(("fits", "found"), [(1, 1), (5, 4), (8, 8), (23, 16), (24, 24), (99, 24)])
def test_the_largest_power_of_two_that_fits_or_the_whole_batch_is_found(made, memory_for, fits, found) -> None:
    memory_for(fits)
    assert find(*made) == found


@pytest.mark.parametrize(
    ("per_sequence", "found", "tried"),
    [
        (1.0, 16, [16]),  # as computed: 24 is beyond all memory
        (0.7, 24, [16, 24]),  # less than computed: the next one may fit, and does
        (0.86, 16, [16, 24]),  # may fit, and does not
        (1.3, 8, [16, 8]),  # more than computed
        (4.9, 4, [16, 8, 4]),
        (30.0, 0, [16, 8, 4, 2, 1]),
    ],
)
def test_the_search_begins_with_what_is_computed_to_fit(monkeypatch, per_sequence, found, tried) -> None:
    """A step is computed to take 1 GB for each sequence, and the budget is 20 GB of 22.2; the device knows better."""
    sizes = []

    def peak_of(size: float) -> float:
        sizes.append(size)
        peak = size * per_sequence * 1e9
        return peak if peak < 22.2e9 else float("inf")

    assert microbatch_trial._search(peak_of, 24, 20e9, lambda size: size * 1e9) == found and sizes == tried


def test_without_enough_memory_by_the_computation_one_sequence_is_tried_all_the_same() -> None:
    for fits in (True, False):
        peak_of = {1: 1e9 if fits else float("inf")}.__getitem__
        assert microbatch_trial._search(peak_of, 8, 20e9, lambda size: 30e9 * size) == int(fits)


def test_what_a_trial_is_computed_to_take_is_what_a_gpu_took(tiny: Path) -> None:
    """500m on an H200, 32 sequences a microbatch and more than one of them, compiled: 43.97 GB (`make gpu`). A trial's
    router is the worst, which adds a little.
    """
    config = load_config(Path("yamls/500m.yaml"), ["tokenizer=none"])
    step = make_step(config, 50257, n_gpus=1, microbatch=1)
    model = SimpleNamespace(transformer=SimpleNamespace(compiled=True))
    bytes_of = microbatch_trial.expected_bytes(step, model, world_size=1)
    assert 43.8e9 < bytes_of(32) < 46e9
    buckets = microbatch_trial.expected_bytes(step, model, world_size=2)
    assert buckets(32) - bytes_of(32) == 4 * 510_551_040


def test_the_trial_leaves_weights_optimizer_and_gradients_as_they_were(made) -> None:
    model, optimizer = made
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rates = [group["lr"] for group in optimizer.param_groups]
    find(model, optimizer)
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not optimizer.state
    assert [group["lr"] for group in optimizer.param_groups] == rates and max(rates) > 0


def test_a_trial_is_a_whole_step_with_every_token_at_the_same_experts(made, monkeypatch) -> None:
    model, optimizer = made
    counts, states = [], []
    plain_loss, plain_step = MoEModel.loss, type(optimizer).step
    monkeypatch.setattr(
        MoEModel, "loss", lambda self, out, batch: counts.append(out.routers.counts_E) or plain_loss(self, out, batch)
    )
    monkeypatch.setattr(type(optimizer), "step", lambda self: plain_step(self) or states.append(len(self.state)))
    model.eval()  # no dropout: it would move a token to another expert
    find(model, optimizer, rank_batch=1)
    assert len(counts) == 2, "the second microbatch runs with the gradients of the first in memory"
    crowded = [sorted(layer.tolist())[-2:] for layer in counts[0]]
    assert all(min(pair) >= 30 for pair in crowded), "all 32 tokens at the same 2 experts, but for two that are EOS"
    assert states == [len(list(model.parameters()))], "the optimizer's state was there"


def test_the_trials_batch_has_as_many_documents_as_real_text(made, monkeypatch) -> None:
    """The room for them decides what varlen attention's backward pass allocates."""
    model, optimizer = made
    rooms = []
    plain = MoEModel.forward
    monkeypatch.setattr(
        MoEModel, "forward", lambda self, batch: rooms.append(batch["document_ends"]) or plain(self, batch)
    )
    microbatch_trial._step(model, optimizer, 1, 2048, "fp32")
    assert rooms[0].shape == (1, 128) and (rooms[0].diff() == 16).all(), "128 documents of 16 tokens"


def test_the_budget_is_the_share_of_memory_that_the_process_was_given(monkeypatch) -> None:
    gpu, free, held = torch.device("cuda"), 70e9, 2e9
    shares = [1.0, 0.1]

    def fraction(device) -> float:
        torch.cuda.memory._get_device_index(device)  # torch asks: a number, or a device that has one
        return shares.pop(0)

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 80e9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: held)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", fraction)
    assert [microbatch_trial._memory(gpu) for _ in range(2)] == [72e9, 8e9]


@pytest.mark.parametrize("compiled", [False, True])
def test_what_the_trials_sizes_compiled_is_forgotten(made, monkeypatch, compiled) -> None:
    model, optimizer = made
    resets = []
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(1))
    monkeypatch.setattr(model.transformer, "compiled", compiled)
    monkeypatch.setattr(microbatch_trial, "_step", lambda *args: resets.append(0))
    find(model, optimizer, rank_batch=2)
    assert resets == [0, 0, *[1] * compiled], "after the last trial, and only of what is compiled"


with_fsdp2 = pytest.mark.skipif(
    torch.__version__ < "2.11", reason="older torch is refused: moe.train.distributed.sharding"
)


@with_fsdp2
@pytest.mark.parametrize(("gigabytes", "found", "tried"), [(99, 12, [0.5, 1, 2, 4, 8, 12]), (6, 4, [0.5, 1, 2, 4])])
def test_a_sharded_model_is_tried_only_where_memory_is_expected_to_do_on_every_rank(
    tiny: Path, made, gigabytes, found, tried
) -> None:
    """A trial takes 1 GB and 1 more for each sequence; rank 1 has half the memory of rank 0."""

    def work(rank):
        model, _ = made
        shard_transformer(model.transformer, world_size=2, on_gpu=False)
        optimizer, sizes = build_optimizer(load_config(tiny / "tiny.yaml").optimizer, model.transformer), []

        def peak(model, optimizer, size, seq_len, precision):
            sizes.append(size * seq_len / 32)
            return (1 + sizes[-1]) * 1e9

        microbatch_trial._peak_of_step = peak
        microbatch_trial._memory = lambda device: (2 - rank) * gigabytes * 1e9
        assert find(model, optimizer, rank_batch=12) == found and sizes == tried

    on_ranks(2, work)


@with_fsdp2
def test_a_sharded_trial_that_runs_out_of_memory_ends_the_run_with_the_size_to_set(tiny: Path, made) -> None:
    """It cannot be told to the other ranks, which wait for this one in the middle of a step."""

    def work(rank):
        model, _ = made
        shard_transformer(model.transformer, world_size=2, on_gpu=False)
        optimizer = build_optimizer(load_config(tiny / "tiny.yaml").optimizer, model.transformer)
        limit = 0

        def step(model, optimizer, size, *others):
            if size > limit:
                raise torch.OutOfMemoryError("no memory")

        microbatch_trial._step = step
        with pytest.raises(microbatch_trial.InputError, match="one sequence of 32 tokens does not fit"):
            find(model, optimizer)
        limit = 2
        with pytest.raises(
            microbatch_trial.InputError, match=r"4 sequences ran out .* set device_train_microbatch_size=2"
        ):
            find(model, optimizer)

    on_ranks(2, work)


def test_nothing_that_fits_is_told_with_what_to_do(made, memory_for) -> None:
    memory_for(0)
    with pytest.raises(microbatch_trial.InputError, match=r"one sequence of 32 tokens does not fit .*checkpointing"):
        find(*made)


def test_a_resumed_run_uses_the_size_that_was_found_and_does_not_search(
    tiny: Path, tmp_path: Path, memory_for, monkeypatch
) -> None:
    plain = microbatch.microbatch_size
    monkeypatch.setattr("moe.train.fit.microbatch_size", lambda config, world, on_gpu: plain(config, world, True))
    settings = ["device_train_microbatch_size=auto", "max_duration=8ba", "scheduler.t_warmup=1ba"]
    settings += ["eval_interval=4ba", "save_interval=4ba"]
    tried = memory_for(5)
    assert train(tiny, tmp_path, *settings, name="whole")[0] == 0
    assert max(tried[tried.index(8) + 1 :]) == 4, "after the trial, training and evaluation keep to what fits"
    with monkeypatch.context() as dying:
        die_after(6, dying)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path, *settings, name="cut")
    del tried[:]
    code, folder = train(tiny, tmp_path, *settings, name="cut")
    assert code == 0 and max(tried) == 4 and json.loads((folder / "run.json").read_text())["microbatch"]["size"] == 4
    assert_same_run(folder, tmp_path / "whole")
    assert max(rows(folder, "train/loss")) == 8


def test_another_batch_is_searched_for_anew(tiny: Path, tmp_path: Path, made, memory_for) -> None:
    from moe.train.checkpointing.run_folder import open_run_folder

    memory_for(5)
    folder = open_run_folder(str(tmp_path), run_name="a", autoresume=True, resume_from=None, report=lambda line: None)
    said = []
    settings = {"world_size": 1, "report": said.append}
    config = load_config(tiny / "tiny.yaml")
    step = make_step(config, 300, n_gpus=1, microbatch=1)
    assert microbatch.automatic_microbatch(config, step, folder, *made, **settings) == 4 and len(said) == 2
    assert microbatch.automatic_microbatch(config, step, folder, *made, **settings) == 4 and len(said) == 2
    memory_for(1)
    other = load_config(tiny / "tiny.yaml", ["activation_checkpointing=true"])
    assert microbatch.automatic_microbatch(other, step, folder, *made, **settings) == 1 and len(said) == 4
