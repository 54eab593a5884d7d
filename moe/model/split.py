"""Along which dimension ranks that share a model divide a tensor of experts. No torch: the estimate asks too.

By their number, where it is a multiple of the ranks: each expert is complete on one rank. Else along the first other
dimension that is, each rank having a part of every expert. Else by their number, padded to a multiple.
"""

from __future__ import annotations


def expert_shapes(n_experts: int, d_model: int, expert_hidden: int) -> tuple[tuple[int, int, int], ...]:
    """Of w13 and w2."""
    return (n_experts, 2 * expert_hidden, d_model), (n_experts, d_model, expert_hidden)


def expert_dim(shape: tuple[int, ...], ranks: int) -> int:
    """shape: of all experts together."""
    return next((dim for dim, size in enumerate(shape) if size % ranks == 0), 0)


def is_padded(shape: tuple[int, ...], ranks: int) -> bool:
    """Whether a tensor of this shape is moved and kept as if it had a multiple of the ranks in experts."""
    return shape[expert_dim(shape, ranks)] % ranks != 0
