"""Blocks under torch.compile: one graph for all of them, none anew after warm-up, the same numbers."""

import pytest
import torch
from torch._dynamo.utils import counters
from torch._functorch import config as functorch_config

from moe.model import attention, experts, transformer
from moe.model.documents import document_ends


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


def step(model, tokens, **more):
    model.zero_grad()
    parts = model(tokens, tokens, **more)
    routers = parts.routers
    share = routers.counts_E / routers.counts_E.sum(-1, keepdim=True)
    (parts.loss / parts.targets + 0.01 * (share * routers.score_E).sum() + 1e-3 * routers.z.sum()).backward()
    return parts


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_compiled_blocks_give_the_same_step_from_one_graph(build, tokens, activation_checkpointing):
    plain = build(n_layers=3)
    compiled = build(n_layers=3, activation_checkpointing=activation_checkpointing)
    compiled.compile_blocks(backend="aot_eager")
    expected, parts = step(plain, tokens), step(compiled, tokens)
    assert graphs() == 1 and not counters["graph_break"]
    for name, value in expected._asdict().items():
        torch.testing.assert_close(getattr(parts, name), value, msg=name)
    assert torch.equal(parts.routers.counts_E, expected.routers.counts_E), "recomputation must not count a token twice"
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=name)


@pytest.mark.skipif(not hasattr(functorch_config, "backward_pass_autocast"), reason="this torch has no such setting")
def test_gradients_under_autocast_are_those_of_blocks_that_are_not_compiled(build, tokens):
    """The router's above all: fp32 products, of which a bf16 one differs by 2e-3."""
    plain, compiled = build(n_layers=1), build(n_layers=1)
    compiled.compile_blocks(backend="aot_eager")
    for model in (plain, compiled):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = model(tokens, tokens)
            loss = parts.routers.score_E.square().sum() + parts.routers.z.sum()
        loss.backward()
    (expected,), (found,) = (
        [p.grad for name, p in model.named_parameters() if name.endswith("router.weight")]
        for model in (plain, compiled)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_nothing_is_compiled_again_after_warm_up(build, tokens):
    model = build(n_layers=3, dropout=0.1)
    model.compile_blocks(backend="aot_eager")

    def round_of_training():
        step(model, tokens)
        step(model, tokens[:2])  # the last microbatch of a step
        model.eval()
        with torch.no_grad():
            model(tokens, tokens)
        model.train()

    round_of_training()
    warm = graphs()
    for seed in range(3):
        tokens = tokens[:, torch.randperm(20, generator=torch.Generator().manual_seed(seed))]  # other documents
        round_of_training()
    assert graphs() == warm and not counters["graph_break"]


@pytest.mark.parametrize(("heads", "document_mask"), [((4, 1), True), ((4, 2), False), ((4, 4), True)], ids=str)
def test_grouped_queries_compile_where_every_size_is_dynamic(build, tokens, heads, document_mask):
    """G1: torch 2.7 then hands over `enable_gqa` as no truth value, and nothing compiles."""
    plain = build(n_heads=heads[0], n_kv_heads=heads[1], document_mask=document_mask)
    compiled = build(n_heads=heads[0], n_kv_heads=heads[1], document_mask=document_mask)
    compiled.compiled = True
    for block in compiled.blocks:
        block.forward = torch.compile(block.forward, backend="aot_eager", fullgraph=True, dynamic=True)
    for part in (tokens, tokens[:2], tokens[:, :13]):
        expected, found = step(plain, part), step(compiled, part)
        torch.testing.assert_close(found.loss, expected.loss)
        for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, msg=name)
    assert not counters["graph_break"]


@pytest.mark.skipif(not hasattr(torch.nn.functional, "grouped_mm"), reason="grouped_mm came with torch 2.10")
def test_a_block_compiles_with_the_backend_of_newer_gpus(monkeypatch, build, tokens):
    monkeypatch.setattr(experts, "choose_backend", lambda *_: "grouped_mm")
    plain, compiled = build(n_layers=1), build(n_layers=1)
    compiled.compile_blocks(backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = step(plain, tokens), step(compiled, tokens)
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-3, atol=0)
    for (name, a), b in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (b.grad - a.grad).norm() <= 1e-2 * a.grad.norm(), name
    assert not counters["graph_break"] and graphs() == 1


@pytest.mark.skipif(not attention.HAS_VARLEN, reason="varlen_attn came with torch 2.11")
def test_more_documents_than_ever_compile_nothing_again(monkeypatch, build):
    """With varlen attention, on the meta device: the list of documents grows."""
    monkeypatch.setattr(transformer, "has_varlen", lambda *_: True)
    monkeypatch.setattr(experts, "choose_backend", lambda *_: "triton")
    tokens = torch.ones(2, 32, dtype=torch.int64)
    with torch.device("meta"):
        model = build()
        model.compile_blocks(backend="aot_eager")
        for last in (4, 12, 30):
            tokens[0, :last] = 0
            step(model, tokens.to("meta"), document_ends_BM=document_ends(tokens, 0).to("meta"))
    assert document_ends(tokens, 0).shape[1] == 32
    assert graphs() == 1


def test_names_in_the_state_are_those_of_the_plain_model(build):
    model = build()
    names = list(model.state_dict())
    model.compile_blocks(backend="aot_eager")
    assert list(model.state_dict()) == names == [name for name, _ in model.named_parameters()]


def test_generation_leaves_compiled_blocks_alone(build):
    from moe.model.generation import generate

    model = build(document_mask=False).eval()
    expected = list(generate(model, [5, 6], max_new_tokens=12, temperature=0))
    model.compile_blocks(backend="aot_eager")
    assert list(generate(model, [5, 6], max_new_tokens=12, temperature=0)) == expected
    assert graphs() == 0


@torch._dynamo.config.patch(recompile_limit=8)
def test_dense_and_sparse_blocks_have_room_for_the_graphs_of_every_size_and_of_evaluation(build, tokens):
    """torch's default of 8 graphs ended a run whose last microbatch has one sequence, which is a graph of its own."""
    model = build(n_layers=2, first_k_dense_replace=1, activation_checkpointing=True)
    model.compile_blocks(backend="aot_eager")
    for sequences in (3, 2, 1):
        step(model, tokens[:sequences])
        model.eval()
        with torch.no_grad():
            model(tokens[:sequences], tokens[:sequences])
        model.train()
    assert 8 < graphs() <= transformer.MOST_GRAPHS // 2
