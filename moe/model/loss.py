"""Cross-entropy of a linear head, over chunks of tokens: the full logits never exist.

- The gradients of hidden states and head are computed per chunk in the forward pass, while the chunk's logits are at
  hand, and scaled by the upstream gradient in the backward pass: no recomputation, one fp32 [V, D] buffer. With
  gradients off, none of it.
- The z-loss (squared logsumexp, PaLM, arXiv 2204.02311) has to be weighted before that, or head gradients of both
  parts would be kept. So its weight is an argument, `loss` carries the gradient of the weighted sum, and its parts
  are returned detached.
- Everything is a sum over targets, so that microbatches and ranks add up; the caller divides by the number of
  targets.
- Softmax is taken in fp32, products in autocast's dtype, the sum of the head's gradient over chunks in fp32.
- Between the two products of a chunk stand nine operations on its logits, each a pass over memory. `fused` compiles
  them into one function, for a GPU: a few passes. Same operations, other kernels; the eager ones stay the reference.
- On a GPU the head is given rows of zeros up to a multiple of 64. GPT-2's 50,257 is odd: no two rows of logits would be
  aligned alike, and cuBLAS has for that but kernels of older cards (on an H200 the loss ran at 105 TFLOP/s, with the
  zeros at 405). The added columns are -inf to the softmax, their gradient is 0, and nobody outside sees them.

T tokens, D width, V vocabulary, W: V rounded up.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe.model.precision import at_least_fp32, compute_dtype, no_autocast

IGNORE = -100
# Logits per chunk, where D tokens have fewer: on CPU near the caches, on GPU enough to fill it (256 MB of bf16).
CHUNK_LOGITS_CPU = 2**22
CHUNK_LOGITS_GPU = 2**27
PADDED_TO = {"cuda": 64}  # by device: W is a multiple of this


class HeadLoss(NamedTuple):
    """Scalar sums over targets, fp32 (float64 for a float64 model). loss = nll + z_weight * z; only it has gradient."""

    loss: Tensor
    nll: Tensor
    z: Tensor


def _padded_head(w_VD: Tensor, dtype: torch.dtype) -> Tensor:
    """The head in this dtype, on a GPU with rows of zeros: [W, D]."""
    missing = -w_VD.shape[0] % PADDED_TO.get(w_VD.device.type, 1)
    return F.pad(w_VD.to(dtype), (0, 0, 0, missing)) if missing else w_VD.to(dtype)


def _softmax_chunk(
    logits: Tensor, target: Tensor, valid: Tensor, vocabulary: int, z_weight: float, with_grad: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of a chunk's logits [T, W]: nll and z summed, and the gradient of the logits in their dtype. target [T, 1]; valid
    [T] is 1 or 0, in at least fp32. Where logits are that wide already they are used up.
    """
    dtype = logits.dtype
    logits = at_least_fp32(logits)
    if logits.shape[1] > vocabulary:
        logits[:, vocabulary:] = -torch.inf
    target_logit = logits.gather(1, target).squeeze(1)
    top = logits.amax(-1)
    exp = logits.sub_(top[:, None]).exp_()
    total = exp.sum(-1)
    lse = top + total.log()
    nll, z = ((lse - target_logit) * valid).sum(), (lse.square() * valid).sum()
    if not with_grad:
        return nll, z, None
    dlogits = exp.mul_(((1 + 2 * z_weight * lse) * valid / total)[:, None])
    if torch.compiler.is_compiling():  # a scatter would have the fp32 gradient written out before it
        is_target = torch.arange(logits.shape[1], device=logits.device) == target
        return nll, z, torch.where(is_target, dlogits - valid[:, None], dlogits).to(dtype)
    return nll, z, dlogits.scatter_add_(1, target, -valid[:, None]).to(dtype)


@functools.cache
def _compiled_chunk(backend: str) -> Callable[..., tuple[Tensor, Tensor, Tensor | None]]:
    return torch.compile(_softmax_chunk, backend=backend, fullgraph=True)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        w_VD: Tensor,
        target_T: Tensor,
        z_weight: float,
        dtype: torch.dtype,
        with_grad: bool,
        fused: str | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        softmax_chunk = _softmax_chunk if fused is None else _compiled_chunk(fused)
        # The head is cast in here, not outside: its gradient then reaches the fp32 weight without a detour over bf16.
        w = _padded_head(w_VD, dtype)
        exact = torch.promote_types(dtype, torch.float32)
        dx_TD = torch.empty_like(x_TD) if with_grad else None
        dw_WD = torch.zeros(w.shape, dtype=exact, device=w.device) if with_grad else None
        nll = torch.zeros((), dtype=exact, device=x_TD.device)
        z = torch.zeros_like(nll)
        budget = CHUNK_LOGITS_CPU if x_TD.device.type == "cpu" else CHUNK_LOGITS_GPU
        # At least D tokens: every chunk reads and writes all of the [V, D] buffer, and its logits are then no smaller.
        chunk = max(w_VD.shape[1], budget // w_VD.shape[0])
        # One buffer for all chunks: fresh memory would cost a page fault for every 4 KiB of logits.
        buffer = torch.empty(min(chunk, x_TD.shape[0]), w.shape[0], dtype=dtype, device=x_TD.device)
        for start in range(0, x_TD.shape[0], chunk):
            rows = slice(start, start + chunk)
            x = x_TD[rows].to(dtype)
            is_target = target_T[rows] != IGNORE
            target = torch.where(is_target, target_T[rows], 0)[:, None]
            valid = is_target.to(exact)
            logits = torch.mm(x, w.t(), out=buffer[: x.shape[0]])
            if fused is not None:  # the last chunk is shorter, and that is no reason to compile again
                for given in (logits, target, valid):
                    torch._dynamo.maybe_mark_dynamic(given, 0)
            chunk_nll, chunk_z, dlogits = softmax_chunk(logits, target, valid, w_VD.shape[0], z_weight, with_grad)
            nll += chunk_nll
            z += chunk_z
            if dx_TD is None or dw_WD is None or dlogits is None:
                continue
            dx_TD[rows] = dlogits @ w
            if dtype == exact:
                torch.addmm(dw_WD, dlogits.t(), x, out=dw_WD)
            else:
                dw_WD += dlogits.t() @ x
            del dlogits  # or it would live beside the next chunk's
        ctx.mark_non_differentiable(nll, z)
        ctx.set_materialize_grads(False)
        ctx.dx_TD, ctx.w_dtype = dx_TD, w_VD.dtype
        ctx.dw_VD = dw_WD if dw_WD is None else dw_WD[: w_VD.shape[0]]
        return nll + z_weight * z, nll, z

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None, None, None
        if ctx.dx_TD is None:
            raise RuntimeError("linear_cross_entropy keeps its gradients for one backward pass only")
        dx_TD, dw_VD = ctx.dx_TD.mul_(grad), ctx.dw_VD.mul_(grad)
        ctx.dx_TD = ctx.dw_VD = None  # scaled in place, hence used up
        return dx_TD, dw_VD.to(ctx.w_dtype), None, None, None, None, None


def linear_cross_entropy(
    x_TD: Tensor, w_VD: Tensor, target_T: Tensor, *, z_weight: float = 0.0, fused: str | None = None
) -> HeadLoss:
    """Cross-entropy of softmax(x @ w.T) against target_T (int64; -100 is no target), summed over targets.

    nll sums -log p(target), z sums logsumexp(logits)^2; loss = nll + z_weight * z is the one to differentiate, once.
    fused: the backend of torch.compile for what stands between a chunk's products; None computes it eagerly.
    """
    with_grad = torch.is_grad_enabled() and (x_TD.requires_grad or w_VD.requires_grad)
    dtype = compute_dtype(x_TD)
    with no_autocast(x_TD):
        return HeadLoss(*_LinearCrossEntropy.apply(x_TD, w_VD, target_T, z_weight, dtype, with_grad, fused))


class TokenScores(NamedTuple):
    """Of each of N tokens: its log probability (nats, at least fp32), and whether no other is more probable."""

    log_prob_N: Tensor
    greedy_N: Tensor


@torch.no_grad()
def token_scores(x_ND: Tensor, w_VD: Tensor, target_N: Tensor) -> TokenScores:
    """Of target_N (int64) under softmax(x @ w.T), over chunks of tokens."""
    dtype = compute_dtype(x_ND)
    with no_autocast(x_ND):
        w = _padded_head(w_VD, dtype)
        budget = CHUNK_LOGITS_CPU if x_ND.device.type == "cpu" else CHUNK_LOGITS_GPU
        log_probs, greedy = [], []
        for x, target in zip(x_ND.split(chunk := max(1, budget // w_VD.shape[0])), target_N.split(chunk), strict=True):
            logits = at_least_fp32((x.to(dtype) @ w.t())[:, : w_VD.shape[0]])
            log_probs.append(logits.gather(1, target[:, None]).squeeze(1) - logits.logsumexp(-1))
            greedy.append(logits.argmax(-1) == target)
    return TokenScores(torch.cat(log_probs), torch.cat(greedy))


def target_bytes(labels_BS: Tensor, bytes_V: Tensor) -> Tensor:
    """Bytes of text that the targets of unshifted labels stand for: int64 scalar. bytes_V holds those of each token."""
    target_N = labels_BS[:, 1:].flatten()
    is_target_N = target_N != IGNORE
    return (bytes_V[torch.where(is_target_N, target_N, 0)] * is_target_N).sum()
