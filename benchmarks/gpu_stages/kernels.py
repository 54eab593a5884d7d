"""Every fast path against float64, by norm of the difference over norm of the reference: forward and every gradient.

Inputs are random and new for each check, memory is poisoned before it. Tolerances are what the dtype gives: fp32 far
below what TF32 would (3e-4), bf16 between 1e-3 and 1e-2.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_stages.models import autocast, error_of
from gpu_stages.references import attention_exact, choices, experts_exact, poison
from gpu_stages.run import Run
from gpu_stages.same_bits import repeated
from gpu_stages.whole_model import bf16_model, waiting
from moe.model import experts as experts_module
from moe.model.attention import attend, attend_packed
from moe.model.documents import document_causal_mask, document_ends, document_ids, pack
from moe.model.loss import linear_cross_entropy
from moe.model.router import Router
from moe.optim.newton_schulz import orthogonalize
from moe.train.tf32 import forbid_tf32

MOST = {torch.bfloat16: 1.5e-2, torch.float16: 2e-3, torch.float32: 2e-5}
CHOSEN = "the table's choice"  # nothing is forced
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def kernels(run: Run) -> None:
    forbid_tf32()
    if not run.dry:  # without it cuBLAS has no deterministic algorithms (same_bits); read when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    generator = torch.Generator().manual_seed(0)
    if not run.dry:  # other inputs each time; a failure can be had again
        run.figure("seed of the inputs", str(generator.seed()))
    for check in (
        _attention,
        _loss,
        _newton_schulz,
        _router,
        bf16_model,
        waiting,
        repeated,
        _experts,
    ):  # last what may last
        check(run, generator)


def _backends(run: Run) -> Iterator[tuple[str, torch.dtype]]:
    triton = importlib.util.find_spec("triton") is not None and (not run.dry or _interpreter_runs())
    if hasattr(F, "grouped_mm"):
        yield "grouped_mm", torch.bfloat16
    if triton:
        yield from (("triton", dtype) for dtype in ([torch.float32] if run.dry else MOST))
    yield from (("loop", dtype) for dtype in (torch.bfloat16, torch.float32))
    yield CHOSEN, torch.bfloat16


def _interpreter_runs() -> bool:
    """Triton's interpreter, of a dry run, breaks with newer numpy."""
    return tuple(int(part) for part in np.__version__.split(".")[:2]) < (2, 5)


def _shapes(run: Run, backend: str, dtype: torch.dtype) -> list[tuple[int, int, int, int]]:
    """Experts, top k, width, hidden. Each shape is compiled anew by Triton, so only bf16 has them all."""
    if run.dry:
        return [(4, 2, 32, 16)]
    if backend == CHOSEN:  # its width is not for grouped_mm
        return [(8, 2, 100, 72)]
    found = [(8, 2, 256, 384), (128, 8, 256, 384), (64, 8, 256, 384)]
    found = found if dtype == torch.bfloat16 else found[:1]
    return found if backend == "grouped_mm" else [*found, (8, 2, 100, 72)]


def _experts(run: Run, generator: torch.Generator) -> None:
    """The worst error of each backend over all shapes, for the output and each gradient."""
    n_tokens = 1999 if not run.dry else 37  # groups are then no multiple of 8
    for backend, dtype in _backends(run):
        shapes = _shapes(run, backend, dtype)
        worst = dict.fromkeys(("output", "dx", "dweight", "dw13", "dw2"), 0.0)
        where = dict.fromkeys(worst, "")
        for (n_experts, top_k, width, hidden), kind in product(shapes, ("even", "empty", "all")):
            shape = (n_tokens, width, hidden, n_experts, top_k)
            for name, error in _expert_errors(run, backend, dtype, shape, kind, generator).items():
                if not error <= worst[name]:  # NaN stays
                    worst[name], where[name] = error, f"E {n_experts}, top {top_k}, {kind}, {width}x{hidden}"
        for name, error in worst.items():
            most = MOST[dtype]
            run.figure(
                f"experts, {backend}, {SHORT[dtype]}: {name}",
                error,
                expected=most,
                source=f"at most; the worst is {where[name]}",
                check=bool(error <= most),
            )


def _expert_errors(
    run: Run, backend: str, dtype: torch.dtype, shape: tuple[int, ...], kind: str, generator: torch.Generator
) -> dict[str, float]:
    n_tokens, width, hidden, n_experts, top_k = shape
    expert_TK = choices(n_tokens, n_experts, top_k, kind, generator).to(run.device)
    counts_E = torch.bincount(expert_TK.flatten(), minlength=n_experts)
    given = (
        torch.randn(n_tokens, width, generator=generator),
        torch.rand(n_tokens, top_k, generator=generator),
        torch.randn(n_experts, 2 * hidden, width, generator=generator) / width**0.5,
        torch.randn(n_experts, width, hidden, generator=generator) / hidden**0.5,
    )
    x, weight, w13, w2 = leaves = [t.to(run.device, dtype).requires_grad_() for t in given]
    grad = torch.randn(n_tokens, width, generator=generator).to(run.device, dtype)
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    right = experts_exact(exact[0], exact[1], expert_TK, exact[2], exact[3])
    right.backward(grad.double())
    poison(run.device, 64 if not run.dry else 1)
    plain = experts_module.choose_backend
    if backend != CHOSEN:
        experts_module.choose_backend = lambda *_: backend  # type: ignore[assignment]
    try:
        out = experts_module.moe_experts(x, weight, expert_TK, w13, w2, counts_E)
        poison(run.device, 64 if not run.dry else 1)  # the forward pass has left numbers in what it gave back
        out.backward(grad)
    finally:
        experts_module.choose_backend = plain
    errors = {"output": error_of(out, right.detach())}
    for name, leaf, reference in zip(("dx", "dweight", "dw13", "dw2"), leaves, exact, strict=True):
        assert leaf.grad is not None and reference.grad is not None
        errors[name] = error_of(leaf.grad, reference.grad)
    return errors


def _attention(run: Run, generator: torch.Generator) -> None:
    """Masked and, on a GPU, varlen attention, with as many documents as real text has."""
    samples, seq_len, heads, kv_heads, channels = (4, 1024, 12, 4, 64) if not run.dry else (2, 64, 4, 2, 8)
    dtype = torch.bfloat16 if not run.dry else torch.float32
    tokens = torch.randint(1, 40, (samples, seq_len), generator=generator)
    tokens[tokens == 1] = 0  # EOS: 26 documents a sample of 1,024
    ids = document_ids(tokens, 0).to(run.device)
    shapes = [(samples, seq_len, h, channels) for h in (heads, kv_heads, kv_heads)]
    given = [torch.randn(*s, generator=generator).to(run.device, dtype) for s in shapes]
    grad = torch.randn(shapes[0], generator=generator).to(run.device, dtype)
    exact = [x.double().requires_grad_() for x in given]
    right = attention_exact(*exact, ids)
    right.backward(grad.double())
    mask = document_causal_mask(ids, dtype)
    packed = pack(document_ends(tokens, 0).to(run.device), seq_len)

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask, grouped=True)

    paths = {"masked": masked}
    if not run.dry:
        run.figure("attention, masked: a fused kernel takes it", _fused(lambda: masked(*given)))
        paths["varlen"] = lambda q, k, v: attend_packed(q, k, v, packed, grouped=True)
    for name, path in paths.items():
        leaves = [x.clone().requires_grad_() for x in given]
        poison(run.device, 16)
        out = path(*leaves)
        poison(run.device, 16)
        out.backward(grad)
        run.check_norm(f"attention, {name}: output", error_of(out, right.detach()), MOST[dtype])
        for letter, leaf, reference in zip("qkv", leaves, exact, strict=True):
            assert leaf.grad is not None and reference.grad is not None
            run.check_norm(f"attention, {name}: d{letter}", error_of(leaf.grad, reference.grad), MOST[dtype])


def _fused(attention: Callable[[], Tensor]) -> str:
    """Whether it runs without the kernel that keeps all scores."""
    try:
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
            attention()
    except RuntimeError as error:
        return f"no: {str(error).splitlines()[0]}"
    return "yes"


def _loss(run: Run, generator: torch.Generator) -> None:
    n_tokens, width, vocabulary = (4000, 256, 50257) if not run.dry else (50, 16, 97)
    x = torch.randn(n_tokens, width, generator=generator).to(run.device).requires_grad_()
    w = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(run.device).requires_grad_()
    target = torch.randint(0, vocabulary, (n_tokens,), generator=generator).to(run.device)
    target[::7] = -100
    x64, w64 = (t.detach().bfloat16().double().requires_grad_() for t in (x, w))
    logits = x64 @ w64.t()
    right = F.cross_entropy(logits, target, ignore_index=-100, reduction="sum")
    right = right + 1e-4 * (logits.logsumexp(-1)[target != -100] ** 2).sum()
    right.backward()
    for how, backend in (("eager", None), ("fused", "aot_eager" if run.dry else "inductor")):
        x.grad = w.grad = None
        poison(run.device, 64)
        with torch.autocast(run.device, torch.bfloat16):
            head = linear_cross_entropy(x, w, target, z_weight=1e-4, fused=backend)
        head.loss.backward()
        assert x.grad is not None and w.grad is not None and x64.grad is not None and w64.grad is not None
        run.check_norm(f"loss, bf16, {how}: sum", error_of(head.loss, right.detach()), 1e-3)
        run.check_norm(f"loss, bf16, {how}: dx", error_of(x.grad, x64.grad), MOST[torch.bfloat16])
        run.check_norm(f"loss, bf16, {how}: dw", error_of(w.grad, w64.grad), MOST[torch.bfloat16])


def _newton_schulz(run: Run, generator: torch.Generator) -> None:
    size = (4, 768, 2048) if not run.dry else (2, 24, 40)
    x = torch.randn(*size, generator=generator).to(run.device)
    found = torch.linalg.svdvals(orthogonalize(x.bfloat16()).float())
    low, high = float(found.min()), float(found.max())
    run.figure("Newton-Schulz, bf16: least singular value", low, expected=0.6, source="at least", check=low > 0.6)
    run.figure("Newton-Schulz, bf16: largest", high, expected=1.2, source="at most", check=high < 1.2)


def _router(run: Run, generator: torch.Generator) -> None:
    """With the flags that Composer's device leaves, and ours after it."""
    from composer.utils import get_device

    get_device("cpu" if run.dry else "gpu")  # Composer's own allows TF32
    router = Router(d_model=768, n_experts=64, top_k=8)
    torch.nn.init.normal_(router.weight, std=0.02, generator=generator)
    router = router.to(run.device)
    x = torch.randn(4096, 768, generator=generator).to(run.device)
    with autocast(run), torch.no_grad():
        found = router(x)
    logits = x.double() @ router.weight.detach().double().t()
    exact, chosen = logits.softmax(-1).topk(8, -1)
    same = (found.expert_TK == chosen).all(-1)
    share = float(same.double().mean())
    run.figure("router's choices equal to float64's", share, expected=0.999, source="at least", check=share >= 0.999)
    exact = (exact / exact.sum(-1, keepdim=True))[same]
    error = error_of(found.weight_TK[same], exact)
    run.check_norm("router's weights beside Composer's device (in TF32 above 1e-4)", error, 1e-5)
