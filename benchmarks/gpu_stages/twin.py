"""200 steps in bf16 beside transformers' model: the same weights, data, optimizer; the losses stay together.

Documents are not kept apart on either side, and there is no load balance: so both compute the same.
"""

from __future__ import annotations

import json
import statistics

import torch
from torch import Tensor

from gpu_stages.models import TINY, autocast, make_batches, make_model, make_optimizer, shape_of
from gpu_stages.run import Run
from moe.model import LossParts
from moe.model.families.qwen3_moe import QWEN3_MOE
from moe.model.families.table import complete
from moe.use.export.settings import to_config
from moe.use.export.to_hf import hf_tensors, write_weights


def twin(run: Run) -> None:
    import transformers

    shape, _ = shape_of(run, "medium")
    samples, seq_len, steps = (16, 512, 200) if not run.dry else (2, 64, 6)
    model = make_model(run, TINY if run.dry else shape, document_mask=False)
    peer = _peer(run, model, shape, seq_len)
    run.figure("transformers", transformers.__version__)
    batches = make_batches(run, samples, seq_len, steps, ends=False)
    ours = [torch.zeros(())]
    theirs = [torch.zeros(())]
    optimizers = [
        make_optimizer(model, "adamw"),
        torch.optim.AdamW(
            [
                {"params": [p for p in peer.parameters() if p.ndim > 1], "weight_decay": 0.1},
                {"params": [p for p in peer.parameters() if p.ndim == 1], "weight_decay": 0.0},
            ],
            lr=1e-4, betas=(0.9, 0.95), fused=True,
        ),
    ]  # fmt: skip
    for group in (*optimizers[0].param_groups, *optimizers[1].param_groups):
        group["lr"] = 3e-4

    def our_loss(tokens: Tensor) -> Tensor:
        parts = model(tokens, tokens)
        assert isinstance(parts, LossParts)
        return parts.loss / parts.targets

    sides = [
        (model, optimizers[0], ours, our_loss),
        (peer, optimizers[1], theirs, lambda tokens: peer(input_ids=tokens, labels=tokens).loss),
    ]
    for number, batch in enumerate(batches):
        for net, optimizer, found, loss_of in sides:
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
    a, b = (torch.stack([loss.float() for loss in found[1:]]).cpu().tolist() for found in (ours, theirs))
    run.figure("loss at step 1, ours", a[0], expected=b[0], source="transformers", check=abs(a[0] - b[0]) < 0.01)
    last = max(1, len(a) // 10)
    mean_a, mean_b = statistics.mean(a[-last:]), statistics.mean(b[-last:])
    run.figure(f"mean loss of the last {last} steps, ours", mean_a, expected=mean_b, source="transformers",
               check=abs(mean_a - mean_b) < 0.02, top=True)  # fmt: skip
    far = max(abs(x - y) for x, y in zip(a, b, strict=True))
    run.figure("largest difference of a step's losses", far, expected=0.1, source="at most", check=far < 0.1)
    run.figure("fallen by", a[0] - mean_a, check=run.dry or a[0] - mean_a > 1.0)


def _peer(run: Run, model: torch.nn.Module, shape: dict[str, int], seq_len: int) -> torch.nn.Module:
    """transformers' model with our weights, through the folder that an export writes."""
    from transformers import AutoModelForCausalLM

    shown = TINY if run.dry else shape
    settings = complete({key: value for key, value in shown.items() if key != "vocab_size"})
    size = model.embed.weight.shape[0]  # type: ignore[union-attr]
    folder = run.work / "hf"
    folder.mkdir(exist_ok=True)
    content = to_config(settings, QWEN3_MOE, vocab_size=size, max_seq_len=seq_len, special={})  # type: ignore[arg-type]
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    weights = {name: weight.cpu() for name, weight in model.state_dict().items()}
    write_weights(folder, hf_tensors(weights, QWEN3_MOE), shard_bytes=2**32, say=lambda line: None)
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return peer.to(run.device).train()
