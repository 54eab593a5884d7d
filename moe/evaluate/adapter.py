"""A Transformer in memory as a model of lm-eval.

Decisions:
- Text becomes the tokens it would be in training: no BOS is put before it, and the letters of a special token are
  ordinary characters. A text without context stands behind EOS, as a document does in the data.
- lm-eval sees one rank; the ranks share the forward passes (moe/evaluate/ranks.py). So every rank builds all requests
  and gets all scores, and their order and the metrics are the same for any number of ranks.
- Windows, stop sequences and the cut of long contexts are lm-eval's own: its Hugging Face model on the export gives
  the same log likelihoods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from moe.data.text.plain_ids import encode_plain
from moe.evaluate.greedy import continue_all
from moe.evaluate.ranks import Ranks, ScoringFailed
from moe.evaluate.scoring import Question, Score, cut, rows_of, score
from moe.model import Transformer

NEW_TOKENS = 256  # where a task does not say; lm-eval's own


class ModelLM(LM):
    """Args:
    max_seq_len: tokens that the model was trained to see.
    batch_tokens: tokens in a forward pass, the memory knob.
    trained_mask: whether it was trained with model.document_mask.
    bf16: under autocast, as a training in amp_bf16.
    between: see Ranks.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Any,
        *,
        max_seq_len: int,
        batch_tokens: int,
        trained_mask: bool,
        bf16: bool = False,
        between: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self.trained_mask = trained_mask
        self.bf16 = bf16
        self.model = model
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.batch_tokens = batch_tokens
        self.ranks = Ranks(model, between)
        self.cut = 0  # contexts that lost their first tokens, since it was last set to 0
        self.bare = 0  # answers that have nothing but EOS before them

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log probability in nats, whether greedy decoding would write it) of each (context, answer)."""
        return [
            (found.log_prob, found.greedy)
            for found in self._score(self._questions([request.args for request in requests]))
        ]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log probability in nats of each text, behind EOS, in windows of max_seq_len tokens."""
        questions, counts = self._windows([request.args[0] for request in requests])
        self.bare += sum(count > 0 for count in counts)
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
            found |= dict(zip(numbers, self._generate([requests[n].args[0] for n in numbers], settings), strict=True))
        return [found[n] for n in range(len(requests))]

    def cost(self, kind: str, requests: Sequence[Any]) -> int:
        """Tokens that go through the model for these requests of one kind, at most where it writes itself.

        Raises:
            ScoringFailed: one of them cannot be answered.
        """
        if kind == "generate_until":
            texts = encode_plain(self.tokenizer, [request.args[0] for request in requests])
            lengths = [self._room(request.args[1]) for request in requests]
            return sum(min(len(text), room) + new for text, (room, new) in zip(texts, lengths, strict=True))
        if kind == "loglikelihood":
            questions = self._questions([request.args for request in requests])
        else:
            questions, _ = self._windows([request.args[0] for request in requests])
        rows = rows_of([cut(question, self.max_seq_len) for question in questions], self.max_seq_len)
        return sum(row.length for row in rows)

    def said(self, task: str) -> list[str]:
        """What a reader of the scores since the last call should know."""
        lines = []
        if self.cut:
            lines.append(
                f"{task}: {self.cut:,} contexts exceed max_seq_len ({self.max_seq_len:,}) and were cut in front"
            )
        if self.bare and self.trained_mask:
            lines.append(
                f"{task}: {self.bare:,} texts stand behind a bare EOS, and the token after one was no target of the "
                "training (model.document_mask): the first token of each is a guess"
            )
        self.cut = self.bare = 0
        return lines

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.model.embed.weight.device.type, torch.bfloat16, enabled=self.bf16)

    def _score(self, questions: list[Question]) -> list[Score]:
        self.cut += sum(len(q.context) + len(q.answer) > self.max_seq_len + 1 for q in questions)
        with self._autocast():
            return score(self.model, questions, most=self.max_seq_len, batch_tokens=self.batch_tokens, ranks=self.ranks)

    def _questions(self, pairs: Sequence[tuple[str, str]]) -> list[Question]:
        """Spaces at a context's end belong to the answer, as to the token that they begin."""
        eos = self.tokenizer.eos_token_id
        split = [(c.rstrip(), c[len(c.rstrip()) :] + a) if c.strip() else ("", c + a) for c, a in pairs]
        both = encode_plain(self.tokenizer, [context + answer for context, answer in split])
        contexts = encode_plain(self.tokenizer, [context for context, _ in split])
        found = []
        for (_, answer), whole, context in zip(split, both, contexts, strict=True):
            if len(whole) <= len(context):
                raise ScoringFailed(f"the answer {answer!r} has no token of its own behind its context")
            self.bare += not context
            found.append(Question(tuple(context or [eos]), tuple(whole[len(context) :])))
        return found

    def _windows(self, texts: Sequence[str]) -> tuple[list[Question], list[int]]:
        """All windows of all texts, and how many each text has."""
        questions: list[Question] = []
        counts = []
        for tokens in encode_plain(self.tokenizer, list(texts)):
            windows = get_rolling_token_windows(
                token_list=tokens,
                prefix_token=self.tokenizer.eos_token_id,
                max_seq_len=self.max_seq_len,
                context_len=1,
            )
            of_text = [Question(*map(tuple, make_disjoint_window(window))) for window in windows]
            questions += of_text
            counts.append(len(of_text))
        return questions, counts

    def _room(self, settings: dict[str, Any]) -> tuple[int, int]:
        """Tokens for the context, and new ones behind it.

        Raises:
            ScoringFailed: there is none for the context, or the task does not want greedy decoding.
        """
        kwargs = normalize_gen_kwargs(settings, NEW_TOKENS)
        new = kwargs["max_gen_toks"]
        if kwargs.get("do_sample") or kwargs.get("temperature") or kwargs.get("num_beams", 1) != 1:
            raise ScoringFailed("it samples its answers, and only greedy decoding is there (--through-export has more)")
        if new >= self.max_seq_len:
            raise ScoringFailed(
                f"it asks for {new:,} new tokens (max_gen_toks), and the model sees {self.max_seq_len:,} (max_seq_len)"
            )
        return self.max_seq_len - new, new

    def _generate(self, texts: list[str], settings: dict[str, Any]) -> list[str]:
        room, new = self._room(settings)
        eos = self.tokenizer.decode([self.tokenizer.eos_token_id])
        stops = handle_stop_sequences(normalize_gen_kwargs(settings, NEW_TOKENS)["until"], eos=eos)
        look = max(4 * len(stop.encode()) for stop in stops) + 1  # tokens; a token may stand for part of a character
        prompts = [ids or [self.tokenizer.eos_token_id] for ids in encode_plain(self.tokenizer, texts)]
        self.cut += sum(len(prompt) > room for prompt in prompts)

        def finished(tokens: list[int]) -> bool:
            text = self.tokenizer.decode(tokens[-look:], skip_special_tokens=True)
            return any(stop in text for stop in stops if stop)

        with self._autocast():
            found = continue_all(
                self.model,
                [prompt[-room:] for prompt in prompts],
                max_new_tokens=new,
                finished=finished,
                most=self.max_seq_len,
                batch_tokens=self.batch_tokens,
                ranks=self.ranks,
            )
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in found]
        return [postprocess_generated_text(text, stop=stops, think_end_token=None) for text in texts]
