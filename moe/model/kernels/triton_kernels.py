"""Triton kernels of the grouped matrix product. Imported only where they run: Triton is absent beside CPU wheels.

- Rows are sorted by group (expert); counts stay on the device. The grid is sized by the worst case, ceil(rows / tile)
  + groups tiles; each program finds its group from the counts, and what is left over returns at once. So nothing waits
  for the GPU, and a tile never straddles two groups.
- Accumulation in fp32; fp32 inputs are multiplied as fp32, not as TF32.
- Only Triton's builtins: helpers such as tl.zeros are jitted functions, which its interpreter takes only when it was on
  before Triton was first imported. UPCAST is for the interpreter, which multiplies bf16 as if it were integers.

A product has rows N, inner dimension K, columns J; groups G. BLOCK_* are the tile's sizes.
"""

import triton
import triton.language as tl


@triton.jit
def grouped_rows_kernel(
    x, w, out, counts,
    n_cols, n_inner, n_groups,
    x_row, x_inner, w_group, w_col, w_inner, out_row,
    BLOCK_N: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_K: tl.constexpr, GROUPS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out[n] = x[n] @ w[group of n].T: one program a tile of rows of one group and of columns."""
    groups = tl.arange(0, GROUPS)
    counts_G = tl.load(counts + groups, mask=groups < n_groups, other=0).to(tl.int32)
    tiles_G = (counts_G + BLOCK_N - 1) // BLOCK_N
    last_tile_G = tl.cumsum(tiles_G, 0)
    tile = tl.program_id(0)
    group = tl.sum((last_tile_G <= tile).to(tl.int32), 0)
    if group >= n_groups:
        return
    before = groups < group
    tile_in_group = tile - tl.sum(tl.where(before, tiles_G, 0), 0)
    end = tl.sum(tl.where(groups <= group, counts_G, 0), 0)
    rows = tl.sum(tl.where(before, counts_G, 0), 0) + tile_in_group * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    inner = tl.arange(0, BLOCK_K)
    row_mask, col_mask = rows < end, cols < n_cols
    x_tile = x + rows[:, None].to(tl.int64) * x_row + inner[None, :] * x_inner
    w_tile = w + group.to(tl.int64) * w_group + cols[None, :] * w_col + inner[:, None] * w_inner
    total = tl.full((BLOCK_N, BLOCK_J), 0.0, tl.float32)
    for start in range(0, n_inner, BLOCK_K):
        inner_mask = inner < n_inner - start
        a = tl.load(x_tile, mask=row_mask[:, None] & inner_mask[None, :], other=0.0)
        b = tl.load(w_tile, mask=inner_mask[:, None] & col_mask[None, :], other=0.0)
        if UPCAST:
            a, b = a.to(tl.float32), b.to(tl.float32)
        total = tl.dot(a, b, total, input_precision="ieee")
        x_tile += BLOCK_K * x_inner
        w_tile += BLOCK_K * w_inner
    out_tile = out + rows[:, None].to(tl.int64) * out_row + cols[None, :]
    tl.store(out_tile, total.to(out.dtype.element_ty), mask=row_mask[:, None] & col_mask[None, :])


@triton.jit
def grouped_weight_kernel(
    a, b, out, counts,
    n_cols_a, n_cols_b, n_groups,
    a_row, b_row,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_N: tl.constexpr, GROUPS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out[g] = a[rows of g].T @ b[rows of g]: one program a tile of one group's matrix; no rows, zeros."""
    group = tl.program_id(0)
    groups = tl.arange(0, GROUPS)
    counts_G = tl.load(counts + groups, mask=groups < n_groups, other=0).to(tl.int32)
    first = tl.sum(tl.where(groups < group, counts_G, 0), 0)
    end = tl.sum(tl.where(groups <= group, counts_G, 0), 0)
    tiles_b = (n_cols_b + BLOCK_J - 1) // BLOCK_J
    cols_a = tl.program_id(1) // tiles_b * BLOCK_I + tl.arange(0, BLOCK_I)
    cols_b = tl.program_id(1) % tiles_b * BLOCK_J + tl.arange(0, BLOCK_J)
    mask_a, mask_b = cols_a < n_cols_a, cols_b < n_cols_b
    total = tl.full((BLOCK_I, BLOCK_J), 0.0, tl.float32)
    for start in range(first, end, BLOCK_N):
        rows = start + tl.arange(0, BLOCK_N)
        row_mask = rows < end
        a_rows, b_rows = rows.to(tl.int64) * a_row, rows.to(tl.int64) * b_row
        a_tile = tl.load(a + a_rows[None, :] + cols_a[:, None], mask=mask_a[:, None] & row_mask[None, :], other=0.0)
        b_tile = tl.load(b + b_rows[:, None] + cols_b[None, :], mask=row_mask[:, None] & mask_b[None, :], other=0.0)
        if UPCAST:
            a_tile, b_tile = a_tile.to(tl.float32), b_tile.to(tl.float32)
        total = tl.dot(a_tile, b_tile, total, input_precision="ieee")
    out_tile = out + (group.to(tl.int64) * n_cols_a + cols_a[:, None]) * n_cols_b + cols_b[None, :]
    tl.store(out_tile, total.to(out.dtype.element_ty), mask=mask_a[:, None] & mask_b[None, :])
