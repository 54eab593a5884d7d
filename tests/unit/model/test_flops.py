import inspect

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moe.model import Transformer
from moe.model.flops import count_parameters, flops_per_token

GPT2 = {"vocab_size": 50257, "n_kv_heads": 4, "n_experts": 8, "top_k": 2}
NAMED = {
    "500m": {**GPT2, "d_model": 768, "n_layers": 12, "n_heads": 12, "expert_hidden": 2048},
    "1b": {**GPT2, "d_model": 1024, "n_layers": 16, "n_heads": 16, "expert_hidden": 2304},
    "1_5b": {**GPT2, "d_model": 1536, "n_layers": 20, "n_heads": 24, "expert_hidden": 1792},
}
EVERY = {
    "n_layers": 3,
    "first_k_dense_replace": 1,
    "dense_hidden": 40,
    "n_shared_experts": 2,
    "qk_norm": "full",
    "scoring_func": "sigmoid",
    "balance": "sign",
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": False,
    "partial_rotary_factor": 0.5,
    "tie_embeddings": False,
}
TOTALS = {"500m": 510_551_040, "1b": 999_542_784, "1_5b": 1_508_812_288}


@pytest.mark.parametrize("name", NAMED)
def test_counts_of_the_named_sizes_equal_the_real_module(name):
    with torch.device("meta"):
        model = Transformer(**NAMED[name], eos_id=50256)
    count = count_parameters(**NAMED[name])
    assert count.total == sum(p.numel() for p in model.parameters()) == TOTALS[name]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False},
        {"qk_norm": False},
        {"head_dim": 16, "top_k": 3},
        {"n_shared_experts": 3},
        {"qk_norm": "full", "head_dim": 16},
        {"first_k_dense_replace": 1, "n_shared_experts": 1},
        {"n_layers": 5, "first_k_dense_replace": 3, "dense_hidden": 40, "qk_norm": "full", "tie_embeddings": False},
        {"n_layers": 5, "n_experts": 7},
    ],
    ids=str,
)
def test_every_part_equals_the_real_module(shape, changes):
    shape.update(changes)
    with torch.device("meta"):
        model = Transformer(**shape, eos_id=0)
    sizes = {name: p.numel() for name, p in model.named_parameters()}

    def of(*parts):
        return sum(size for name, size in sizes.items() if any(part in name for part in parts))

    count = count_parameters(**shape)
    assert count.total == sum(sizes.values())
    assert count.embedding == of("embed.")
    assert count.head == of("lm_head.")
    assert count.attention == of("_proj.")
    assert count.router == of("router.")
    assert count.experts == of("moe.w13", "moe.w2")
    assert count.shared == of("moe.shared.")
    assert count.dense == of(".mlp.")
    assert count.norms == of("norm.")
    idle = count.experts // shape["n_experts"] * (shape["n_experts"] - shape["top_k"])
    assert count.active == count.total - idle


def test_500m_takes_1_14_gflop_per_token():
    assert flops_per_token(**NAMED["500m"], seq_len=2048) == pytest.approx(1.14e9, rel=2e-3)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}, EVERY], ids=str)
def test_flops_equal_those_that_torch_counts(shape, changes):
    shape.update(changes)
    batch, seq_len = 3, 20
    with torch.device("meta"):
        model = Transformer(**shape, eos_id=0)
        tokens = torch.zeros(batch, seq_len, dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            parts = model(tokens, tokens)
            (parts.loss + parts.routers.score_E.sum() + parts.routers.z.sum()).backward()
    attention = 6.0 * shape["n_layers"] * shape["d_model"] * seq_len
    known = {k: v for k, v in shape.items() if k in inspect.signature(count_parameters).parameters}
    ours = flops_per_token(**known, seq_len=seq_len)
    # torch counts attention's full square of scores, of which causal attention needs half.
    assert counter.get_total_flops() == batch * seq_len * (ours + attention)
