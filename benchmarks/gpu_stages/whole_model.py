"""What the stage `kernels` asks of the full model: right in bf16, never waiting for the GPU."""

from __future__ import annotations

import torch

from gpu_stages.models import TINY, backward, error_of, make_batches, make_model, make_optimizer, tiny, wait
from gpu_stages.run import Run
from moe.model import Transformer
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
            backward(run, model, batch)
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
