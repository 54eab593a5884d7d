"""Shapes, models, batches and clocks of the stages."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_stages.run import Run
from moe.data.read.verify import read_samples
from moe.model import LossParts, Transformer
from moe.model.documents import document_ends
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.train.callbacks.fixed_order import fixed_order

EOS = 50256
TINY = {
    "vocab_size": 400, "d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "n_experts": 4,
    "top_k": 2, "expert_hidden": 32,
}  # fmt: skip
# Many small experts: 0.9B parameters, 0.2B active.
FINE = {
    "vocab_size": 50257, "d_model": 1024, "n_layers": 8, "n_heads": 16, "n_kv_heads": 4, "head_dim": 64,
    "n_experts": 64, "top_k": 8, "expert_hidden": 512,
}  # fmt: skip


def tiny(run: Run) -> dict[str, int]:
    """The tiny shape, with the vocabulary that the pack has."""
    return TINY if run.dry else {**TINY, "vocab_size": EOS + 1}


def shape_of(run: Run, name: str) -> tuple[dict[str, int], int]:
    """Shape and sequence length of yamls/NAME.yaml, or of `fine`; the tiny ones of a dry run."""
    if run.dry:
        return (TINY if name != "fine" else {**TINY, "n_experts": 16, "top_k": 4}), 64
    if name == "fine":
        return FINE, 2048
    from step import yaml_shape

    return yaml_shape(name)


def eos_id(run: Run) -> int:
    import json

    return int(json.loads((run.pack / "data" / "meta.json").read_text(encoding="utf-8"))["eos_id"])


def make_model(run: Run, shape: dict[str, Any], **settings: Any) -> Transformer:
    torch.manual_seed(17)
    with torch.device(run.device):
        return Transformer(eos_id=eos_id(run), **shape, **settings)


def make_optimizer(model: Transformer, name: str = "muon") -> Muon:
    return Muon(build_groups(model, name=name, lr=1e-4, weight_decay=0.1))


def make_batches(run: Run, samples: int, seq_len: int, number: int = 4, ends: bool = True) -> list[dict[str, Tensor]]:
    """Batches of the pack's text on the device, documents counted before they leave, as in training."""
    return batches_of(run.pack / "data" / "train", eos_id(run), run.device, samples, seq_len, number, ends)


def batches_of(
    folder: Path, eos: int, device: str, samples: int, seq_len: int, number: int, ends: bool = True
) -> list[dict[str, Tensor]]:
    found = torch.from_numpy(read_samples(folder, 0, 4096).astype("int64")).flatten()
    wanted = samples * seq_len * number
    found = found.repeat(-(-wanted // len(found)))[:wanted].view(number, samples, seq_len)
    made = []
    for tokens in found:
        batch = {"tokens": tokens.to(device)}
        if ends:
            batch["ends"] = document_ends(tokens, eos).to(device)
        made.append(batch)
    return made


def autocast(run: Run, wanted: bool = True) -> Any:
    """bf16, as amp_bf16 has it; in fp32 in a dry run, which a CPU is faster in."""
    return torch.autocast(run.device, torch.bfloat16, enabled=wanted and not run.dry)


def forward(run: Run, model: Transformer, batch: dict[str, Tensor]) -> tuple[Tensor, LossParts]:
    """The mean loss to differentiate, load balance and router's z-loss in it as in training, and its parts."""
    tokens = batch["tokens"]
    with autocast(run):
        parts = model(tokens, tokens, document_ends_BM=batch.get("ends"))
    assert isinstance(parts, LossParts)
    extra = 0.01 * parts.routers.score_E.sum() + 0.001 * parts.routers.z.sum()
    return (parts.loss / parts.targets) + extra / tokens.numel(), parts


def backward(run: Run, model: Transformer, batch: dict[str, Tensor]) -> None:
    """Both passes of a microbatch as a run has them: in a fixed order (`deterministic`)."""
    with fixed_order(not run.dry):
        forward(run, model, batch)[0].backward()


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: str, *, repeats: int = 10, warm: int = 2) -> float:
    """Median of single calls."""
    for _ in range(warm):
        work()
    wait(device)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def matmul_flops(device: str) -> float:
    """FLOP/s of a bf16 product of square matrices of 8,192 rows, of random numbers."""
    n = 8192 if device == "cuda" else 256
    a, b = (torch.randn(n, n, device=device, dtype=torch.bfloat16) for _ in range(2))
    warm = (
        200 if device == "cuda" else 2
    )  # 0.3 s: an idle card's clock is low, and so would be the ceiling of every MFU
    return 2 * n**3 / seconds_of(lambda: torch.mm(a, b), device, warm=warm)


def error_of(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over norm of the reference, which is in float64."""
    found = found.detach().to(exact.device, torch.float64)
    return float((found - exact).norm() / exact.norm().clamp(min=1e-300))
