"""The loss of a model on converted data: exact sums over tokens, so the mean does not depend on how they are batched.

- Samples are read straight from the shards, in order and each shard once: no loader, no shared memory, so it runs
  beside a training.
- Documents are separated as they were in training: the numbers are those that the run itself would log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from moe.data.read.batches import Collate
from moe.data.read.verify import sample_batches
from moe.model import LossParts, Transformer
from moe.model.documents import document_ends
from moe.model.loss import target_bytes


@dataclass(frozen=True)
class Evaluation:
    """Sums over the targets of an evaluation. text_bytes is 0 where the tokenizer does not tell."""

    nll: float
    targets: int
    text_bytes: int

    @property
    def loss(self) -> float:
        """Mean negative log likelihood per target token, nats."""
        return self.nll / self.targets if self.targets else math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700))

    @property
    def bits_per_byte(self) -> float | None:
        return self.nll / self.text_bytes / math.log(2) if self.text_bytes else None


@torch.no_grad()
def evaluate(
    model: Transformer,
    split: Path,
    *,
    samples: int,
    seq_len: int,
    document_mask: bool,
    bf16: bool,
    token_bytes: list[int] | None,
    batch_size: int,
    progress: Callable[[int], None],
) -> Evaluation:
    """The first `samples` sequences of `split`, `batch_size` of `seq_len` tokens at a time.

    bf16: under autocast, as a training in amp_bf16. progress is called with the number of sequences done.
    """
    device = model.embed.weight.device
    collate = Collate(seq_len=seq_len, eos_id=model.eos_id, document_mask=document_mask)
    bytes_V = torch.tensor(token_bytes or [0] * model.embed.num_embeddings, device=device)
    nll = torch.zeros((), dtype=torch.float64, device=device)
    targets, text_bytes = torch.zeros((2,), dtype=torch.int64, device=device)
    masked, model.document_mask = model.document_mask, document_mask
    done = 0
    try:
        with closing(sample_batches(split, samples, batch_size)) as batches:
            for rows in batches:
                batch = collate(list(rows))
                batch["ends"] = document_ends(batch["tokens"], model.eos_id)
                batch = {name: part.to(device) for name, part in batch.items()}
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    parts = model(batch["tokens"], batch["labels"], document_ends_BM=batch["ends"])
                assert isinstance(parts, LossParts)
                nll += parts.nll.double()
                targets += parts.targets
                text_bytes += target_bytes(batch["labels"], bytes_V)
                done += len(rows)
                progress(done)
    finally:
        model.document_mask = masked
    return Evaluation(nll.item(), int(targets), int(text_bytes))
