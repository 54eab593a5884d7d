"""lm-eval's requests as tokens, without a model.

Decisions:
- Text becomes the tokens it would be in training: no BOS is put before it, and the letters of a special token are
  ordinary characters. A text without context stands behind EOS, as a document does in the data.
- Windows and the room for what is written are lm-eval's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from moe.data.text.plain_ids import encode_plain
from moe.evaluate.ranks import ScoringFailed
from moe.evaluate.scoring import Question, cut, rows_of

TEXTS_A_TURN = 1000
NEW_TOKENS = 256  # where a task does not say; lm-eval's own


class Requests:
    """max_seq_len: tokens that the model was trained to see. trained_mask: with model.document_mask."""

    def __init__(self, tokenizer: Any, *, max_seq_len: int, trained_mask: bool) -> None:
        self.tokenizer = tokenizer
        self.max_seq_len = max_seq_len
        self.trained_mask = trained_mask
        self.cut = 0  # contexts that lost their first tokens, since the last `notes`
        self.bare = 0  # texts that have nothing but EOS before them
        self.turn: Callable[[], None] = lambda: None  # called now and then; what it raises ends the work

    def questions(self, pairs: Sequence[tuple[str, str]]) -> list[Question]:
        """Of (context, answer). Spaces at a context's end belong to the answer, as to the token that they begin.

        Raises:
            ScoringFailed: one cannot be asked.
        """
        split = [(c.rstrip(), c[len(c.rstrip()) :] + a) for c, a in pairs]
        contexts: dict[str, tuple[int, ...]] = {}  # one for all its answers
        found = []
        for start in range(0, len(split), TEXTS_A_TURN):
            part = split[start : start + TEXTS_A_TURN]
            new = list(dict.fromkeys(context for context, _ in part if context not in contexts))
            contexts |= zip(new, map(tuple, self._encode(new)), strict=True)
            for (context, answer), ids in zip(part, self._encode([c + a for c, a in part]), strict=True):
                before = contexts[context]
                if len(ids) <= len(before):
                    raise ScoringFailed(f"the answer {answer!r} has no token of its own after its context")
                self.bare += not before
                found.append(self._cut(Question(before or (self._eos,), tuple(ids[len(before) :]))))
        return found

    def windows(self, texts: Sequence[str]) -> tuple[list[Question], list[int]]:
        """All windows of all texts, and how many each text has."""
        questions: list[Question] = []
        counts = []
        for tokens in self._encode(texts):
            windows = get_rolling_token_windows(
                token_list=tokens, prefix_token=self._eos, max_seq_len=self.max_seq_len, context_len=1
            )
            of_text = [Question(*map(tuple, make_disjoint_window(window))) for window in windows]
            self.bare += bool(of_text)
            questions += of_text
            counts.append(len(of_text))
        return questions, counts

    def prompts(self, texts: Sequence[str], settings: dict[str, Any]) -> tuple[list[list[int]], int, list[str]]:
        """Of `texts`, how many new tokens may follow each, and the stop sequences, EOS among them.

        Raises:
            ScoringFailed: there is no room for a context, or the task does not want greedy decoding.
        """
        kwargs = normalize_gen_kwargs(settings, NEW_TOKENS)
        new = kwargs["max_gen_toks"]
        if kwargs.get("do_sample") or kwargs.get("temperature") or kwargs.get("num_beams", 1) != 1:
            raise ScoringFailed("it samples its answers, and only greedy decoding is there (--through-export has more)")
        room = self.max_seq_len - new
        if room < 1:
            raise ScoringFailed(
                f"it asks for {new:,} new tokens (max_gen_toks), and the model sees {self.max_seq_len:,} (max_seq_len)"
            )
        found = [ids or [self._eos] for ids in self._encode(texts)]
        self.cut += sum(len(prompt) > room for prompt in found)
        stops = handle_stop_sequences(kwargs["until"], eos=self.tokenizer.decode([self._eos]))
        return [prompt[-room:] for prompt in found], new, stops

    def cost(self, kind: str, requests: Sequence[Any]) -> int:
        """Tokens that go through the model for these requests of one kind, at most where it writes itself.

        Raises:
            ScoringFailed: one of them cannot be answered.
        """
        questions: list[Question] = []
        written = 0
        if kind == "generate_until":
            made = [self.prompts([request.args[0]], request.args[1]) for request in requests]
            written = sum(len(prompt) + new for (prompt,), new, _ in made)
        elif kind == "loglikelihood":
            questions = self.questions([request.args for request in requests])
        else:
            questions, _ = self.windows([request.args[0] for request in requests])
        self.cut = self.bare = 0  # what `notes` says of them is said when they are scored
        return written + sum(row.length for row in rows_of(questions, self.max_seq_len))

    def notes(self, task: str) -> list[str]:
        """What a reader of the scores since the last call should know."""
        lines = []
        if self.cut:
            lines.append(f"{task}: contexts cut in front to max_seq_len ({self.max_seq_len:,}): {self.cut:,}")
        if self.bare and self.trained_mask:
            lines.append(
                f"{task}: texts after a bare EOS: {self.bare:,}; in training the token after one was no target "
                "(model.document_mask), so the first token of each is a guess"
            )
        self.cut = self.bare = 0
        return lines

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = []
        for start in range(0, len(texts), TEXTS_A_TURN):
            found += encode_plain(self.tokenizer, list(texts[start : start + TEXTS_A_TURN]))
            self.turn()
        return found

    @property
    def _eos(self) -> int:
        return self.tokenizer.eos_token_id

    def _cut(self, question: Question) -> Question:
        shorter = cut(question, self.max_seq_len)
        self.cut += shorter is not question
        return shorter
