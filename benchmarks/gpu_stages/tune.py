"""What is guessed and not tuned: tiles of the Triton kernels, rows and chunks of the loss, padding of documents.

Reported, not changed: a default that loses by more than the spread is changed by hand, with these figures.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F

from gpu_stages.models import TINY, autocast, forward, make_batches, make_model, seconds_of, shape_of
from gpu_stages.references import choices
from gpu_stages.run import Run
from moe.model import loss
from moe.model.experts import Products, experts_grouped_mm, experts_triton
from moe.model.kernels import grouped_gemm
from moe.model.loss import linear_cross_entropy

NEEDED = 35  # seconds without which no shape is begun: grouped_mm, Triton as it is, one tile, each compiled


def tune(run: Run) -> None:
    _chunks(run)
    _padding(run)
    for name in ("500m", "fine") if not run.dry else ("500m",):
        if run.left() < NEEDED and not run.dry:
            run.figure(f"{name}: left out", f"only {run.left():.0f} s were left")
            continue
        _experts(run, name)


def _experts(run: Run, name: str) -> None:
    """Forward and backward of one layer's experts on 16,384 tokens, as bf16."""
    shape, _ = shape_of(run, name)
    n_tokens = 16384 if not run.dry else 32
    width, hidden, n_experts, top_k = (shape[k] for k in ("d_model", "expert_hidden", "n_experts", "top_k"))
    dtype = torch.bfloat16 if not run.dry else torch.float32
    expert_TK = choices(n_tokens, n_experts, top_k, "even", torch.Generator().manual_seed(0)).to(run.device)
    counts = torch.bincount(expert_TK.flatten(), minlength=n_experts)
    leaves = [
        torch.randn(*size, device=run.device, dtype=dtype).mul_(0.05).requires_grad_()
        for size in ((n_tokens * top_k, width), (n_experts, 2 * hidden, width), (n_experts, width, hidden))
    ]
    grad = torch.randn(n_tokens * top_k, width, device=run.device, dtype=dtype)
    flops = 18 * n_tokens * top_k * width * hidden

    def rate(products: Products) -> float:
        def once() -> None:
            for leaf in leaves:
                leaf.grad = None
            x, w13, w2 = leaves
            products(x, w13, w2, counts).backward(grad)

        return (
            flops / seconds_of(once, run.device, repeats=10 if not run.dry else 1, warm=2 if not run.dry else 0) / 1e12
        )

    if hasattr(F, "grouped_mm") and not run.dry:
        run.figure(f"{name}: experts, grouped_mm", rate(experts_grouped_mm), "TFLOP/s", top=True)
    if importlib.util.find_spec("triton") is None:
        return
    run.figure(f"{name}: experts, Triton as it is", rate(experts_triton), "TFLOP/s", top=True)
    sizes = product((64, 128), (32, 64), (4, 8)) if not run.dry else [(16, 16, 4)]
    rows = [{"BLOCK_N": n, "BLOCK_K": k, "num_warps": warps, "num_stages": 3} for n, k, warps in sizes]
    _tiles(run, f"{name}: experts, rows", "_tile", rows, lambda: rate(experts_triton))
    counts_of = product((32, 64), (4, 8)) if not run.dry else [(16, 4)]
    weights = [{"BLOCK_N": n, "num_warps": warps, "num_stages": 3} for n, warps in counts_of]
    _tiles(run, f"{name}: experts, weight gradient", "_weight_tile", weights, lambda: rate(experts_triton))


def _tiles(run: Run, name: str, function: str, tiles: list[dict[str, int]], rate: Callable[[], float]) -> None:
    """The best of `tiles` where `function` of grouped_gemm gives them; as many as there is time for."""
    plain, found = getattr(grouped_gemm, function), {}
    try:
        for tile in tiles:
            if run.left() < 20 and not run.dry:
                break
            setattr(grouped_gemm, function, lambda tile=tile, **_: tile)
            try:
                found[", ".join(f"{key} {value}" for key, value in tile.items())] = rate()
            except Exception as error:  # more shared memory than the card has
                run.figure(f"{name}: tile of {tile} does not run", str(error).splitlines()[0][:200])
    finally:
        setattr(grouped_gemm, function, plain)
    best = max(found, key=lambda key: found[key], default=None)
    if best is not None:
        run.figure(f"{name}, best Triton tile ({best})", found[best], "TFLOP/s")


def _chunks(run: Run) -> None:
    n_tokens, width, vocabulary = (32768, 768, 50257) if not run.dry else (64, 16, 97)
    x = torch.randn(n_tokens, width, device=run.device).requires_grad_()
    w = torch.randn(vocabulary, width, device=run.device).mul_(0.02).requires_grad_()
    target = torch.randint(0, vocabulary, (n_tokens,), device=run.device)
    flops = 6 * n_tokens * width * vocabulary
    names = {"cpu": "CHUNK_LOGITS_CPU", "cuda": "CHUNK_LOGITS_GPU"}
    attribute = names[run.device]
    before = getattr(loss, attribute)

    def once(fused: str | None) -> None:
        x.grad = w.grad = None
        with autocast(run):
            linear_cross_entropy(x, w, target, z_weight=1e-4, fused=fused).loss.backward()

    try:
        for bits in range(25, 29) if not run.dry else (10, 11):
            setattr(loss, attribute, 2**bits)
            for fused in (None, "inductor") if not run.dry else (None, "aot_eager"):
                seconds = seconds_of(lambda fused=fused: once(fused), run.device, repeats=5, warm=3)
                how = "fused" if fused else "eager"
                run.figure(f"loss, chunks of 2^{bits} logits, {how}", flops / seconds / 1e12, "TFLOP/s",
                           top=2**bits == before)  # fmt: skip
    finally:
        setattr(loss, attribute, before)


def _padding(run: Run) -> None:
    """A microbatch of the pack's text with more and more room for documents that are not there."""
    shape, seq_len = shape_of(run, "500m")
    model = make_model(run, {**(TINY if run.dry else shape), "n_layers": 2})
    batch = make_batches(run, 8 if not run.dry else 2, seq_len, 1)[0]
    room = batch["ends"].shape[1]
    while room <= seq_len:
        padded = F.pad(batch["ends"], (0, room - batch["ends"].shape[1]), value=seq_len)
        seconds = seconds_of(
            lambda padded=padded: forward(run, model, {**batch, "ends": padded})[0].backward(),
            run.device, repeats=5 if not run.dry else 1,
        )  # fmt: skip
        run.figure(f"two layers, room for {room} documents a sequence", 1e3 * seconds, "ms")
        room *= 4
