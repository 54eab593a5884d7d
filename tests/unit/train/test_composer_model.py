"""The loss of a batch, as a script calls it, and of the parts of a batch, as Composer does."""

import pytest
import torch
from composer.core.data_spec import default_split_batch

from moe.model import Transformer
from moe.model.balance import Balance, BalanceLoss
from moe.model.router import LayerMetric
from moe.train.composer_model import MoEModel, with_global_sizes
from tests.tiny import SHAPE
from tests.unit.train.runs import SHORT, rows, train, weights


def make_model(**changes) -> MoEModel:
    torch.manual_seed(0)
    transformer = Transformer(vocab_size=29, eos_id=0, **SHAPE).double()
    balance = BalanceLoss(n_layers=2, n_experts=4, weight=0.5)
    return MoEModel(transformer, **{"balance": balance, "router_z_loss": 0.25, "flops_per_token": 1.0, **changes})


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


@pytest.mark.parametrize("microbatch", [1, 4, 6])
def test_parts_of_a_batch_that_carry_its_sizes_add_up_to_its_loss(microbatch):
    model, batch = make_model(), make_batch(6)
    whole = model.loss(model(batch), batch)["total"]
    targets = (batch["labels"][:, 1:] != -100).sum()
    known = with_global_sizes(batch, targets=targets, tokens=96, samples=6)
    total = 0.0
    for part in default_split_batch(known, microbatch):
        total += model.loss(model(part), part)["total"] * len(part["tokens"]) / 6  # the factor is Composer's
    assert float(total) == pytest.approx(float(whole), rel=1e-12)


def test_a_batch_without_any_target_has_a_loss_of_zero_from_its_targets():
    model, batch = make_model(balance=Balance(), router_z_loss=0.0), make_batch(2)
    batch["labels"][:] = -100
    assert float(model.loss(model(batch), batch)["total"]) == 0.0


class Pulled(Balance):
    """A rule of a kind that is not there: a loss of its own, a state, a metric."""

    def __init__(self, *, n_layers, n_experts, weight):
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
    monkeypatch.setitem(__import__("moe.model.balance").model.balance.RULES, "loss", Pulled)
    settings = [*SHORT, "max_duration=4ba"]
    assert train(tiny, tmp_path, *settings)[0] == 0
    code, folder = train(tiny, tmp_path, *settings, "max_duration=6ba")
    assert code == 0
    assert int(weights(folder)["balance.steps"]) == 6
    model, layers = rows(folder, "train/pulled"), [rows(folder, f"train/pulled/layer_{layer:02d}") for layer in (0, 1)]
    assert list(model) == [1, 2, 3, 4, 5, 6] and model[6] == max(layer[6] for layer in layers) > 0
    assert not rows(folder, "train/balance_loss")
