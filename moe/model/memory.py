"""Bytes of one training step, from the shape alone: no module is built, torch is not imported.

A step has its peak in one of five phases, whose live tensors are counted as the code allocates them:

| phase     | live beside weights, optimizer state and gradients                                          |
|-----------|---------------------------------------------------------------------------------------------|
| loss      | activations of all layers, the loss's gradients of head and hidden states, a chunk's logits |
| backward  | activations of all layers, gradients inside the last layer                                  |
| dense     | activations of the first, dense layers, gradients inside the last of them                   |
| end       | gradients inside the first layer, the embedding's gradient                                  |
| optimizer | what Muon needs for its largest batch of matrices; AdamW's kernel needs nothing             |

- Activations are what autograd keeps until the backward pass, tensor by tensor (attention.py, router.py, experts.py,
  dispatch.py). The CPU's RMSNorm keeps a normalised copy, its masked attention a second output; the GPU's fused
  kernels do not (taken from their sources, not measured).
- Under bf16 every matrix has a bf16 copy that lives from its use to its backward pass.
- Several GPUs (FSDP2): weights, gradients and optimizer state are divided by their number. Gathered at a time are two
  blocks (one in use, one on its way), one block's gradient, embedding and head, in fp32, as they are gathered; the
  copies in bf16 stay beside them.
- Gradients are there before the backward pass where microbatches are accumulated; else they grow as activations go.
- No token is dropped, so the number of rows does not depend on the router. The CPU's loop over experts has buffers for
  a block of rows; a GPU's grouped kernels take all experts at once and keep their rows and two results more
  for the backward pass.
- On a GPU documents are lengths for varlen attention, in bf16; else they are a mask. Its backward pass sums the
  queries' gradient in fp32 with room for 128 tokens more a document, those that only pad the list included, and with
  grouped-query attention holds keys' and values' gradients for every query head (flash attention's source).
- torch.compile saves some of the activations that are counted here.

T tokens of a microbatch, D width, H query heads, G key-value heads, C channels of a head, E experts, K experts per
token, F expert hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from moe.model.step import Step

# As in loss.py; repeated, because it imports torch. A test compares them.
CHUNK_LOGITS_CPU = 2**22
CHUNK_LOGITS_GPU = 2**26
CPU_QUERY_BLOCK = 128  # as in attention.py
CPU_BLOCK_ROWS = 512  # as in expert_loop.py
QUANTILE_BINS = 1000  # as in balance.py
TOKENS_A_DOCUMENT = 16  # sets the room for documents in a sequence: FineWeb's batches have 32 to 128 at 2,048 tokens


class StepMemory(NamedTuple):
    """Bytes on one device at the step's peak; they add up to `total`. `phase` is where the peak is."""

    phase: str
    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    loss: int
    workspace: int

    @property
    def total(self) -> int:
        return sum(self[1:])


def optimizer_bytes(step: Step) -> int:
    """Momentum of Muon's matrices, two moments of what AdamW trains."""
    count = step.count
    matrices = count.attention + count.router + count.experts + count.shared + count.dense
    muon = matrices if step.muon else 0
    return muon * step.momentum_bytes + 8 * (count.total - muon)


def layer_bytes(step: Step, *, dense: bool = False) -> int:
    """What one block keeps for its backward pass, weights' copies left out; dense: one without experts."""
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
    common = residuals + normed + qk + attended + dropout
    if dense:
        return step.tokens * (common + _mlp_bytes(step, step.dense_width))
    router = 2 * 4 * step.n_experts + step.top_k * (3 * 8 + 2 * 4) + 8
    hidden = (4 if step.gpu else 2) * step.expert_hidden
    experts = c * step.top_k * ((2 if step.gpu else 1) * d + hidden) + (2 * d if step.bf16 and not step.gpu else 0)
    shared = _mlp_bytes(step, step.n_shared_experts * step.expert_hidden)
    return step.tokens * (common + router + experts + shared)


def _masked(step: Step) -> bool:
    """Whether documents are kept apart by a mask; varlen attention needs none."""
    return step.document_mask and not (step.gpu and step.bf16)


def _mlp_bytes(step: Step, hidden: int) -> int:
    """Of a token in an MLP that all pass: gate and up, silu(gate), its product with up; under bf16 also x, cast."""
    return step.compute * 4 * hidden + (2 * step.d_model if step.bf16 and hidden else 0)


def activation_bytes(step: Step) -> int:
    """What lives from the forward pass to the backward pass: all layers, or under activation checkpointing their inputs
    and one layer.
    """
    mask = step.tokens * step.seq_len * step.compute if _masked(step) else 0
    if step.activation_checkpointing:
        layers = 4 * step.tokens * step.d_model * step.n_layers
    else:
        layers = layer_bytes(step) * step.sparse + layer_bytes(step, dense=True) * step.first_k_dense_replace
    last_norm = (4 if step.gpu else 8) * step.tokens * step.d_model
    batch = 3 * 8 * step.tokens  # tokens, labels, shifted labels
    embedding = step.tokens * step.d_model * (1 if step.gpu else 4) if step.dropout else 0
    return mask + layers + last_norm + batch + embedding + histogram_bytes(step)


def histogram_bytes(step: Step) -> int:
    """Of balance quantile: of a microbatch, twice as its layers are stacked, and of the step so far."""
    return 3 * 8 * QUANTILE_BINS * step.n_experts * step.sparse if step.quantile else 0


def copy_bytes(step: Step) -> tuple[int, int]:
    """Weights that exist beside the fp32 ones, without and with those of one block that is recomputed."""
    attention = step.count.attention // step.n_layers
    sparse, dense = (step.count.experts + step.count.shared) // step.sparse, 3 * step.dense_width * step.d_model
    matrices = step.count.attention + step.count.experts + step.count.shared + step.count.dense
    block = attention + max(sparse, dense)
    if not step.bf16:
        casts = (0, 0)
    else:
        casts = (0, 2 * block) if step.activation_checkpointing else (2 * matrices, 2 * matrices)
    if step.n_gpus == 1:
        return casts
    whole = 4 * (2 * block + step.count.embedding + step.count.head)
    return whole + casts[0], whole + 4 * block + casts[1]


def loss_bytes(step: Step) -> tuple[int, int]:
    """Of the loss: at its own peak, and what stays of it until the backward pass."""
    d, v, c = step.d_model, step.vocab_size, step.compute
    budget = CHUNK_LOGITS_GPU if step.gpu else CHUNK_LOGITS_CPU
    rows = min(step.tokens, max(d, budget // v))
    logits = rows * v * (2 + 4 + 2 if step.bf16 else 4)
    casts = (
        2 * v * d * (2 if step.n_gpus == 1 else 1) if step.bf16 else 0
    )  # of the head, and a chunk's part of its grad
    kept = 4 * step.tokens * d + 4 * v * d
    return kept + 4 * step.tokens * d + logits + casts + rows * d * c, kept


def backward_bytes(step: Step) -> int:
    """Inside one block's backward pass, at its experts."""
    d, f, c = step.d_model, step.expert_hidden, step.compute
    rows = step.tokens * step.top_k
    largest = step.tokens if step.one_expert else max(-(-rows // step.n_experts), min(rows, CPU_BLOCK_ROWS))
    weights = step.count.experts // step.sparse * (2 + 4 if step.bf16 else 4)
    inside = 5 * c * rows * f if step.gpu else c * largest * (5 * f + 3 * d)
    scatter = rows * d * (c + (4 if step.bf16 else 0) + c)  # the weighted gradients, one row for each choice
    products = rows * d * c + weights + inside  # a GPU's outputs have gone by then
    return 2 * 4 * step.tokens * d + (max(scatter, products) if step.gpu else products)


def dense_backward_bytes(step: Step) -> int:
    """Inside a dense block's backward pass, at its MLP: what is between w2 and w13, and a matrix's gradient, cast."""
    weight = 2 * step.d_model * step.dense_width * (2 + 4 if step.bf16 else 4)
    return 2 * 4 * step.tokens * step.d_model + 5 * step.compute * step.tokens * step.dense_width + weight


def attention_backward_bytes(step: Step) -> int:
    """Inside one block's backward pass, at varlen attention."""
    if not (step.gpu and step.bf16 and step.document_mask):
        return 0
    h, g, c = step.n_heads, step.n_kv_heads, step.channels
    documents = step.microbatch * max(8, 1 << (step.seq_len // TOKENS_A_DOCUMENT - 1).bit_length())
    rounded = -(-c // 32) * 32 if c <= 128 else -(-c // 64) * 64
    summed = 4 * (step.tokens + 128 * documents) * h * (rounded + 1)
    gradients = 2 * step.tokens * c * (2 * h + 2 * g)  # of the output, of q, k and v
    expanded = 2 * 2 * step.tokens * h * c if h != g else 0
    return 2 * 4 * step.tokens * step.d_model + summed + gradients + expanded


def update_bytes(step: Step) -> int:
    """Of the optimizer's step: Muon's largest batch of matrices."""
    if not step.muon:
        return 0
    d, f, n = step.d_model, step.expert_hidden, step.n_layers
    q, kv = step.n_heads * step.channels, step.n_kv_heads * step.channels
    mlps = [(step.n_shared_experts * f, step.sparse), (step.dense_width, step.first_k_dense_replace)]
    mlps = [(hidden, layers) for hidden, layers in mlps if hidden]
    shapes = [((q, d), n), ((d, q), n), ((kv, d), 2 * n), ((step.n_experts, d), step.sparse)]
    batches = _joined(shapes + [((d, hidden), layers) for hidden, layers in mlps])
    batches += _joined([((hidden, d), 2 * layers) for hidden, layers in mlps])  # gate and up: a group of their own
    batches += [(2 * step.n_experts, f, d, False), (step.n_experts, d, f, False)]
    largest = 0
    for number, rows, cols, joined in batches:
        elements, gram = number * rows * cols, number * min(rows, cols) ** 2
        kept = 4 * elements * (2 if joined and number > 1 else 1)
        iteration = (3 * 2 if step.gpu else 2 * 4) * elements + (2 if step.gpu else 4) * 2 * gram
        largest = max(largest, kept + iteration)
    return largest


def _joined(shapes: list[tuple[tuple[int, int], int]]) -> list[tuple[int, int, int, bool]]:
    """Matrices of one shape are one batch."""
    sizes: dict[tuple[int, int], int] = {}
    for shape, number in shapes:
        sizes[shape] = sizes.get(shape, 0) + number
    return [(number, rows, cols, True) for (rows, cols), number in sizes.items()]


def phases(step: Step) -> list[StepMemory]:
    """Each phase's peak on one device."""
    weights = 4 * step.count.total // step.n_gpus
    optimizer = optimizer_bytes(step) // step.n_gpus
    activations = activation_bytes(step)
    copies, recomputing = copy_bytes(step)
    at_loss, kept = loss_bytes(step)
    before = weights if step.accumulated else 0
    head = 4 * step.vocab_size * step.d_model
    sparse_layer, dense_layer = layer_bytes(step), layer_bytes(step, dense=True)
    layer = sparse_layer if step.activation_checkpointing else 0
    inside = max(backward_bytes(step), attention_backward_bytes(step))
    first = 4 * step.tokens * step.d_model * 2

    def phase(name: str, gradients: int, copies: int, activations: int, loss: int, workspace: int) -> StepMemory:
        return StepMemory(name, weights, gradients, optimizer, copies, activations, loss, workspace)

    dense = []
    if step.first_k_dense_replace:
        kept_layers = 4 * step.tokens * step.d_model if step.activation_checkpointing else dense_layer
        live = kept_layers * step.first_k_dense_replace + (dense_layer if step.activation_checkpointing else 0)
        workspace = dense_backward_bytes(step)
        dense = [phase("dense", weights, recomputing, live, 0 if step.accumulated else head, workspace)]
    return [
        phase("loss", before, copies, activations, at_loss, 0),
        phase(
            "backward", before, recomputing, activations + layer, kept if not step.accumulated else kept - head, inside
        ),
        *dense,
        phase("end", weights, recomputing - copies, 0, 0, head + first),
        phase("optimizer", weights, 0, 0, 0, update_bytes(step) // step.n_gpus),
    ]


def step_memory(step: Step) -> StepMemory:
    """The step's peak on one device."""
    return max(phases(step), key=lambda found: found.total)


def imbalance_bytes(step: Step) -> int:
    """What the worst router adds to `step_memory`."""
    return step_memory(replace(step, one_expert=True)).total - step_memory(step).total
