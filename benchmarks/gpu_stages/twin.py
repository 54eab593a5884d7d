"""200 steps in bf16 beside transformers' model: the same weights, data, optimizer; the losses stay together.

- Documents are not kept apart on either side, and there is no load balance: so both compute the same.
- Training enlarges any difference of rounding. How far is shown by a third: transformers' model once more, from the
  same weights, with its eager attention instead of SDPA's. Ours may differ from the first by `OF_NOISE` times as much
  as that one does. Written down before a run had shown that noise.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gpu_stages.models import TINY, autocast, make_batches, make_model, make_optimizer, shape_of
from gpu_stages.run import Run
from moe.model import LossParts
from moe.model.families.qwen3_moe import QWEN3_MOE
from moe.model.families.table import complete
from moe.use.export.settings import to_config
from moe.use.export.to_hf import hf_tensors, write_weights

LR = 3e-4
OF_NOISE = 1.5
FAR = 0.1  # expected of the largest difference before any run; the first, on an H200, had 0.157


def twin(run: Run) -> None:
    import transformers

    shape, _ = shape_of(run, "medium")
    samples, seq_len, steps = (16, 512, 200) if not run.dry else (2, 64, 6)
    model = make_model(run, TINY if run.dry else shape, document_mask=False)
    folder = _export(run, model, shape, seq_len)
    peer, noise = (_peer(run, folder, attention) for attention in ("sdpa", "eager"))
    run.figure("transformers", transformers.__version__)
    batches = make_batches(run, samples, seq_len, steps, ends=False)

    def our_loss(tokens: Tensor) -> Tensor:
        parts = model(tokens, tokens)
        assert isinstance(parts, LossParts)
        return parts.loss / parts.targets

    ours = make_optimizer(model, "adamw")
    for group in ours.param_groups:
        group["lr"] = LR
    sides: list[tuple[nn.Module, Optimizer, Callable[[Tensor], Tensor], list[Tensor]]] = [(model, ours, our_loss, [])]
    for net in (peer, noise):
        sides.append((net, _adamw(net), lambda tokens, net=net: net(input_ids=tokens, labels=tokens).loss, []))
    for number, batch in enumerate(batches):
        for net, optimizer, loss_of, found in sides:
            with autocast(run):
                loss = loss_of(batch["tokens"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            found.append(loss.detach())
        if run.left() < 5 and not run.dry:
            run.figure("ended early, at step", number + 1)
            break
    report(run, *(torch.stack([loss.float() for loss in found]).cpu().tolist() for *_, found in sides))


def report(run: Run, a: list[float], b: list[float], c: list[float]) -> None:
    """Losses by step: ours, transformers', and transformers' with another attention."""
    run.figure("loss at step 1, ours", a[0], expected=b[0], source="transformers", check=abs(a[0] - b[0]) < 0.01)
    last = max(1, len(a) // 10)
    mean_a, mean_b = statistics.mean(a[-last:]), statistics.mean(b[-last:])
    run.figure(f"mean loss of the last {last} steps, ours", mean_a, expected=mean_b, source="transformers",
               check=abs(mean_a - mean_b) < 0.02, top=True)  # fmt: skip
    (far, step), (noise, noise_step) = (_farthest(b, other) for other in (a, c))
    run.figure("largest difference of a step's losses", far, expected=FAR,
               source="written down before any run; the first had 0.157, so beside the noise below")  # fmt: skip
    run.figure("largest difference of a step's losses: at step", step)
    run.figure("transformers beside itself with another attention: largest difference", noise)
    run.figure("transformers beside itself with another attention: at step", noise_step)
    run.figure("largest difference, of transformers' own", far / max(noise, 1e-12), "times", expected=OF_NOISE,
               source="at most", check=run.dry or far <= OF_NOISE * noise, top=True)  # fmt: skip
    run.figure("fallen by", a[0] - mean_a, check=run.dry or a[0] - mean_a > 1.0)


def _farthest(a: list[float], b: list[float]) -> tuple[float, int]:
    """The largest difference, and the step it is at. NaN is the largest."""
    far = [abs(x - y) for x, y in zip(a, b, strict=True)]
    step = max(range(len(far)), key=lambda n: (math.isnan(far[n]), far[n]))
    return far[step], step + 1


def _adamw(net: nn.Module) -> torch.optim.AdamW:
    """As our groups have it: matrices decay, vectors do not."""
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)


def _export(run: Run, model: nn.Module, shape: dict[str, int], seq_len: int) -> Path:
    """The folder that an export of our model writes."""
    shown = TINY if run.dry else shape
    settings = complete({key: value for key, value in shown.items() if key != "vocab_size"})
    size = model.embed.weight.shape[0]  # type: ignore[union-attr]
    folder = run.work / "hf"
    folder.mkdir(exist_ok=True)
    content = to_config(settings, QWEN3_MOE, vocab_size=size, max_seq_len=seq_len, special={})  # type: ignore[arg-type]
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    weights = {name: weight.cpu() for name, weight in model.state_dict().items()}
    write_weights(folder, hf_tensors(weights, QWEN3_MOE), shard_bytes=2**32, say=lambda line: None)
    return folder


def _peer(run: Run, folder: Path, attention: str) -> nn.Module:
    """transformers' model with our weights."""
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention)
    return peer.to(run.device).train()
