"""Continues fixed prompts at every evaluation, to read what the model has learned.

| table | meaning |
|---|---|
| `samples` | each of `sample_prompts` and 64 tokens that the model puts after it |

The seed is fixed, so that only the model changes from one evaluation to the next. Every rank generates the same (a
sharded model needs them all), rank 0 shows it. Nothing of the run is touched: the generator is the callback's own, and
counts of experts are taken from training steps alone.
"""

from __future__ import annotations

from typing import Any

from composer import Callback, Logger, State
from composer.core.precision import get_precision_context

from moe.data.text.plain_ids import decode_new, encode_prompt
from moe.model import Transformer
from moe.model.generation import generate

NEW_TOKENS = 64


class Samples(Callback):
    def __init__(self, model: Transformer, tokenizer: Any, prompts: list[str]):
        self.model = model
        self.tokenizer = tokenizer
        self.prompts = {prompt: encode_prompt(tokenizer, prompt) for prompt in prompts}

    def eval_after_all(self, state: State, logger: Logger) -> None:
        self._show(state, logger)

    def eval_standalone_end(self, state: State, logger: Logger) -> None:
        self._show(state, logger)

    def _show(self, state: State, logger: Logger) -> None:
        training = self.model.training
        self.model.eval()
        with get_precision_context(state.precision, state.precision_config):
            rows = [[prompt, self._continue(tokens)] for prompt, tokens in self.prompts.items()]
        self.model.train(training)
        logger.log_table(["prompt", "text"], rows, name="samples", step=int(state.timestamp.batch))

    def _continue(self, tokens: list[int]) -> str:
        new = list(generate(self.model, tokens, max_new_tokens=NEW_TOKENS))
        return decode_new(self.tokenizer, tokens, new)
