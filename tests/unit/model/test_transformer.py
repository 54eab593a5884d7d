import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_leaves

from moe.model.attention import rope_table
from moe.model.documents import document_causal_mask, document_ids


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def total(parts):
    share = parts.routers.counts_E / parts.routers.counts_E.sum(-1, keepdim=True)
    return parts.loss / parts.targets + 0.01 * (share * parts.routers.score_E).sum() + 1e-3 * parts.routers.z.sum()


def test_parameter_names_and_shapes_are_the_checkpoint_contract(build):
    shapes = {name: tuple(p.shape) for name, p in build(n_layers=1, tie_embeddings=False).named_parameters()}
    assert shapes == {
        "embed.weight": (97, 32),
        "blocks.0.attn_norm.weight": (32,),
        "blocks.0.attn.q_proj.weight": (32, 32),
        "blocks.0.attn.k_proj.weight": (16, 32),
        "blocks.0.attn.v_proj.weight": (16, 32),
        "blocks.0.attn.o_proj.weight": (32, 32),
        "blocks.0.attn.q_norm.weight": (8,),
        "blocks.0.attn.k_norm.weight": (8,),
        "blocks.0.moe_norm.weight": (32,),
        "blocks.0.moe.router.weight": (4, 32),
        "blocks.0.moe.w13": (4, 48, 32),
        "blocks.0.moe.w2": (4, 32, 24),
        "norm.weight": (32,),
        "lm_head.weight": (97, 32),
    }


def test_nothing_but_parameters_stands_in_the_state(build):
    model = build()
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()]


def test_labels_are_shifted_inside_and_minus_100_is_no_target(build, tokens):
    model = build(z_loss=0.01)
    labels = tokens.clone()
    labels[1, 3:9] = -100
    parts = model(tokens, labels)
    logits = model(tokens)[:, :-1].flatten(0, 1)
    target = labels[:, 1:].flatten()
    nll = F.cross_entropy(logits, target, reduction="sum")
    z = logits.logsumexp(-1)[target != -100].square().sum()
    torch.testing.assert_close(parts.nll, nll.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(parts.z, z.detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(parts.loss.detach(), parts.nll + 0.01 * parts.z)
    assert parts.targets == 3 * 19 - 6


def test_counts_of_every_layer_sum_to_tokens_times_top_k(build, tokens):
    parts = build()(tokens, tokens)
    assert parts.routers.counts_E.dtype == torch.int64
    assert parts.routers.counts_E.sum(-1).tolist() == [tokens.numel() * 2] * 2
    torch.testing.assert_close(parts.routers.score_E.sum(-1), torch.full((2,), float(tokens.numel())))


def test_sums_and_largest_logits_of_microbatches_equal_the_whole_batch(build, tokens):
    model = build(z_loss=0.01)
    whole = model(tokens, tokens)
    halves = [model(part, part) for part in (tokens[:1], tokens[1:])]
    for name, value, a, b in zip(whole._fields, whole, *halves, strict=True):
        torch.testing.assert_close(value, a + b, rtol=1e-5, atol=1e-4, msg=name)
    torch.testing.assert_close(whole, halves[0] + halves[1], rtol=1e-5, atol=1e-4)
    assert (whole.routers.logit_max < halves[0].routers.logit_max + halves[1].routers.logit_max).all(), "no sum"


def test_balance_term_reaches_every_router(build, tokens):
    model = build()
    parts = model(tokens, tokens)
    (parts.routers.score_E * parts.routers.counts_E).sum().backward()
    for block in model.blocks:
        assert block.moe.router.weight.grad.abs().max() > 0


def test_checkpointing_changes_neither_counts_nor_entropy_nor_gradients(build, tokens):
    plain, recomputed = build(), build(activation_checkpointing=True)
    results = [model(tokens, tokens) for model in (plain, recomputed)]
    for parts in results:
        total(parts).backward()
    for a, b in zip(*map(tree_leaves, results), strict=True):
        assert torch.equal(a, b)
    for (name, a), b in zip(gradients(plain).items(), gradients(recomputed).values(), strict=True):
        assert torch.equal(a, b), name


def test_checkpointing_recomputes_every_block(build, tokens):
    model = build(activation_checkpointing=True)
    calls = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    parts = model(tokens, tokens)
    assert len(calls) == 2
    total(parts).backward()
    assert len(calls) == 4


def test_checkpointing_replays_the_same_dropout(build, tokens):
    grads = []
    for checkpointing in (False, True):
        model = build(dropout=0.3, activation_checkpointing=checkpointing)
        torch.manual_seed(5)
        total(model(tokens, tokens)).backward()
        grads.append(gradients(model))
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_dropout_acts_in_training_only(build, tokens):
    model = build(dropout=0.5)
    with torch.no_grad():
        assert not torch.equal(model(tokens), model(tokens))
        model.eval()
        assert torch.equal(model(tokens), model(tokens))


def test_a_compiled_block_has_no_graph_break_and_equal_gradients(build, tokens):
    model = build()
    block = model.blocks[0]
    x = torch.randn(3, 20, 32, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rope = rope_table(seq_len=20, head_dim=8, theta=1e4, device=x.device)
    mask = document_causal_mask(document_ids(tokens, 0), torch.float32)
    results = []
    for forward in (block, torch.compile(block, backend="aot_eager", fullgraph=True)):
        out, stats = forward(x, rope, mask)
        grads = torch.autograd.grad(out.square().sum() + stats.score_E[0] + stats.z, [x, *block.parameters()])
        results.append([out, *stats, *grads])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain)


@pytest.mark.parametrize("tie_embeddings", [True, False])
@pytest.mark.parametrize("document_mask", [True, False])
@pytest.mark.parametrize("activation_checkpointing", [True, False])
def test_autocast_bf16_is_finite_and_close_to_fp32(
    build, tokens, tie_embeddings, document_mask, activation_checkpointing
):
    changes = {"tie_embeddings": tie_embeddings, "document_mask": document_mask, "z_loss": 1e-3}
    # Every token takes both experts: bf16 may rightly tip a close choice, and then no gradient is close.
    plain = build(n_experts=2, top_k=2, **changes)
    cast = build(n_experts=2, top_k=2, activation_checkpointing=activation_checkpointing, **changes)
    exact = plain(tokens, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            cast(tokens)  # an evaluation inside autocast must not cost the weights their gradient
            cast(tokens, tokens)
        parts = cast(tokens, tokens)
    total(exact).backward()
    total(parts).backward()
    assert parts.loss.dtype == torch.float32
    torch.testing.assert_close(parts.nll, exact.nll, rtol=0.03, atol=0)
    expected = gradients(plain)
    assert gradients(cast).keys() == expected.keys() == dict(plain.named_parameters()).keys()
    for name, grad in gradients(cast).items():
        assert grad.dtype == torch.float32 and torch.isfinite(grad).all()
        error = (grad - expected[name]).norm() / expected[name].norm()
        assert error < 0.15, f"{name}: {error}"


def test_builds_and_runs_on_the_meta_device(build):
    with torch.device("meta"):
        model = build()
        tokens = torch.zeros(2, 8, dtype=torch.int64)
        parts = model(tokens, tokens)
    total(parts).backward()
    assert parts.routers.counts_E.shape == (2, 4)
    assert all(p.grad is not None for p in model.parameters())


def test_without_qk_norm_there_are_no_such_parameters(build, tokens):
    model = build(qk_norm=False)
    assert not [name for name, _ in model.named_parameters() if "q_norm" in name or "k_norm" in name]
    assert torch.isfinite(model(tokens)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 5}, r"d_model \(32\).*n_heads \(5\)"),
        ({"n_kv_heads": 3}, r"n_heads \(4\).*n_kv_heads \(3\)"),
        ({"top_k": 5}, r"top_k \(5\).*n_experts \(4\)"),
        ({"top_k": 0}, r"top_k \(0\) must be at least 1"),
        ({"head_dim": 7}, r"head_dim \(7\)"),
        ({"partial_rotary_factor": 0.4}, r"partial_rotary_factor \(0.4\) of a head's 8 channels makes 3;"),
        ({"partial_rotary_factor": 0.1}, r"partial_rotary_factor \(0.1\) of a head's 8 channels makes 0;"),
        ({"partial_rotary_factor": 2.0}, r"partial_rotary_factor \(2.0\) must be above 0 and at most 1"),
        ({"partial_rotary_factor": 0.0}, r"partial_rotary_factor \(0.0\) must be above 0"),
        ({"first_k_dense_replace": -1}, r"first_k_dense_replace \(-1\) must be at least 0"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
