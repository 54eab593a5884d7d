"""A Transformer in memory as a model of lm-eval.

Decisions:
- lm-eval sees one rank; the ranks share the forward passes (moe/evaluate/ranks.py). So every rank builds all requests
  and gets all scores, and their order and the metrics are the same for any number of ranks.
- lm-eval's Hugging Face model on the export gives the same log likelihoods and texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.models.utils import postprocess_generated_text

from moe.evaluate.greedy import continue_all
from moe.evaluate.ranks import Ranks
from moe.evaluate.requests import Requests
from moe.evaluate.scoring import Question, Score, score
from moe.model import Transformer


class ModelLM(LM):
    """Args:
    batch_tokens: tokens in a forward pass; sets the memory it takes.
    bf16: under autocast, as a training in amp_bf16; the caller may as well have one around it.
    between: see Ranks.
    """

    def __init__(
        self,
        model: Transformer,
        requests: Requests,
        *,
        batch_tokens: int,
        bf16: bool = False,
        between: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.model = model
        self.requests = requests
        self.batch_tokens = batch_tokens
        self.bf16 = bf16
        self.ranks = Ranks(model, between)
        requests.turn = self.ranks.turn_ended

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log probability in nats, whether greedy decoding would write it) of each (context, answer)."""
        scores = self._score(self.requests.questions([request.args for request in requests]))
        return [(found.log_prob, found.greedy) for found in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log probability in nats of each text, behind EOS, in windows of max_seq_len tokens."""
        questions, counts = self.requests.windows([request.args[0] for request in requests])
        found = iter(self._score(questions))
        return [sum(next(found).log_prob for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What greedy decoding writes behind each context, before the first of its stop sequences."""
        groups: dict[str, list[int]] = {}
        for n, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(n)
        found: dict[int, str] = {}
        for numbers in groups.values():
            settings = requests[numbers[0]].args[1]
            found |= dict(zip(numbers, self._write([requests[n].args[0] for n in numbers], settings), strict=True))
        return [found[n] for n in range(len(requests))]

    def _score(self, questions: list[Question]) -> list[Score]:
        with self._autocast():
            return score(
                self.model,
                questions,
                most=self.requests.max_seq_len,
                batch_tokens=self.batch_tokens,
                ranks=self.ranks,
            )

    def _write(self, texts: list[str], settings: dict[str, Any]) -> list[str]:
        prompts, new, stops = self.requests.prompts(texts, settings)
        tokenizer = self.requests.tokenizer
        look = max(4 * len(stop.encode()) for stop in stops) + 1  # tokens; a token may be a part of a character

        def finished(tokens: list[int]) -> bool:
            text = tokenizer.decode(tokens[-look:], skip_special_tokens=True)
            return any(stop in text for stop in stops if stop)

        with self._autocast():
            found = continue_all(
                self.model,
                prompts,
                max_new_tokens=new,
                finished=finished,
                most=self.requests.max_seq_len,
                batch_tokens=self.batch_tokens,
                ranks=self.ranks,
            )
        written = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found]
        return [postprocess_generated_text(text, stop=stops, think_end_token=None) for text in written]

    def _autocast(self) -> Any:
        return torch.autocast(self.model.embed.weight.device.type, torch.bfloat16) if self.bf16 else nullcontext()
