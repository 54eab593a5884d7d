"""Bytes that live from the forward pass to the backward pass, tensor by tensor (attention.py, router.py, experts.py,
dispatch.py): of one block, and of all.

- The CPU's RMSNorm keeps a normalised copy, its masked attention a second output; the GPU's fused kernels do not.
- No token is dropped, so the number of rows does not depend on the router. A GPU's grouped kernels take all experts at
  once and keep their rows and two results more than the CPU's loop over experts.
- A GPU's compiled block keeps what Inductor's partitioner saves: inputs and outputs of products and of attention, and
  what a row is divided by. It computes again what stands between them: the sum behind attention, the norms, silu.
  A test holds the formula against the partitioner itself.

Letters as in memory.py.
"""

from __future__ import annotations

from moe.model.step import Step

CPU_QUERY_BLOCK = 128  # as in attention.py


def layer_bytes(step: Step, *, dense: bool = False) -> int:
    """What one block keeps for its backward pass, weights' copies left out; dense: one without experts."""
    around = _compiled_bytes(step) if step.inductor else _eager_bytes(step)
    around *= step.tokens
    return around + (mlp_bytes(step, step.dense_width) if dense else experts_bytes(step))


def experts_bytes(step: Step) -> int:
    """The part of `layer_bytes` that is gone when the backward pass is through with the router and its experts."""
    d, c = step.d_model, step.compute
    if step.inductor:
        router = 4 * step.n_experts + step.top_k * (3 * 8 + 4) + 3 * 4
        router += router_input_bytes(step)
        rows = c * step.top_k * (2 * d + 3 * step.expert_hidden)
    else:
        router = 2 * 4 * step.n_experts + step.top_k * (3 * 8 + 2 * 4) + 8
        hidden = (4 if step.gpu else 2) * step.expert_hidden
        rows = c * step.top_k * ((2 if step.gpu else 1) * d + hidden) + (2 * d if step.bf16 and not step.gpu else 0)
    return step.tokens * (router + rows) + mlp_bytes(step, step.n_shared_experts * step.expert_hidden)


def router_input_bytes(step: Step) -> int:
    """Of a token in a compiled block under bf16: the router's gradient is a product in fp32, whose input is kept in the
    place of the one in bf16, or beside it where a shared expert's products take that.
    """
    return (4 if step.n_shared_experts else 2) * step.d_model if step.inductor and step.bf16 else 0


def _eager_bytes(step: Step) -> int:
    """Of a token in what is the same for every block: residuals, norms, attention."""
    d, c = step.d_model, step.compute
    q, kv = step.n_heads * step.channels, step.n_kv_heads * step.channels
    wide = c if step.gpu else 4  # the CPU's norm keeps its input in fp32, and that input normalised
    norm = 0 if step.gpu else 4
    residuals = 2 * 4 * d + 2 * norm * d
    normed = (3 * 2 * d if step.bf16 else 4 * d) + 4 * d  # q, k and v cast each their own copy; a router takes fp32
    qk = (wide + norm) * (q + kv) if step.qk_norm else 0
    twice = step.document_mask and not step.gpu and step.seq_len > CPU_QUERY_BLOCK
    kept = q if _masked(step) and step.gpu else kv  # there keys and values are repeated for each head
    attended = c * (q + kept + kept + q + (q if twice else 0)) + 4 * (2 * step.n_heads + step.n_kv_heads + 2)
    dropout = 2 * d * (1 if step.gpu else c) if step.dropout else 0
    return residuals + normed + qk + attended + dropout


def _compiled_bytes(step: Step) -> int:
    """As `_eager_bytes`. One residual, both norms' outputs and attention's projection, of which the second residual is
    made again; queries and keys before their norm and behind RoPE.
    """
    d, c = step.d_model, step.compute
    q, kv = step.n_heads * step.channels, step.n_kv_heads * step.channels
    kept = q if _masked(step) else kv
    attended = c * (q + kept + kept + q) + 4 * step.n_heads
    normed_rows = 2 if step.qk_norm == "full" else step.n_heads + step.n_kv_heads
    qk = c * (q + kv) + 4 * normed_rows if step.qk_norm else 0
    return 4 * d + 3 * c * d + 2 * 4 + attended + qk + (2 * d if step.dropout else 0)


def _masked(step: Step) -> bool:
    """Whether documents are kept apart by a mask; varlen attention needs none."""
    return step.document_mask and not (step.gpu and step.bf16)


def mlp_bytes(step: Step, hidden: int) -> int:
    """Of an MLP that all tokens pass: gate and up, silu(gate), its product with up; under bf16 also x, cast. A compiled
    one makes silu(gate) again, and its x is the block's.
    """
    if step.inductor:
        return step.tokens * step.compute * 3 * hidden
    return step.tokens * (step.compute * 4 * hidden + (2 * step.d_model if step.bf16 and hidden else 0))


def activation_bytes(step: Step) -> int:
    """What lives from the forward pass to the backward pass: all layers, or under activation checkpointing their inputs
    and one layer.
    """
    mask = step.tokens * step.seq_len * step.compute if _masked(step) else 0
    if step.activation_checkpointing:
        layers = 4 * step.tokens * step.d_model * step.n_layers
    else:
        layers = layer_bytes(step) * step.sparse + layer_bytes(step, dense=True) * step.first_k_dense_replace
    batch = 3 * 8 * step.tokens  # tokens, labels, shifted labels
    embedding = step.tokens * step.d_model * (1 if step.gpu else 4) if step.dropout else 0
    return mask + layers + last_norm_bytes(step) + batch + embedding + histogram_bytes(step)


def last_norm_bytes(step: Step) -> int:
    """Kept by the norm behind all blocks, hence gone when the first block's backward pass begins."""
    return (4 if step.gpu else 8) * step.tokens * step.d_model


def histogram_bytes(step: Step) -> int:
    """Of a balance rule of quantiles: of a microbatch, twice as its layers are stacked, and of the step so far."""
    return 3 * 8 * step.bins * step.n_experts * step.sparse
