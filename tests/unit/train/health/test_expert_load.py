"""What is counted of the experts in a step, and what the balance loss makes of it. MoEModel and StepLosses are the real
ones; the loop around them is Composer's in a few lines.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from composer.core.data_spec import default_split_batch
from torch import Tensor

from moe.config.times import Every, parse_time
from moe.model import Transformer
from moe.model.balance import RULES
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.optim.schedules import SCHEDULERS
from moe.train.callbacks.losses import StepLosses
from moe.train.composer_model import MoEModel

SHAPE = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "n_experts": 8, "top_k": 2, "expert_hidden": 32}
VOCAB, EOS, SAMPLES, SEQ_LEN = 64, 0, 16, 32


def make_model(*, balance_loss: float = 0.01, checkpointing: bool = False, rule: str = "loss") -> MoEModel:
    torch.manual_seed(0)
    transformer = Transformer(
        vocab_size=VOCAB, eos_id=EOS, activation_checkpointing=checkpointing, balance=rule, **SHAPE
    )
    return MoEModel(
        transformer,
        balance=RULES[rule](n_layers=SHAPE["n_layers"], n_experts=SHAPE["n_experts"], weight=balance_loss, rate=0.01),
        router_z_loss=0.001,
    )


def make_batch(seed: int) -> dict[str, Tensor]:
    """Text of a kind: half of all tokens are among eight, and a token depends on the one before."""
    random = torch.Generator().manual_seed(seed)
    common = torch.randint(1, 9, (SAMPLES, SEQ_LEN), generator=random)
    any_token = torch.randint(0, VOCAB, (SAMPLES, SEQ_LEN), generator=random)
    tokens = torch.where(torch.rand(SAMPLES, SEQ_LEN, generator=random) < 0.5, common, any_token)
    tokens[:, 1::2] = (tokens[:, ::2] * 5 + 3) % VOCAB
    return {"tokens": tokens, "labels": tokens.clone()}


class Steps:
    """forward and backward of one step as Composer runs it, and the callback that counts around it."""

    def __init__(self, model: MoEModel) -> None:
        self.model = model
        self.losses = StepLosses(
            model, tokens_per_step=SAMPLES * SEQ_LEN, log=Every(parse_time("1ba"), SAMPLES * SEQ_LEN, 1)
        )
        self.metrics: dict[str, float] = {}

    def run(self, batch: dict[str, Tensor], microbatch: int = SAMPLES) -> None:
        device = SimpleNamespace(tensor_to_device=lambda tensor: tensor)
        state = SimpleNamespace(batch=batch, device=device, timestamp=SimpleNamespace(batch=0))
        logger = SimpleNamespace(log_metrics=self.metrics.update)
        self.losses.batch_start(state, logger)
        self.losses.before_train_batch(state, logger)
        for part in default_split_batch(state.batch, microbatch):
            state.outputs = self.model(part)
            total = self.model.loss(state.outputs, part)["total"]
            self.losses.after_loss(state, logger)
            (total * len(part["tokens"]) / SAMPLES).backward()
        self.losses.after_train_batch(state, logger)
        self.losses.batch_end(state, logger)


def counts_of(run: Callable[[Steps], None], **settings: object) -> Tensor:
    """Share of each expert [L, E] that the next step's balance loss will see."""
    steps = Steps(make_model(**settings))
    run(steps)
    return steps.model.balance.share_LE


@pytest.fixture
def plain() -> Tensor:
    """Shares of one step, whole batch at once, and counted by hand from the routers' choices."""
    steps = Steps(make_model())
    chosen: list[Tensor] = []
    for block in steps.model.transformer.blocks:
        block.moe.router.register_forward_hook(lambda _, __, routing: chosen.append(routing.expert_TK))
    steps.run(make_batch(0))
    by_hand = torch.stack([torch.stack([(e == layer).float().mean() for e in range(8)]) for layer in chosen])
    assert torch.equal(steps.model.balance.share_LE, by_hand)
    return by_hand


def test_accumulation_counts_the_whole_batch_once(plain):
    for microbatch in (1, 5, 8):
        shares = counts_of(lambda steps, size=microbatch: steps.run(make_batch(0), size))
        assert torch.equal(shares, plain), microbatch


def test_evaluation_does_not_count(plain):
    def with_evaluation(steps: Steps) -> None:
        def evaluate() -> None:
            steps.model.eval()
            with torch.no_grad():
                steps.model.eval_forward(make_batch(7))
            steps.model.train()

        evaluate()
        steps.run(make_batch(0))
        evaluate()

    assert torch.equal(counts_of(with_evaluation), plain)


def test_recomputation_does_not_count_twice(plain):
    assert torch.equal(counts_of(lambda steps: steps.run(make_batch(0), 4), checkpointing=True), plain)


def test_a_step_that_is_tried_again_with_a_smaller_microbatch_counts_once(plain):
    def out_of_memory_half_way(steps: Steps) -> None:
        half = {name: rows[:8] for name, rows in make_batch(0).items()}
        steps.losses.after_loss(SimpleNamespace(outputs=steps.model(half)), None)  # then Composer starts the step over
        steps.run(make_batch(0), 4)

    assert torch.equal(counts_of(out_of_memory_half_way), plain)


def test_the_balance_loss_is_the_published_one_where_the_shares_are_this_batchs():
    """E2: alpha E sum_e f_e P_e in each layer (Switch Transformers, arXiv 2101.03961), with f over all K choices; the
    layers' are added up.
    """
    alpha, top_k = 0.25, SHAPE["top_k"]
    model, batch = make_model(balance_loss=alpha).double(), make_batch(0)
    inputs: list[Tensor] = []
    for block in model.transformer.blocks:
        block.moe.router.weight.data *= 20  # at first all experts are nearly alike
        block.moe.router.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    parts = model(batch)
    published = 0.0
    for layer, (x_TD, block) in enumerate(zip(inputs, model.transformer.blocks, strict=True)):
        prob_TE = (x_TD @ block.moe.router.weight.T).softmax(-1)
        chosen_TK = prob_TE.argsort(-1, descending=True)[:, :top_k]
        f_E = torch.nn.functional.one_hot(chosen_TK, SHAPE["n_experts"]).double().sum((0, 1)) / chosen_TK.numel()
        model.balance.share_LE[layer] = f_E
        published += alpha * SHAPE["n_experts"] * (f_E * prob_TE.mean(0)).sum().item()
    totals = []
    for model.balance.weight in (alpha, 0.0):
        totals.append(model.loss(parts, batch)["total"].item())
    assert totals[0] - totals[1] == pytest.approx(published, rel=1e-9)
    assert published > 1.05 * alpha * SHAPE["n_layers"], "as uneven as it is, or even shares would do as well"


def test_the_balance_gradient_in_the_router_is_that_of_the_formula():
    model = make_model(balance_loss=0.5).double()
    model.router_z_loss = 0.0
    model.balance.share_LE.copy_(torch.rand(2, 8, dtype=torch.float64).softmax(-1))
    steps, batch = Steps(model), make_batch(0)
    inputs: list[Tensor] = []
    for block in model.transformer.blocks:
        block.moe.router.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    routers = [block.moe.router.weight for block in model.transformer.blocks]
    gradients = []
    for weight in (0.5, 0.0):  # the difference is the balance loss's own part
        model.balance.weight = weight
        share_LE = model.balance.share_LE.clone()
        model.zero_grad()
        steps.run(batch, 8)
        model.balance.share_LE.copy_(share_LE)
        gradients.append([router.grad.clone() for router in routers])
    # the last layer's router acts on nothing after it but its own probabilities: E f . P is the whole function
    x_TD = torch.cat([inputs[1], inputs[3]])

    def formula(weight_ED: Tensor) -> Tensor:
        return 0.5 * 8 * (model.balance.share_LE[1] * (x_TD @ weight_ED.T).softmax(-1).mean(0)).sum()

    weight = routers[1].detach()
    numeric = torch.zeros_like(weight)
    for e in range(8):
        for d in range(32):
            nudge = torch.zeros_like(weight)
            nudge[e, d] = 1e-5
            numeric[e, d] = (formula(weight + nudge) - formula(weight - nudge)) / 2e-5
    ours = gradients[0][1] - gradients[1][1]
    assert ours.abs().max() > 1e-5
    torch.testing.assert_close(ours, numeric, rtol=1e-5, atol=1e-10)
    assert (gradients[0][0] - gradients[1][0]).abs().max() > 1e-5  # and it reaches the first layer's


def flood(steps: Steps, logit: float) -> None:
    """Moves each router so that its first expert gains `logit` at the mean of what the router sees."""
    inputs: list[Tensor] = []
    routers = [block.moe.router for block in steps.model.transformer.blocks]
    hooks = [router.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach())) for router in routers]
    steps.run(make_batch(99))
    for router, hook, x_TD in zip(routers, hooks, inputs, strict=True):
        hook.remove()
        mean_D = x_TD.mean(0)
        router.weight.data[0] += logit * mean_D / mean_D.square().sum()


def loads(
    balance_loss: float,
    *,
    flooded: float = 0.0,
    rule: str = "loss",
    number_of_steps: int = 60,
    warmup: float | None = None,
) -> Tensor:
    """Load of each expert over its fair share [steps, L, E]. warmup: share of the steps, a cosine to a tenth after it;
    None is a constant rate.
    """
    steps = Steps(make_model(balance_loss=balance_loss, rule=rule))
    flood(steps, flooded)
    optimizer = Muon(build_groups(steps.model.transformer, name="muon", lr=1e-2, weight_decay=0.1))
    found = []
    for number in range(number_of_steps):
        if warmup is not None:
            factor = SCHEDULERS["cosine_with_warmup"](
                number + 1, total=number_of_steps, warmup=warmup * number_of_steps, alpha_f=0.1
            )
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * factor
        optimizer.zero_grad()
        steps.run(make_batch(number))
        optimizer.step()
        found.append(steps.model.balance.share_LE * SHAPE["n_experts"])
    return torch.stack(found)


def test_no_expert_starves_or_is_flooded():
    late_LE = loads(0.01)[30:].mean(0)
    assert late_LE.min() > 0.2 and late_LE.max() < 2.0


def test_an_expert_that_is_flooded_comes_back_and_without_the_balance_loss_it_does_not():
    with_it, without = loads(0.01, flooded=1.0), loads(0.0, flooded=1.0)
    assert with_it[0].max() > 3.0 and torch.equal(with_it[0], without[0])
    late_LE = with_it[30:].mean(0)
    assert late_LE.min() > 0.2 and late_LE.max() < 2.0
    assert without[30:].mean(0).max() > 2.0


@pytest.mark.parametrize(("rule", "within"), [("sign", 90), ("quantile", 30)])
def test_a_bias_brings_back_an_expert_whose_logit_is_raised_by_4_in_every_layer(rule, within):
    found = loads(0.0, flooded=4.0, rule=rule, number_of_steps=within)
    assert found[0].amax(-1).min() > 3.0, "4 would be every token, of which each has 2 of 8"
    assert found[-5:].mean(0).max() < 1.3


def test_the_balance_loss_brings_an_expert_back_whose_logit_is_raised_by_4_in_every_layer():
    """In a run of the trainer's schedule: on the way the experts part, and loads reach 1.5 to 1.9, raised or not."""
    found = loads(0.01, flooded=4.0, number_of_steps=400, warmup=0.1)
    assert found[0, :, 0].min() > 3.0
    assert found[-20:].mean(0).max() < 1.5, "of every expert, not the raised one alone"
