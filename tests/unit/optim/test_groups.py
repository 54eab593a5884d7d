import pytest
import torch
from torch import nn

from moe.optim.groups import build_groups
from moe.optim.muon import Muon

SHAPES = {
    "embed.weight": (11, 8),
    "blocks.0.attn_norm.weight": (8,),
    "blocks.0.attn.q_proj.weight": (8, 8),
    "blocks.0.attn.q_norm.weight": (4,),
    "blocks.0.moe.router.weight": (2, 8),
    "blocks.0.moe.w13": (2, 12, 8),
    "blocks.0.moe.w2": (2, 8, 6),
    "blocks.0.moe.shared.w13": (12, 8),
    "blocks.0.moe.shared.w2": (8, 6),
    "blocks.1.mlp.w13": (20, 8),
    "blocks.1.mlp.w2": (8, 10),
    "norm.weight": (8,),
    "lm_head.weight": (11, 8),
}


class Names(nn.Module):
    """Parameters under the names of the checkpoint contract, without moe.model."""

    def __init__(self):
        super().__init__()
        self.by_name = {name: nn.Parameter(torch.ones(shape)) for name, shape in SHAPES.items()}

    def named_parameters(self, *args, **kwargs):
        return iter(self.by_name.items())


def members(model, groups):
    names = {id(p): name for name, p in model.by_name.items()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


NORMS = {"blocks.0.attn_norm.weight", "blocks.0.attn.q_norm.weight", "norm.weight"}


def test_muon_takes_the_matrices_of_the_blocks():
    model = Names()
    groups = build_groups(model, name="muon", lr=1e-3, weight_decay=0.1)
    assert members(model, groups) == {
        "muon": {
            "blocks.0.attn.q_proj.weight",
            "blocks.0.moe.router.weight",
            "blocks.0.moe.w2",
            "blocks.0.moe.shared.w2",
            "blocks.1.mlp.w2",
        },
        "muon_gate_up": {"blocks.0.moe.w13", "blocks.0.moe.shared.w13", "blocks.1.mlp.w13"},
        "adamw": {"embed.weight", "lm_head.weight"},
        "norms": NORMS,
    }
    assert {group["name"]: group["kind"] for group in groups} == {
        "muon": "muon",
        "muon_gate_up": "muon",
        "adamw": "adamw",
        "norms": "adamw",
    }


def test_adamw_takes_everything():
    model = Names()
    groups = build_groups(model, name="adamw", lr=1e-3, weight_decay=0.1)
    assert members(model, groups) == {"adamw": set(SHAPES) - NORMS, "norms": NORMS}


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_norms_alone_do_not_decay(name):
    groups = build_groups(Names(), name=name, lr=1e-3, weight_decay=0.1)
    assert {group["weight_decay"] for group in groups if group["name"] != "norms"} == {0.1}
    assert [group["weight_decay"] for group in groups if group["name"] == "norms"] == [0.0]


def test_settings_reach_the_groups_they_belong_to():
    groups = build_groups(
        Names(),
        name="muon",
        lr=2e-3,
        weight_decay=0.2,
        momentum=0.9,
        momentum_dtype="bf16",
        adjust_lr_fn="original",
        adamw_lr=5e-4,
        betas=(0.8, 0.99),
        eps=1e-6,
    )
    for group in groups:
        if group["kind"] == "muon":
            kept = [group[key] for key in ("lr", "momentum", "momentum_dtype", "adjust_lr_fn")]
            assert kept == [2e-3, 0.9, "bf16", "original"]
        else:
            assert [group[key] for key in ("lr", "betas", "eps")] == [5e-4, (0.8, 0.99), 1e-6]
    assert {group["name"]: group.get("split", 1) for group in groups}["muon_gate_up"] == 2


def test_adamw_shares_the_learning_rate_by_default():
    assert {group["lr"] for group in build_groups(Names(), name="muon", lr=3e-3, weight_decay=0.1)} == {3e-3}


def test_frozen_parameters_are_left_out():
    model = Names()
    model.by_name["embed.weight"].requires_grad_(False)
    groups = build_groups(model, name="muon", lr=1e-3, weight_decay=0.1)
    assert "embed.weight" not in set().union(*members(model, groups).values())


def test_groups_drive_an_optimizer():
    model = Names()
    optimizer = Muon(build_groups(model, name="muon", lr=1e-2, weight_decay=0.1))
    for p in model.by_name.values():
        p.grad = torch.randn(p.shape)
    optimizer.step()
    assert all((p != 1).any() for p in model.by_name.values())


def test_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"optimizer.name \('sgd'\)"):
        build_groups(Names(), name="sgd", lr=1e-3, weight_decay=0.1)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_an_embedding_with_a_rate_of_its_own_is_a_group_where_it_is_not_the_head_too(name):
    model = Names()
    groups = build_groups(model, name=name, lr=1e-3, weight_decay=0.1, embedding_lr=4e-3)
    assert [(group["lr"], group["kind"]) for group in groups if group["name"] == "embedding"] == [(4e-3, "adamw")]
    assert members(model, groups)["embedding"] == {"embed.weight"}
    assert "lm_head.weight" in members(model, groups)["adamw"]
    plain = build_groups(model, name=name, lr=1e-3, weight_decay=0.1)
    assert "embedding" not in members(model, plain) and "embed.weight" in members(model, plain)["adamw"]
    del model.by_name["lm_head.weight"]
    tied = build_groups(model, name=name, lr=1e-3, weight_decay=0.1, embedding_lr=4e-3)
    assert "embedding" not in members(model, tied)
