"""The loss of a batch, as a script calls it, and of the parts of a batch, as Composer does."""

import json

import pytest
import torch
from composer.core.data_spec import default_split_batch
from torch.nn.parallel import DistributedDataParallel

from moe.model import Transformer
from moe.model.balance import RULES, Balance, BalanceLoss
from moe.model.router import LayerMetric
from moe.train.composer_model import MoEModel, with_global_sizes
from tests.ranks import on_ranks
from tests.tiny import EVERY_OPTION, SHAPE
from tests.unit.train.runs import SHORT, assert_same_run, die, rows, train, weights


def make_model(options=None, **changes) -> MoEModel:
    torch.manual_seed(0)
    transformer = Transformer(vocab_size=29, eos_id=0, **{**SHAPE, **(options or {})}).double()
    balance = BalanceLoss(n_layers=2, n_experts=4, weight=0.5)
    return MoEModel(transformer, **{"balance": balance, "router_z_loss": 0.25, **changes})


def make_batch(rows: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 29, (rows, 16), generator=torch.Generator().manual_seed(3))
    labels = tokens.clone()
    labels[0, 2:9] = -100  # so that rows have different numbers of targets
    return {"tokens": tokens, "labels": labels}


def test_a_script_calls_forward_and_loss_and_nothing_before():
    model, batch = make_model(), make_batch(6)
    parts = model(batch)
    total = model.loss(parts, batch)["total"]
    mean = parts.nll / parts.targets
    balance = 0.5 * 4 * (parts.routers.score_E / 4).sum() / 96
    assert float(total) == pytest.approx(float(mean + balance + 0.25 * parts.routers.z.sum() / 96))
    assert float(model.loss(parts, batch)["total"]) == float(total), "a second call is no other one"


@pytest.mark.parametrize("options", [{}, {**EVERY_OPTION, "balance": "sign"}], ids=["plain", "every option"])
@pytest.mark.parametrize("microbatch", [1, 4, 6])
def test_parts_of_a_batch_that_carry_its_sizes_add_up_to_its_loss_and_gradient(microbatch, options):
    model, batch = make_model(options), make_batch(6)
    whole = model.loss(model(batch), batch)["total"]
    whole.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    targets = (batch["labels"][:, 1:] != -100).sum()
    known = with_global_sizes(batch, targets=targets, tokens=96, samples=6)
    total = 0.0
    for part in default_split_batch(known, microbatch):
        total += model.loss(model(part), part)["total"] * len(part["tokens"]) / 6  # the factor is Composer's
    total.backward()
    assert float(total) == pytest.approx(float(whole), rel=1e-12)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_a_batch_without_any_target_has_a_loss_of_zero_from_its_targets():
    model, batch = make_model(balance=Balance(), router_z_loss=0.0), make_batch(2)
    batch["labels"][:] = -100
    assert float(model.loss(model(batch), batch)["total"]) == 0.0


class Pulled(Balance):
    """A rule of a kind that is not there: a loss of its own, a state, a metric."""

    def __init__(self, *, n_layers, n_experts, weight, rate):
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def loss(self, stats, tokens):
        return 0.01 * stats.score_E[:, 0].sum() / tokens

    def end_step(self, total, routers):
        assert len(routers) == 2 and int(total.counts_E.sum()) == 2 * 2 * 8 * 32, "two layers, top 2, 8 x 32 tokens"
        self.steps += 1

    def metrics(self, total, tokens):
        return {"train/pulled": LayerMetric(total.score_E[:, 0] / tokens, max)}


def test_a_further_rule_is_one_class_its_metrics_are_logged_and_its_state_is_saved_and_resumed(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setitem(RULES, "loss", Pulled)
    settings = [*SHORT, "max_duration=4ba"]
    assert train(tiny, tmp_path, *settings)[0] == 0
    code, folder = train(tiny, tmp_path, *settings, "max_duration=6ba")
    assert code == 0
    assert int(weights(folder)["balance.steps"]) == 6
    model, layers = rows(folder, "train/pulled"), [rows(folder, f"train/pulled/layer_{layer:02d}") for layer in (0, 1)]
    assert list(model) == [1, 2, 3, 4, 5, 6] and model[6] == max(layer[6] for layer in layers) > 0
    assert not rows(folder, "train/balance_loss")


def not_sent(rank):
    transformer = Transformer(vocab_size=97, eos_id=0, balance="sign", **SHAPE)
    rule = RULES["sign"](n_layers=2, n_experts=4, weight=0.0, rate=0.1)
    model = MoEModel(transformer, balance=rule, router_z_loss=0.0)
    assert len(list(model.buffers())) == 4 and DistributedDataParallel(model).modules_buffers == []


def test_ddp_sends_no_bias_in_a_forward_pass():
    on_ranks(2, not_sent)


BIASED = ["model.scoring_func=sigmoid", "model.routed_scaling_factor=2.0", "model.balance="]
EVERY = [f"model.{name}={value}" for name, value in EVERY_OPTION.items()]


def biases(folder) -> torch.Tensor:
    """[L, E] of the newest checkpoint."""
    return torch.stack([value for name, value in weights(folder).items() if name.endswith("router.bias_E")])


@pytest.mark.parametrize("rule", ["sign", "quantile"])
def test_a_killed_run_resumes_with_its_biases_to_the_bit(small, tmp_path, rule):
    settings = [*SHORT, "max_duration=9ba", "save_interval=4ba", *EVERY, f"model.balance={rule}"]
    assert train(small, tmp_path, *settings, name="whole")[0] == 0
    folder = die(small, tmp_path, 6, *settings)
    assert biases(folder).abs().max() > 0.005, "the losses after it depend on them"
    assert train(small, tmp_path, *settings)[0] == 0
    assert_same_run(folder, tmp_path / "whole")
    assert biases(folder).shape == (2, 4), "of the layers that have experts"
    logged = {key for line in (folder / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    layers = {key.rpartition("/")[2] for key in logged if "/layer_" in key}
    assert layers == {"layer_01", "layer_02"}, "by the model's own numbers"
    assert {"weight_rms/dense", "update_rms/dense"} <= logged
    assert biases(folder).dtype == torch.float32
    assert rows(folder, "train/balance_loss")[9] > 0, "watched, though it is not in the loss"


def test_a_step_that_is_skipped_changes_no_bias_and_no_share(tiny, tmp_path, monkeypatch):
    plain, steps = MoEModel.loss, []

    def loss(self, outputs, batch):
        steps.append(0)
        return {"total": plain(self, outputs, batch)["total"] * (float("inf") if len(steps) == 3 else 1.0)}

    monkeypatch.setattr(MoEModel, "loss", loss)
    settings = [*SHORT, "max_duration=4ba", "save_interval=1ba", "save_num_checkpoints_to_keep=-1"]
    code, folder = train(tiny, tmp_path, *settings, *BIASED[:2], "model.balance=sign")
    assert code == 0 and rows(folder, "optim/skipped_steps")[4] == 1
    kept = [torch.load(path / "state.pt", weights_only=False) for path in sorted(folder.glob("step-*"))]
    names = ["balance.share_LE", "transformer.blocks.1.moe.router.bias_E"]
    for name in names:
        one, two, three, four = (state["state"]["model"][name] for state in kept)
        assert torch.equal(two, three) and not torch.equal(one, two) and not torch.equal(three, four), name
