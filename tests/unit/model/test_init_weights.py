import math

import pytest
import torch

from moe.model import Transformer
from moe.model.init import _trunc_normal_, init_weights

FIRST, THIRD = (0.0222596563, -0.0491235480), (0.0024625005, -0.0103467461)


def test_initial_weights_follow_the_table(shape):
    torch.manual_seed(0)
    changes = {"d_model": 64, "expert_hidden": 96, "n_shared_experts": 1, "tie_embeddings": False}
    changes |= {"n_layers": 3, "first_k_dense_replace": 1, "qk_norm": "full"}
    model = Transformer(**{**shape, **changes, "eos_id": 0})
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            assert torch.equal(p, torch.ones_like(p)), name
            continue
        std = 0.02 / math.sqrt(2 * 3) if name.endswith(("o_proj.weight", ".w2")) else 0.02
        assert p.abs().max() <= 3 * std, name
        assert p.abs().max() > 2 * std, name
        # A normal cut at 3 sigma has a standard deviation of 0.9866 sigma; the router has only 256 samples.
        assert abs(p.std() / (0.9866 * std) - 1) < (0.15 if "router" in name else 0.06), name


def test_the_seed_fixes_every_weight(shape):
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(Transformer(**shape, eos_id=0).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["blocks.1.moe.w2"], states[2]["blocks.1.moe.w2"])


def test_a_seed_of_its_own_goes_before_torchs(shape):
    torch.manual_seed(8)
    own, plain = Transformer(**shape, eos_id=0, seed=5), Transformer(**shape, eos_id=0)
    torch.manual_seed(5)
    torch.rand(3)  # what was drawn before is nothing to it
    like = Transformer(**shape, eos_id=0).state_dict()
    assert all(torch.equal(value, like[name]) for name, value in own.state_dict().items())
    assert not torch.equal(plain.embed.weight, own.embed.weight)


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({"n_experts": 32, "top_k": 4}, ()),
        ({"n_shared_experts": 2}, ("shared.",)),
        ({"tie_embeddings": False}, ("lm_head.",)),
        ({"n_layers": 4}, ("blocks.2.", "blocks.3.")),
        ({"qk_norm": False}, ()),
        ({"first_k_dense_replace": 1}, (".mlp.",)),
    ],
)
def test_two_models_share_what_they_have_in_common(shape, changes, own):
    """Expert e of 8 is expert e of 32, and what one model has more leaves the rest as it is: differences between them
    are differences of their makers, not of another draw.
    """
    shape = {**shape, "n_experts": 8, "seed": 3, "eos_id": 0}
    one, other = Transformer(**shape).state_dict(), Transformer(**{**shape, **changes}).state_dict()
    common = [name for name in one if name in other and not any(part in name for part in own)]
    assert len(common) > 15
    depth = math.sqrt(changes.get("n_layers", 2) / 2)  # residual outputs are smaller by this
    for name in common:
        rows = min(len(one[name]), len(other[name]))  # of experts, or of the router's, those that both have
        scale = depth if name.endswith(("o_proj.weight", ".w2")) else 1.0
        expected, found = one[name][:rows], other[name][:rows] * scale
        assert torch.equal(found, expected) if scale == 1 else torch.allclose(found, expected, rtol=1e-5), name


def test_no_two_parameters_or_experts_are_alike(shape):
    model = Transformer(**{**shape, "n_experts": 8, "n_shared_experts": 1}, seed=3, eos_id=0)
    firsts = [
        float(matrix.detach().flatten()[0])
        for name, p in model.named_parameters()
        if not name.endswith("norm.weight")
        for matrix in (p.unbind() if p.ndim == 3 else [p])
    ]
    assert len(set(firsts)) == len(firsts) > 30


def test_the_seed_and_the_name_fix_a_parameter():
    """These are torch 2.7's and 2.11's, whatever stands around the parameter."""

    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.moe = torch.nn.ParameterDict({"w13": torch.empty(3, 4, 2, dtype=torch.float64)})

    model = Bare()
    init_weights(model, n_layers=1, seed=17)
    assert model.moe["w13"][0, 0].tolist() == pytest.approx(FIRST, rel=1e-5)
    assert model.moe["w13"][2, 0].tolist() == pytest.approx(THIRD, rel=1e-5)


def test_a_model_without_memory_is_left_alone(shape):
    with torch.device("meta"):
        model = Transformer(**shape, eos_id=0)
    assert all(p.is_meta for p in model.parameters())


def test_a_seed_gives_the_same_weights_under_every_torch():
    """F1's sibling: torch 2.15's own truncated normal draws others. These are torch 2.7's and 2.11's."""
    weight = torch.empty(97, 32)
    torch.manual_seed(3)
    _trunc_normal_(weight, 0.02)
    expected = torch.tensor([-0.0507255271, -0.0248925630])
    torch.testing.assert_close(weight[0, :2], expected, rtol=1e-5, atol=0)
    if torch.__version__ < "2.12":
        torch.manual_seed(3)
        assert torch.equal(weight, torch.nn.init.trunc_normal_(torch.empty(97, 32), std=0.02, a=-0.06, b=0.06))


def test_the_weights_are_the_same_whatever_draws_them_and_wherever_they_stay(shape):
    """One thread or several; in the parameter's own memory or, where it is no fp32 on a CPU, beside it."""
    states, threads = [], torch.get_num_threads()
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            states.append(Transformer(**shape, eos_id=0, seed=3).state_dict())
    finally:
        torch.set_num_threads(threads)
    other = Transformer(**shape, eos_id=0, seed=4).to(torch.bfloat16)
    init_weights(other, n_layers=shape["n_layers"], seed=3)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        assert torch.equal(value.to(torch.bfloat16), other.state_dict()[name].to(torch.bfloat16)), name


def test_what_goes_wrong_in_a_thread_is_raised(shape, monkeypatch):
    def refuse(*args):
        raise MemoryError("no room")

    monkeypatch.setattr("moe.model.init._trunc_normal_", refuse)
    with pytest.raises(MemoryError, match="no room"):
        Transformer(**shape, eos_id=0, seed=3)
