"""Bytes of one training step, from the shape alone: no module is built, torch is not imported.

A step has its peak in one of six phases, whose live tensors are counted as the code allocates them:

| phase     | live beside weights, optimizer state and gradients                                            |
|-----------|-----------------------------------------------------------------------------------------------|
| forward   | under activation checkpointing: the layers' inputs, what one layer holds as it is computed    |
| loss      | activations of all layers, the loss's gradients of head and hidden states, a chunk's logits   |
| backward  | activations of all layers, gradients inside the last layer                                    |
| dense     | activations of the first, dense layers, gradients inside the last of them                     |
| end       | gradients inside the first layer, the embedding's gradient                                    |
| optimizer | what Muon needs for its largest batch of matrices; AdamW's kernel needs nothing               |

- Activations are what autograd keeps until the backward pass (activations.py). What a block has kept goes piece by
  piece in its backward pass, last made first; a peak inside it is counted beside what is still there.
- A head tied to the embedding has its gradient wait for the embedding's, until the end of the backward pass.
- Under bf16 every matrix has a bf16 copy that lives from its use to its backward pass.
- Several GPUs (FSDP2): weights, gradients and optimizer state are divided by their number. Gathered at a time are two
  blocks (one in use, one on its way), one block's gradient, embedding and head, in fp32, as they are gathered; the
  copies in bf16 stay beside them.
- Gradients are there before the backward pass where microbatches are accumulated; else they grow as activations go.
- The CPU's loop over experts has buffers for a block of rows; a GPU's grouped kernels take all experts at once.
- On a GPU documents are lengths for varlen attention, in bf16; else they are a mask. Flash attention's backward pass
  (by its source) sums the queries' gradient in fp32, with room for 128 tokens more a document, those that only pad the
  list included, and with grouped-query attention holds keys' and values' gradients for every query head.
- cuBLAS's workspaces (on an H200 2 x 32 MiB) are not in here, though torch's allocator counts them.

T tokens of a microbatch, D width, H query heads, G key-value heads, C channels of a head, E experts, K experts per
token, F expert hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from moe.model.activations import activation_bytes, experts_bytes, last_norm_bytes, layer_bytes, mlp_bytes
from moe.model.step import Step

# As in loss.py; repeated, because it imports torch. A test compares them.
CHUNK_LOGITS_CPU = 2**22
CHUNK_LOGITS_GPU = 2**27
PADDED_TO_GPU = 64
CPU_BLOCK_ROWS = 512  # as in expert_loop.py
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
    gathered = 4 * (2 * block + step.count.embedding + step.count.head)
    return gathered + casts[0], gathered + 4 * block + casts[1]


def loss_bytes(step: Step) -> tuple[int, int]:
    """Of the loss: at its own peak, and what stays of it until the backward pass."""
    d, c = step.d_model, step.compute
    budget = CHUNK_LOGITS_GPU if step.gpu else CHUNK_LOGITS_CPU
    rows = min(step.tokens, max(d, budget // step.vocab_size))
    v = -(-step.vocab_size // PADDED_TO_GPU) * PADDED_TO_GPU if step.gpu else step.vocab_size
    kept = 4 * step.tokens * d + 4 * v * d
    chunk = rows * v * (2 + 2 if step.bf16 else 4) + rows * d * c
    if step.bf16:  # of the head a copy; then the softmax in fp32, or a chunk's part of the head's gradient
        softmax, part = 0 if step.inductor else 4 * rows * v, 2 * v * d if step.n_gpus == 1 else 0
        chunk += 2 * v * d + max(softmax, part)
    return kept + 4 * step.tokens * d + chunk, kept


def forward_bytes(step: Step) -> int:
    """Inside a block's forward pass that keeps nothing, beside its input, at one of its products."""
    if step.inductor:  # what it would keep comes out of the graph, and is dropped then; with it comes its output
        return layer_bytes(step)
    d, c = step.d_model, step.compute
    held = 4 * d + (c + 4) * d + (c if step.bf16 else 0) * d  # residual, attention's output, both forms of the norm's
    rows = c * step.top_k * (d + max(4 * step.expert_hidden, 3 * step.expert_hidden + d)) if step.gpu else 0
    return step.tokens * (held + rows)


def backward_bytes(step: Step) -> int:
    """Inside one block's backward pass, at its experts, beside the gradient of the residual stream."""
    if step.gpu:
        return _kernels_backward_bytes(step)
    d, f, c = step.d_model, step.expert_hidden, step.compute
    rows = step.tokens * step.top_k
    largest = step.tokens if step.one_expert else max(-(-rows // step.n_experts), min(rows, CPU_BLOCK_ROWS))
    weights = step.count.experts // step.sparse * (2 + 4 if step.bf16 else 4)
    return 4 * step.tokens * d + rows * d * c + weights + c * largest * (5 * f + 3 * d)


def _kernels_backward_bytes(step: Step) -> int:
    """Of a GPU's grouped kernels, in order: the shared expert; each row's gradient, made beside all that the experts
    keep; the gradients of hidden values, when the output's row and the product's input are gone; at the end the
    matrices' gradients, cast to fp32, in the place of the matrices' own copies.
    """
    d, f, c = step.d_model, step.expert_hidden, step.compute
    rows, w2 = step.tokens * step.top_k, step.count.experts // step.sparse // 3
    width = step.n_shared_experts * f
    shared = mlp_backward_bytes(step, width) + step.tokens * d * c if width else 0
    hidden = c * max(rows * (2 * f - d), rows * f + w2)
    if step.inductor:  # the graph returns all gradients together
        made, matrices = rows * d * c, (3 * 4 + (2 * 2 - 3 * 2 if step.bf16 else 0)) * w2
    else:  # a row's gradient is made in fp32, of one that was cast to fp32
        cast = 4 * step.tokens * d if step.bf16 else 0
        made, hidden = cast + rows * d * (4 + 4 + (2 if step.bf16 else 0)), cast + hidden
        matrices = (2 * 4 + (2 * 2 - 3 * 2 if step.bf16 else 0)) * w2
    return max(shared, max(made, hidden) - mlp_bytes(step, width), matrices - experts_bytes(step))


def mlp_backward_bytes(step: Step, hidden: int) -> int:
    """Inside the backward pass of an MLP that all tokens pass, when the product's input is gone."""
    return step.compute * 2 * step.tokens * hidden


def dense_backward_bytes(step: Step) -> int:
    """Inside a dense block's backward pass, at its MLP; at its end a matrix's gradient, cast."""
    d, width = step.d_model, step.dense_width
    weight = 2 * d * width * (2 + 4 if step.bf16 else 4)
    inside = max(mlp_backward_bytes(step, width), weight - mlp_bytes(step, width))
    return (4 + step.compute) * step.tokens * d + inside


def attention_backward_bytes(step: Step) -> int:
    """Inside one block's backward pass, at flash attention, beside the gradient of the residual stream.

    Not counted: with `deterministic` and fewer documents times heads than the card has multiprocessors, the fp32 sum is
    there several times (flash attention's source).
    """
    if not (step.gpu and step.bf16):
        return 0
    h, g, c = step.n_heads, step.n_kv_heads, step.channels
    documents = step.microbatch * max(8, 1 << (step.seq_len // TOKENS_A_DOCUMENT - 1).bit_length())
    rounded = -(-c // 32) * 32 if c <= 128 else -(-c // 64) * 64
    alone = step.microbatch * -(-step.seq_len // 128) * 128
    rows = step.tokens + 128 * documents if step.document_mask else alone
    summed = 4 * rows * h * (rounded + 1)
    gradients = 2 * step.tokens * c * (2 * h + 2 * g)  # of the output, of q, k and v
    expanded = 2 * 2 * step.tokens * h * c if h != g else 0
    return 4 * step.tokens * step.d_model + summed + gradients + expanded


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
        wide = 2 if step.gpu else 4
        iteration = (3 * 2 if step.gpu else 2 * 4) * elements + wide * 2 * gram
        # A tall matrix's update comes out turned, and is copied; experts' new weights are made beside the old ones.
        applied = (wide * (2 if rows > cols else 1) + (0 if joined else 4)) * elements
        largest = max(largest, kept + max(iteration, applied))
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
    at_loss, _ = loss_bytes(step)
    before = weights if step.accumulated else 0
    head = 4 * step.vocab_size * step.d_model
    sparse_layer, dense_layer = layer_bytes(step), layer_bytes(step, dense=True)
    residual = 4 * step.tokens * step.d_model
    layer = sparse_layer - residual if step.activation_checkpointing else 0  # its input is counted
    inside = residual + max(backward_bytes(step), attention_backward_bytes(step) - experts_bytes(step))
    waiting = head if step.tie_embeddings or not step.accumulated else 0  # one gradient: it waits for the embedding's

    def phase(name: str, gradients: int, copies: int, activations: int, loss: int, workspace: int) -> StepMemory:
        return StepMemory(name, weights, gradients, optimizer, copies, activations, loss, workspace)

    dense = []
    if step.first_k_dense_replace:
        kept_layers = residual if step.activation_checkpointing else dense_layer
        live = kept_layers * step.first_k_dense_replace + (dense_layer if step.activation_checkpointing else 0)
        dense = [phase("dense", weights, recomputing, live, waiting, dense_backward_bytes(step))]
    forward = []
    if step.activation_checkpointing:
        inputs = activations - last_norm_bytes(step)
        forward = [phase("forward", before, recomputing, inputs, 0, forward_bytes(step))]
    return [
        *forward,
        phase("loss", before, copies, activations, at_loss, 0),
        phase("backward", before, recomputing, activations - last_norm_bytes(step) + layer, waiting, inside),
        *dense,
        phase("end", weights, recomputing - copies, 0, waiting if step.accumulated else 0, head + 2 * residual),
        phase("optimizer", weights, 0, 0, 0, update_bytes(step) // step.n_gpus),
    ]


def step_memory(step: Step) -> StepMemory:
    """The step's peak on one device."""
    return max(phases(step), key=lambda found: found.total)


def imbalance_bytes(step: Step) -> int:
    """What the worst router adds to `step_memory`."""
    return step_memory(replace(step, one_expert=True)).total - step_memory(step).total
