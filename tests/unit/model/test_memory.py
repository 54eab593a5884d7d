"""The computed peak of a training step against that of the CPU's allocator."""

import contextlib

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from moe.model import Transformer, activations, attention, loss, memory
from moe.model.kernels import expert_loop
from moe.model.memory import Step, imbalance_bytes, optimizer_bytes, step_memory
from moe.optim.groups import build_groups
from moe.optim.muon import Muon

SHAPE = {
    "vocab_size": 16384,
    "d_model": 256,
    "n_layers": 4,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_experts": 8,
    "top_k": 2,
    "expert_hidden": 640,
}  # 21M parameters
SEQ_LEN = 256


def measured_peak(step: Step, optimizer: str) -> tuple[int, int]:
    """Most bytes that were allocated at a time, in an optimizer step and the next backward pass, and those of the
    optimizer's state.
    """
    cast = torch.autocast("cpu", torch.bfloat16) if step.bf16 else contextlib.nullcontext()
    torch.manual_seed(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        options = ("n_shared_experts", "first_k_dense_replace", "dense_hidden", "qk_norm", "activation_checkpointing")
        more = {name: getattr(step, name) for name in options}
        model = Transformer(**SHAPE, **more, eos_id=0)
        muon = Muon(build_groups(model, name=optimizer, lr=1e-3, weight_decay=0.1))
        for samples in (1, *[step.microbatch] * (2 if step.accumulated else 1)):
            tokens = torch.randint(1, step.vocab_size, (samples, SEQ_LEN))
            with cast:
                parts = model(tokens, tokens)
            (parts.loss + 0.01 * parts.routers.score_E.sum() + 0.001 * parts.routers.z.sum()).backward()
            del parts
            if not muon.state:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                muon.step()
                muon.zero_grad(set_to_none=True)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak, sum(value.nbytes for state in muon.state.values() for value in state.values())


@pytest.mark.parametrize(
    ("microbatch", "changes", "optimizer"),
    [
        (1, {}, "muon"),
        (4, {}, "muon"),
        (4, {"n_shared_experts": 3, "accumulated": False}, "muon"),
        (4, {"first_k_dense_replace": 2, "dense_hidden": 4000, "qk_norm": "full"}, "muon"),
        (4, {"first_k_dense_replace": 1, "n_shared_experts": 1, "bf16": True, "accumulated": False}, "adamw"),
        (1, {"activation_checkpointing": True}, "muon"),
        (4, {"activation_checkpointing": True}, "muon"),
        (4, {"accumulated": False}, "adamw"),
        (4, {"bf16": True}, "adamw"),
    ],
    ids=str,
)
def test_the_computed_peak_is_within_a_tenth_of_the_allocators(microbatch, changes, optimizer):
    settings = {"bf16": False, "muon": optimizer == "muon", **changes}
    step = Step(**SHAPE, seq_len=SEQ_LEN, microbatch=microbatch, gpu=False, **settings)
    measured, state = measured_peak(step, optimizer)
    found = step_memory(step)
    assert found.total == pytest.approx(measured, rel=0.1), found
    assert optimizer_bytes(step) == pytest.approx(state, rel=0.001)


def test_chunks_and_blocks_are_those_of_the_model():
    assert (memory.CHUNK_LOGITS_CPU, memory.CHUNK_LOGITS_GPU) == (loss.CHUNK_LOGITS_CPU, loss.CHUNK_LOGITS_GPU)
    assert loss.PADDED_TO == {"cuda": memory.PADDED_TO_GPU}
    assert activations.CPU_QUERY_BLOCK == attention.CPU_QUERY_BLOCK
    assert memory.CPU_BLOCK_ROWS == expert_loop.BLOCK_ROWS


def test_the_worst_router_costs_memory_in_the_loop_over_experts_and_none_in_one_kernel():
    assert imbalance_bytes(Step(**SHAPE, seq_len=SEQ_LEN, microbatch=64, gpu=False, bf16=False)) > 0
    assert imbalance_bytes(Step(**SHAPE, seq_len=SEQ_LEN, microbatch=1024, gpu=True, bf16=True)) == 0


def test_more_gpus_divide_what_is_sharded_and_leave_activations_alone():
    one = Step(**SHAPE, seq_len=SEQ_LEN, microbatch=64, gpu=True, bf16=True)
    eight = Step(**SHAPE, seq_len=SEQ_LEN, microbatch=64, gpu=True, bf16=True, n_gpus=8)
    alone, shared = step_memory(one), step_memory(eight)
    assert (shared.weights, shared.optimizer) == (alone.weights // 8, alone.optimizer // 8)
    assert shared.activations == alone.activations


def test_attentions_backward_pass_has_what_flash_attention_allocates():
    """By hand, of 2 samples of 2,048 tokens in 12 heads of 80 (rounded to 96) over 4 of keys and values."""
    shape = {**SHAPE, "d_model": 960, "n_heads": 12, "n_kv_heads": 4}
    step = Step(**shape, seq_len=2048, microbatch=2, gpu=True, bf16=True)
    tokens, rows = 2 * 2048, 2 * 2048 + 128 * 2 * 128  # 128 documents a sample, 128 rows more for each
    summed, softmax_d = 4 * rows * 12 * 96, 4 * rows * 12
    gradients = 2 * tokens * 80 * (12 + 12 + 4 + 4)
    expanded = 2 * (2 * tokens * 12 * 80)
    normed = 4 * tokens * 960
    found = memory.attention_backward_bytes(step)
    assert found == summed + softmax_d + gradients + expanded + normed
    same_heads = memory.attention_backward_bytes(
        Step(**{**shape, "n_kv_heads": 12}, seq_len=2048, microbatch=2, gpu=True, bf16=True)
    )
    assert same_heads == found - expanded + 2 * tokens * 80 * 2 * 8
    plain = memory.attention_backward_bytes(
        Step(**shape, seq_len=2048, microbatch=2, gpu=True, bf16=True, document_mask=False)
    )
    assert found - plain == 4 * (rows - tokens) * 12 * (96 + 1), "without documents no rows are added"
    for changes in ({"bf16": False}, {"gpu": False}):
        settings = {"gpu": True, "bf16": True, **changes}
        assert memory.attention_backward_bytes(Step(**shape, seq_len=2048, microbatch=2, **settings)) == 0


def test_many_short_documents_decide_the_peak_where_experts_are_small():
    """A model of wide attention and thin experts: the phase of the backward pass grows with the room for documents."""
    step = Step(**{**SHAPE, "expert_hidden": 32}, seq_len=2048, microbatch=8, gpu=True, bf16=True, accumulated=False)
    backward = next(phase for phase in memory.phases(step) if phase.phase == "backward")
    attention_alone = memory.attention_backward_bytes(step) - activations.experts_bytes(step)
    assert attention_alone > memory.backward_bytes(step)
    assert backward.workspace == attention_alone + 4 * step.tokens * step.d_model, "beside the residual's gradient"
    assert step_memory(step) == max(memory.phases(step), key=lambda phase: phase.total)


def test_what_fsdp2_gathers_is_in_fp32_and_cast_beside_it():
    step = Step(**SHAPE, seq_len=SEQ_LEN, microbatch=64, gpu=True, bf16=True, n_gpus=8)
    count = step.count
    matrices = count.attention + count.experts
    gathered = 4 * (2 * matrices // SHAPE["n_layers"] + count.embedding + count.head)
    loss = next(phase for phase in memory.phases(step) if phase.phase == "loss")
    assert loss.copies == gathered + 2 * matrices


def test_the_histogram_of_quantile_is_in_the_activations():
    from moe.config.balance import BALANCE_RULES

    for first in (0, 1):
        settings = {"first_k_dense_replace": first, "seq_len": SEQ_LEN, "microbatch": 1, "gpu": True, "bf16": True}
        plain, quantile = (
            activations.activation_bytes(Step(**SHAPE, **settings, bins=1000 * on)) for on in (False, True)
        )
        bins = (4 - first) * 8 * BALANCE_RULES["quantile"].bins
        assert quantile - plain == 3 * bins * 8, "layers of experts, 8 experts, 8 bytes"


def test_a_gpus_masked_attention_keeps_keys_and_values_of_each_head():
    def kept(**more):
        step = Step(**SHAPE, seq_len=SEQ_LEN, microbatch=2, **{"gpu": True, "bf16": False, **more})
        return activations.layer_bytes(step)

    repeated = 2 * SEQ_LEN * 4 * 2 * (256 - 128)  # tokens, bytes, keys and values, width of 4 heads less that of 2
    assert kept() - kept(document_mask=False) == repeated
    assert kept(bf16=True) == kept(bf16=True, document_mask=False), "varlen attention takes groups"
