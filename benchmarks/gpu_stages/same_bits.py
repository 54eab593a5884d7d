"""What the stage `kernels` asks of one computation done again: the same bits? Where not, which gradients differ.

- Sequences are as long as in training. Atomic additions show in long ones only: two of them commute, and a document of
  256 tokens has no more than two blocks of keys.
- Then once more in a fixed order, as a run has it (`deterministic`): the full model must then give the same bits. What
  that costs is in `step`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_stages.models import forward, make_batches, make_model, shape_of
from gpu_stages.references import choices
from gpu_stages.run import Run
from moe.model import Transformer
from moe.model.attention import attend_packed
from moe.model.documents import pack
from moe.model.experts import Products, experts_grouped_mm, experts_triton
from moe.model.kernels.dispatch import sort_by_expert, to_experts
from moe.model.loss import linear_cross_entropy
from moe.train.callbacks.fixed_order import fixed_order

Work = Callable[[], dict[str, Tensor]]
SEQ_LEN = 2048
DOCUMENTS = ((SEQ_LEN,), (1000, SEQ_LEN))  # where the documents of each sequence end
TIMES = 5
NEEDED = 45  # seconds without which nothing is compiled


def repeated(run: Run, generator: torch.Generator) -> None:
    """Operations first, then the full model on real text, eager and compiled."""
    for name, work in _operations(run, generator).items():
        _report(run, name, work)
        _report(run, name, work, deterministic=True)
    shape, _ = shape_of(run, "500m")
    model = make_model(run, shape)
    work = _gradients(run, model, 2)
    _report(run, "full model", work)
    _report(run, "full model", work, deterministic=True)
    if run.left() < NEEDED and not run.dry:
        run.figure("same bits again: full model, compiled", f"left out: only {run.left():.0f} s were left")
        return
    model.compile_blocks("aot_eager" if run.dry else "inductor")
    _report(run, "full model, compiled", work, deterministic=True)


def differing(work: Work, times: int) -> list[str]:
    """The names of what has other bits in any of `times` more runs."""
    first = {name: value.clone() for name, value in work().items()}
    found: set[str] = set()
    for _ in range(times):
        found |= {name for name, value in work().items() if not torch.equal(value, first[name])}
    return [name for name in first if name in found]


def by_group(names: list[str]) -> str:
    """Parameters of all layers under one name, with the layers: `attn.q_proj (3 layers, the last 11)`. The backward
    pass begins at the last layer: what differs there alone is where the difference comes from.
    """
    layers: dict[str, list[int]] = {}
    for name in names:
        number = re.match(r"blocks\.(\d+)\.", name)
        layers.setdefault(re.sub(r"^blocks\.\d+\.|\.weight$", "", name), []).extend([int(number[1])] if number else [])
    return ", ".join(
        f"{group} ({len(found)} layers, the last {max(found)})" if found else group for group, found in layers.items()
    )


def _report(run: Run, name: str, work: Work, *, deterministic: bool = False) -> None:
    row = f"same bits again{', deterministic' * deterministic}: {name}"
    top = name.startswith("full model")
    needed = top and deterministic
    try:
        with fixed_order(deterministic):
            found = differing(work, TIMES if not run.dry else 1)
    except RuntimeError as error:  # an operation that has no deterministic algorithm
        run.figure(row, f"does not run: {str(error).splitlines()[0][:200]}", check=False if needed else None, top=top)
        return
    run.figure(row, "no" if found else "yes", check=not found if needed else None, top=top)
    if found:
        run.figure(f"{row}: what differs", by_group(found))


def _gradients(run: Run, model: Transformer, samples: int) -> Work:
    """Loss and every gradient of a microbatch of the pack's text."""
    batch = make_batches(run, samples, SEQ_LEN if not run.dry else 64, 1)[0]

    def work() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        loss = forward(run, model, batch)[0]
        loss.backward()
        return {"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    return work


def _operations(run: Run, generator: torch.Generator) -> dict[str, Work]:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(run.device, torch.bfloat16)

    def leaves_of(*tensors: Tensor) -> list[Tensor]:
        return [tensor.clone().requires_grad_() for tensor in tensors]

    def gradients(**leaves: Tensor) -> dict[str, Tensor]:
        return {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}

    n, width, vocabulary, n_experts = (4096, 768, 50257, 8) if not run.dry else (40, 64, 400, 4)
    tokens = make_batches(run, 2, n // 2, 1)[0]["tokens"]
    table, grad = random(vocabulary, width).float(), random(2, n // 2, width).float()

    def embedding() -> dict[str, Tensor]:
        (weight,) = leaves_of(table)
        F.embedding(tokens, weight).backward(grad)
        return gradients(weight=weight)

    expert_TK = choices(n, n_experts, 2, "even", generator).to(run.device)
    counts = torch.bincount(expert_TK.flatten(), minlength=n_experts)
    x, w13, w2 = random(n, width), random(n_experts, 2 * width, width), random(n_experts, width, width)

    def experts(products: Products) -> dict[str, Tensor]:
        leaves = leaves_of(x, w13, w2)
        out = products(to_experts(leaves[0], sort_by_expert(expert_TK)), leaves[1], leaves[2], counts)
        out.float().square().sum().backward()
        return gradients(x=leaves[0], w13=leaves[1], w2=leaves[2])

    def head() -> dict[str, Tensor]:
        hidden, weight = leaves_of(x, table)
        with torch.autocast(run.device, torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, tokens.flatten(), z_weight=1e-4).loss
        loss.backward()
        return {"loss": loss.detach(), **gradients(x=hidden, weight=weight)}

    found: dict[str, Work] = {"embedding": embedding, "loss": head}
    if not run.dry:
        found["varlen attention"] = varlen_attention(run, random)
        found["experts, grouped_mm"] = lambda: experts(experts_grouped_mm)
        found["experts, triton"] = lambda: experts(experts_triton)
    return found


def varlen_attention(run: Run, random: Callable[..., Tensor]) -> Work:
    """Documents of `DOCUMENTS`, 12 heads, 4 of keys and values."""
    ends = torch.full((len(DOCUMENTS), 8), SEQ_LEN, dtype=torch.int32)
    for row, found in zip(ends, DOCUMENTS, strict=True):
        row[: len(found)] = torch.tensor(found)
    packed = pack(ends.to(run.device), SEQ_LEN)
    q, k, v, grad = (random(len(DOCUMENTS), SEQ_LEN, heads, 64) for heads in (12, 4, 4, 12))

    def work() -> dict[str, Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
        out = attend_packed(leaves[0], leaves[1], leaves[2], packed, grouped=True)
        out.backward(grad)
        gradients = {f"d{name}": leaf.grad for name, leaf in zip("qkv", leaves, strict=True) if leaf.grad is not None}
        return {"output": out.detach(), **gradients}

    return work
