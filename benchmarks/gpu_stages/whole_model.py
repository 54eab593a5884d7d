"""What the stage `kernels` asks of the full model: right in bf16, never waiting for the GPU, the same bits again."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_stages.models import TINY, error_of, forward, make_batches, make_model, make_optimizer, tiny, wait
from gpu_stages.references import choices
from gpu_stages.run import Run
from moe.model import Transformer
from moe.model.attention import attend_packed
from moe.model.documents import pack
from moe.model.experts import Products, experts_grouped_mm, experts_triton
from moe.model.kernels.dispatch import sort_by_expert, to_experts
from moe.optim.muon import Muon


def bf16_model(run: Run, generator: torch.Generator) -> None:
    """The full model in bf16 against the same one in fp32 on the CPU."""
    shape = TINY if run.dry else {**TINY, "d_model": 256, "n_layers": 4, "head_dim": 64, "expert_hidden": 384,
                                  "n_experts": 8, "vocab_size": 50257}  # fmt: skip
    batch = make_batches(run, 2, 64 if run.dry else 512, 1)[0]
    model = make_model(run, shape)
    reference = make_model(run, shape).cpu()
    reference.load_state_dict(model.state_dict())
    tokens = batch["tokens"].cpu()
    parts = reference(tokens, tokens)
    extra = 0.01 * parts.routers.score_E.sum() + 0.001 * parts.routers.z.sum()
    right = parts.loss / parts.targets + extra / tokens.numel()
    right.backward()
    for how in ("eager", "compiled"):
        if how == "compiled":
            model.compile_blocks("aot_eager" if run.dry else "inductor")
        model.zero_grad()
        with torch.autocast(run.device, torch.bfloat16):
            parts = model(batch["tokens"], batch["tokens"], document_ends_BM=batch["ends"])
        extra = 0.01 * parts.routers.score_E.sum() + 0.001 * parts.routers.z.sum()
        loss = parts.loss / parts.targets + extra / tokens.numel()
        loss.backward()
        run.check_norm(f"model, bf16, {how}: loss", error_of(loss, right.detach().double()), 2e-3)
        exact = torch.cat([p.grad.flatten() for p in reference.parameters() if p.grad is not None]).double()
        found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).cpu()
        run.check_norm(f"model, bf16, {how}: gradient", error_of(found, exact), 5e-2)


def waiting(run: Run, generator: torch.Generator) -> None:
    """No operation of forward, backward and update waits for the GPU, which torch can be set to refuse. As many tokens
    as the embedding's gradient and the loss in chunks have paths of their own for.
    """
    batch = make_batches(run, 2, 64 if run.dry else 2048, 1)[0]
    for how in ("eager", "compiled"):
        model = make_model(run, tiny(run))
        if how == "compiled":
            model.compile_blocks("aot_eager" if run.dry else "inductor")
        optimizer = make_optimizer(model)

        def one_step(model: Transformer = model, optimizer: Muon = optimizer) -> None:
            forward(run, model, batch)[0].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        one_step()  # compiles, and warms what waits once
        wait(run.device)
        if not run.dry:
            torch.cuda.set_sync_debug_mode("error")
        try:
            one_step()
            waits = ""
        except RuntimeError as error:
            waits = str(error).splitlines()[0]
        finally:
            if not run.dry:
                torch.cuda.set_sync_debug_mode("default")
        run.figure(f"waits for the GPU, {how}", waits or "none", expected="none", check=not waits)


def repeated(run: Run, generator: torch.Generator) -> None:
    """The same step twice: bit for bit, and which operation is not."""
    width = 64
    batch = make_batches(run, 2, 64, 1)[0]
    model = make_model(run, tiny(run))

    def whole() -> list[Tensor]:
        model.zero_grad(set_to_none=True)
        forward(run, model, batch)[0].backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    def embedding() -> list[Tensor]:
        weight = torch.ones(tiny(run)["vocab_size"], width, device=run.device, requires_grad=True)
        F.embedding(batch["tokens"], weight).backward(grad_E)
        return [weight.grad]  # type: ignore[list-item]

    grad_E = torch.randn(*batch["tokens"].shape, width, generator=generator).to(run.device)
    q = torch.randn(4, 512, 8, 64, generator=generator).to(run.device, torch.bfloat16)
    kv = torch.randn(4, 512, 2, 64, generator=generator).to(run.device, torch.bfloat16)
    ends = torch.full((4, 8), 512, dtype=torch.int32)
    ends[:, 0], ends[:, 1] = 100, 300
    packed = pack(ends.to(run.device), 512)

    def varlen() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (q, kv, kv)]
        attend_packed(*leaves, packed, grouped=True).sum().backward()
        return [t.grad for t in leaves]  # type: ignore[misc]

    n, e = (512, 8) if not run.dry else (40, 4)
    expert_TK = choices(n, e, 2, "even", generator).to(run.device)
    counts = torch.bincount(expert_TK.flatten(), minlength=e)
    x = torch.randn(n, width, generator=generator).to(run.device, torch.bfloat16)
    w13 = torch.randn(e, 2 * width, width, generator=generator).to(run.device, torch.bfloat16)
    w2 = torch.randn(e, width, width, generator=generator).to(run.device, torch.bfloat16)

    def grouped(products: Products) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, w13, w2)]
        rows = to_experts(leaves[0], sort_by_expert(expert_TK))
        products(rows, leaves[1], leaves[2], counts).float().square().sum().backward()
        return [t.grad for t in leaves]  # type: ignore[misc]

    parts = {"full model": whole, "embedding": embedding}
    if not run.dry:
        parts["varlen attention"] = varlen
        parts["experts, grouped_mm"] = lambda: grouped(experts_grouped_mm)
        parts["experts, triton"] = lambda: grouped(experts_triton)
    for name, work in parts.items():
        equal = _same_bits(work, 5 if not run.dry else 1)
        run.figure(f"same bits again: {name}", "yes" if equal else "no", top=name == "full model")
        if equal:
            continue
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            run.figure(f"same bits again, deterministic: {name}", "yes" if _same_bits(work, 5) else "no")
        finally:
            torch.use_deterministic_algorithms(False)


def _same_bits(work: Callable[[], list[Tensor]], times: int) -> bool:
    first = [t.clone() for t in work()]
    return all(all(torch.equal(a, b) for a, b in zip(first, work(), strict=True)) for _ in range(times))
