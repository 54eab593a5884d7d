"""Log probabilities of answers behind contexts, as many at a time as a validation batch has tokens.

Decisions:
- What answers share is computed once: those behind one context form one row, context first, in which no answer sees
  another (Layout). Equal questions are asked once.
- A context too long for the model loses its first tokens, as in lm-eval. An answer that does not fit is an error.
- Rows of about the same length form a batch; which ones does not depend on the number of ranks, so neither do scores.
- Documents are not kept apart: an answer sees all of its context. The rows are padded behind, where nobody looks.

B batch, S sequence, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from moe.evaluate.ranks import Ranks, ScoringFailed
from moe.model import Transformer
from moe.model.documents import Layout
from moe.model.loss import TokenScores

MASKED_SPAN = 512  # tokens; what a kernel with a mask writes grows with a row's length squared


class Question(NamedTuple):
    """Token ids; both have at least one."""

    context: tuple[int, ...]
    answer: tuple[int, ...]


class Score(NamedTuple):
    """log_prob: of the answer, in nats. greedy: whether it is what greedy decoding would write."""

    log_prob: float
    greedy: bool


class Row(NamedTuple):
    """A context and the answers behind it."""

    context: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens that go through the model: nothing follows an answer's last one."""
        return len(self.context) + sum(len(answer) - 1 for answer in self.answers)

    @property
    def branches(self) -> bool:
        return sum(len(answer) > 1 for answer in self.answers) > 1


def cut(question: Question, most: int) -> Question:
    """With as much of the context as a model of `most` tokens can see: the last token of the answer is not read.

    Raises:
        ScoringFailed: the answer alone is longer.
    """
    if len(question.answer) > most:
        raise ScoringFailed(
            f"an answer of {len(question.answer):,} tokens does not fit the model's {most:,} (max_seq_len)"
        )
    room = most + 1 - len(question.answer)
    return question if len(question.context) <= room else Question(question.context[-room:], question.answer)


def rows_of(questions: Sequence[Question], most: int) -> list[Row]:
    """Each question once, in rows of at most `most` tokens, the longest first. One with a mask is no longer than
    MASKED_SPAN, or twice its context.
    """
    behind: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for question in questions:
        behind.setdefault(question.context, {})[question.answer] = None
    rows = []
    for context, answers in behind.items():
        taken: list[tuple[int, ...]] = []
        for answer in answers:
            longer = Row(context, (*taken, answer))
            if taken and longer.length > (min(most, max(MASKED_SPAN, 2 * len(context))) if longer.branches else most):
                rows.append(Row(context, tuple(taken)))
                taken = []
            taken.append(answer)
        rows.append(Row(context, tuple(taken)))
    return sorted(rows, key=lambda row: (-row.length, row))


def batches_of(rows: Sequence[Row], batch_tokens: int) -> list[list[Row]]:
    """Consecutive rows, of which the longest times their number is at most `batch_tokens`, or one row. Fewer where some
    need a mask and are long.
    """
    batches: list[list[Row]] = []
    masked = False
    for row in rows:
        masked = masked or row.branches
        if batches:
            tokens = batches[-1][0].length * (len(batches[-1]) + 1)
            if tokens <= batch_tokens and not (masked and tokens * batches[-1][0].length > batch_tokens * MASKED_SPAN):
                batches[-1].append(row)
                continue
        batches.append([row])
        masked = row.branches
    return batches


def score(
    model: Transformer, questions: Sequence[Question], *, most: int, batch_tokens: int, ranks: Ranks
) -> list[Score]:
    """Of each question (see `cut`), in their order; the same on every rank.

    most: tokens that the model can see. batch_tokens: in a forward pass; sets the memory it takes.

    Raises:
        ScoringFailed: a forward pass failed. ScoringStopped: see Ranks.
    """
    batches = batches_of(rows_of(questions, most), batch_tokens)
    found: dict[Question, Score] = {}
    error: Exception | None = None
    with as_one_document(model):
        for first in range(0, len(batches), ranks.world_size):
            mine = first + ranks.rank
            try:
                if mine < len(batches) and error is None:
                    found |= _forward(model, batches[mine])
                elif ranks.needs_all:
                    _forward(model, batches[-1][-1:])
            except Exception as raised:
                error = error or raised
            ranks.turn_ended()
    for part in ranks.results(found, error):
        found |= part
    return [found[question] for question in questions]


@contextmanager
def as_one_document(model: Transformer) -> Iterator[None]:
    """Within it the model is in eval mode, keeps no gradients, sees all that stands before a token and compiles
    nothing: every batch has a shape of its own.
    """
    masked, training = model.document_mask, model.training
    model.document_mask = False
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.document_mask = masked
        model.train(training)


def _forward(model: Transformer, rows: Sequence[Row]) -> dict[Question, Score]:
    device = model.embed.weight.device
    length = max(row.length for row in rows)
    tokens_BS = torch.zeros(len(rows), length, dtype=torch.int64)
    positions_BS = torch.arange(length).repeat(len(rows), 1)
    part_BS = torch.zeros(len(rows), length, dtype=torch.int64)  # 0 for the context, else the number of the answer
    at: list[int] = []
    for n, row in enumerate(rows):
        end = len(row.context)
        tokens_BS[n, :end] = torch.tensor(row.context)
        for number, answer in enumerate(row.answers, 1):
            start, end = end, end + len(answer) - 1
            tokens_BS[n, start:end] = torch.tensor(answer[:-1], dtype=torch.int64)
            positions_BS[n, start:end] = torch.arange(len(row.context), len(row.context) + len(answer) - 1)
            part_BS[n, start:end] = number
            at += [n * length + index for index in (len(row.context) - 1, *range(start, end))]
    asked = [Question(row.context, answer) for row in rows for answer in row.answers]
    target_N = torch.tensor([token for question in asked for token in question.answer], device=device)
    layout = None
    if any(row.branches for row in rows):
        causal_SS = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        part_BS = part_BS.to(device)
        own_BSS = (part_BS[:, None, :] == 0) | (part_BS[:, None, :] == part_BS[:, :, None])
        layout = Layout(positions_BS.to(device), own_BSS & causal_SS)
    scores = model(tokens_BS.to(device), layout=layout, at_N=torch.tensor(at, device=device), scored_N=target_N)
    assert isinstance(scores, TokenScores)
    sizes = [len(question.answer) for question in asked]
    log_probs = scores.log_prob_N.double().cpu().split(sizes)
    greedy = scores.greedy_N.cpu().split(sizes)
    return {
        question: Score(log_prob.sum().item(), bool(best.all()))
        for question, log_prob, best in zip(asked, log_probs, greedy, strict=True)
    }
