"""Greedy continuations of many prompts, several at a time.

Decisions:
- Prompts of a batch end together: shorter ones are padded in front, where nobody looks (Layout).
- All ranks write token after token together, those that have no prompt left too: a sharded model needs them all, and a
  request to stop is agreed on after each token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from moe.evaluate.ranks import Ranks
from moe.evaluate.scoring import MASKED_SPAN, as_one_document
from moe.model import Transformer
from moe.model.attention import KVCache
from moe.model.documents import Layout


def continue_all(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    finished: Callable[[list[int]], bool],
    most: int,
    batch_tokens: int,
    ranks: Ranks,
) -> list[list[int]]:
    """New tokens behind each prompt, without the EOS that ends some; the same on every rank.

    finished: whether these new tokens are enough. most: the longest that prompt and new tokens together become.

    Raises:
        ScoringStopped: see Ranks.
    """
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))
    size = max(
        1, min(batch_tokens // most, batch_tokens * MASKED_SPAN // most**2)
    )  # prompts of unlike lengths need a mask
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    found: dict[int, list[int]] = {}
    error: Exception | None = None
    with as_one_document(model):
        for first in range(0, len(groups), ranks.world_size):
            numbers = groups[first + ranks.rank] if first + ranks.rank < len(groups) else []
            batch = _Batch(model, [list(prompts[n]) for n in numbers], max_new_tokens, finished)
            while ranks.any(batch.alive and error is None):
                try:
                    if batch.alive and error is None:
                        batch.step()
                    elif ranks.needs_all:
                        model(torch.zeros(1, 1, dtype=torch.int64, device=model.embed.weight.device))
                except Exception as raised:
                    error = raised
                ranks.turn_ended()
            found |= dict(zip(numbers, batch.new, strict=True))
    for part in ranks.results(found, error):
        found |= part
    return [found[n] for n in range(len(prompts))]


class _Batch:
    """Prompts that are continued together; each `step` is one forward pass."""

    def __init__(
        self, model: Transformer, prompts: list[list[int]], max_new_tokens: int, finished: Callable[[list[int]], bool]
    ) -> None:
        self.model = model
        self.prompts = prompts
        self.max_new_tokens = max_new_tokens
        self.finished = finished
        self.new: list[list[int]] = [[] for _ in prompts]
        self.open = [max_new_tokens > 0] * len(prompts)
        self.caches = [KVCache() for _ in model.blocks]
        longest = max(map(len, prompts), default=0)
        self.padding = [longest - len(prompt) for prompt in prompts]
        self.last: list[int] = []

    @property
    def alive(self) -> bool:
        return any(self.open)

    def step(self) -> None:
        device = self.model.embed.weight.device
        rows = [[token] for token in self.last] if self.last else self._padded()
        last_B = torch.arange(1, len(rows) + 1, device=device) * len(rows[0]) - 1
        arguments: dict[str, Any] = {"caches": self.caches, "at_N": last_B}
        if any(self.padding):
            arguments["layout"] = self._layout(self.caches[0].length, len(rows[0]), device)
        logits_BV = self.model(torch.tensor(rows, device=device), **arguments)
        self.last = logits_BV.float().argmax(-1).tolist()
        for n, token in enumerate(self.last):
            if self.open[n]:
                self._take(n, token)

    def _take(self, n: int, token: int) -> None:
        if token == self.model.eos_id:
            self.open[n] = False
            return
        self.new[n].append(token)
        self.open[n] = len(self.new[n]) < self.max_new_tokens and not self.finished(self.new[n])

    def _padded(self) -> list[list[int]]:
        return [[0] * padding + prompt for padding, prompt in zip(self.padding, self.prompts, strict=True)]

    def _layout(self, cached: int, length: int, device: torch.device) -> Layout:
        """A padded place looks at itself alone."""
        padding_B = torch.tensor(self.padding, device=device)
        place_S, place_T = (torch.arange(start, cached + length, device=device) for start in (cached, 0))
        causal_ST = place_T <= place_S[:, None]
        allowed_BST = causal_ST & (place_T >= padding_B[:, None, None]) | (place_T == place_S[:, None])
        return Layout((place_S - padding_B[:, None]).clamp(min=0), allowed_BST)
