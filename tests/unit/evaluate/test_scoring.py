"""Answers scored many at a time, held against one plain forward pass each; alone and on two ranks."""

from __future__ import annotations

import random

import pytest
import torch
import torch.distributed

from moe.evaluate.greedy import continue_all
from moe.evaluate.ranks import Ranks, ScoringFailed, ScoringStopped
from moe.evaluate.scoring import Question, batches_of, cut, rows_of, score
from moe.model import Transformer
from moe.model.generation import generate
from tests.ranks import on_ranks
from tests.tiny import SHAPE

MOST = 24


def model() -> Transformer:
    torch.manual_seed(0)
    made = Transformer(
        **{"vocab_size": 40, "eos_id": 0, **SHAPE, "tie_embeddings": False, "document_mask": True, "dropout": 0.5}
    )
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.uniform_(0.5, 1.5) if name.endswith("norm.weight") else weight.mul_(8)
    return made


def questions() -> list[Question]:
    """Several answers behind one context, one-token answers, a question twice, contexts with EOS and too long ones."""
    draw = random.Random(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(draw.randrange(40) for _ in range(n))

    made = []
    for length in (1, 2, 7, 7, 20, 40):
        context = ids(length)
        made += [Question(context, ids(n)) for n in (1, 1, 3, 8, 14)]
    every = [Question(made[0].context, (token,)) for token in range(40)]  # one of them is what is most probable
    return [cut(question, MOST) for question in [*made, made[3], *every]]


def plainly(transformer: Transformer, question: Question) -> tuple[float, bool]:
    tokens = (question.context + question.answer)[-(MOST + 1) :]
    transformer.eval()
    transformer.document_mask = False
    with torch.no_grad():
        logits = transformer(torch.tensor([tokens[:-1]]))[0, -len(question.answer) :]
    answer = torch.tensor(question.answer)
    log_prob = logits.log_softmax(-1).gather(1, answer[:, None]).sum().item()
    return log_prob, bool((logits.argmax(-1) == answer).all())


def scored(transformer: Transformer, batch_tokens: int, between=lambda: False) -> list:
    ranks = Ranks(transformer, between)
    return score(transformer, questions(), most=MOST, batch_tokens=batch_tokens, ranks=ranks)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_a_score_is_that_of_a_plain_forward_pass_whatever_stands_beside_it(batch_tokens: int) -> None:
    transformer = model()
    found = scored(transformer, batch_tokens)
    assert transformer.training and transformer.document_mask, "the model is as it was"
    expected = [plainly(transformer, question) for question in questions()]
    assert [one.log_prob for one in found] == pytest.approx([log_prob for log_prob, _ in expected], abs=1e-4)
    assert [one.greedy for one in found] == [greedy for _, greedy in expected]
    assert 0 < sum(one.greedy for one in found) < len(found), "else it would show little"


def test_what_answers_share_is_computed_once_and_no_batch_is_larger_than_asked() -> None:
    asked = [Question((1, 2, 3, 4), (n, 5, 6)) for n in range(10)]
    rows = rows_of(asked + asked, 12)
    assert sum(row.length for row in rows) == 3 * 4 + 10 * 2, "three rows of at most 12 tokens, four answers in each"
    assert all(row.length <= 12 for row in rows)
    for size in (1, 12, 24, 1000):
        batches = batches_of(rows, size)
        assert [row for batch in batches for row in batch] == rows
        assert all(len(batch) == 1 or len(batch) * batch[0].length <= size for batch in batches)


def test_rows_with_a_mask_share_a_batch_only_where_they_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    import moe.evaluate.scoring as module

    branched = rows_of([Question((n, 2, 3, 4), (m, 5, 6)) for n in range(3) for m in range(4)], 12)
    plain = rows_of([Question((n, *range(11)), (1,)) for n in range(3)], 12)
    assert {row.length for row in [*branched, *plain]} == {12}
    sizes = [len(batch) for batch in batches_of(branched, 48)]
    monkeypatch.setattr(module, "MASKED_SPAN", 6)
    assert (sizes, [len(batch) for batch in batches_of(branched, 48)]) == ([3], [2, 1])
    assert [len(batch) for batch in batches_of(plain, 48)] == [3]


def test_a_row_with_a_mask_is_no_longer_than_that_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 short answers behind one EOS made a row of max_seq_len tokens, and a mask of its square."""
    asked = [Question((0,), (n, *range(14))) for n in range(3000)]
    assert max(row.length for row in rows_of(asked, 40_960)) <= 512
    long = [Question(tuple(range(1000)), (n, 1)) for n in range(3000)]
    assert 1000 < max(row.length for row in rows_of(long, 40_960)) <= 2000
    single = [Question((0,), (n,)) for n in range(3000)]
    assert len(rows_of(single, 40_960)) == 1, "needs no mask"


def test_contexts_lose_their_beginning_and_an_answer_that_does_not_fit_is_told() -> None:
    long = Question(tuple(range(30)), (1, 2, 3))
    assert cut(long, 10) == Question(tuple(range(22, 30)), (1, 2, 3))
    assert cut(Question((1,), (2,) * 10), 10) == Question((1,), (2,) * 10)
    with pytest.raises(ScoringFailed, match=r"an answer of 11 tokens does not fit the model's 10 \(max_seq_len\)"):
        cut(Question((1,), (2,) * 11), 10)


PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12, 13], [14, 15]]


def continued(transformer: Transformer, batch_tokens: int, between=lambda: False) -> list[list[int]]:
    return continue_all(
        transformer,
        PROMPTS,
        max_new_tokens=9,
        finished=lambda new: len(new) == 2 + new[0] % 5,
        most=MOST,
        batch_tokens=batch_tokens,
        ranks=Ranks(transformer, between),
    )


@pytest.mark.parametrize("batch_tokens", [1, 48, 1000])
def test_prompts_written_together_become_what_each_becomes_alone(batch_tokens: int) -> None:
    transformer = model()
    found = continued(transformer, batch_tokens)
    transformer.eval()
    for prompt, new in zip(PROMPTS, found, strict=True):
        alone = list(generate(transformer, prompt, max_new_tokens=9, temperature=0))
        assert new == (alone[: 2 + alone[0] % 5] if alone else [])
    assert len(set(map(len, found))) > 1 and any(len(set(new)) > 1 for new in found), "some end before others"


def test_a_request_to_stop_acts_between_two_batches() -> None:
    turns = []
    with pytest.raises(ScoringStopped):
        scored(model(), 60, lambda: turns.append(None) or len(turns) == 2)
    assert len(turns) == 2
    with pytest.raises(ScoringStopped):
        continued(model(), 48, lambda: True)


def on_two(rank: int) -> None:
    """Complete on each rank, then sharded: scores and texts as alone; an error and a stop of one reach both."""
    from moe.train.distributed.sharding import shard_transformer

    for needs_all in (False, True) if torch.__version__ >= "2.11" else (False,):  # older torch does not shard here
        transformer = model()
        if needs_all:
            shard_transformer(transformer, world_size=2, on_gpu=False)
        assert Ranks(transformer).needs_all is needs_all
        for size in (30, 60):
            found, expected = scored(transformer, size), ALONE[size]
            assert [one.log_prob for one in found] == pytest.approx([one.log_prob for one in expected], abs=1e-4)
            assert [one.greedy for one in found] == [one.greedy for one in expected]
        assert continued(transformer, 48) == ALONE["written"]
    transformer = model()
    if rank == 1:
        transformer.blocks[1].register_forward_pre_hook(lambda *_: exec("raise RuntimeError('no room')"))
    with pytest.raises(ScoringFailed, match="rank 1: RuntimeError: no room"):
        scored(transformer, 60)
    asked = torch.tensor(int(rank == 0))

    def agreed() -> bool:
        wanted = asked.clone()
        torch.distributed.all_reduce(wanted)
        return bool(wanted)

    with pytest.raises(ScoringStopped):
        scored(model(), 60, agreed)


ALONE: dict = {}


def test_two_ranks_share_the_work_and_all_get_all_of_it() -> None:
    ALONE.update({size: scored(model(), size) for size in (30, 60)}, written=continued(model(), 48))
    on_ranks(2, on_two)


def test_long_prompts_that_need_a_mask_are_written_in_smaller_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    import moe.evaluate.greedy as module

    transformer, sizes = model(), []
    expected = continued(transformer, 48)
    transformer.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    for span, most in ((MOST, 2), (MOST // 2, 1)):
        monkeypatch.setattr(module, "MASKED_SPAN", span)
        sizes.clear()
        assert continued(transformer, 48) == expected and max(sizes) == most


def test_of_several_errors_the_first_is_reported() -> None:
    transformer, made = model(), []
    ranks = Ranks(transformer)
    ranks.needs_all = True  # so that passes are made behind the first error too

    def fails(*_: object) -> None:
        made.append(None)
        raise RuntimeError(f"error {len(made)}")

    transformer.blocks[1].register_forward_pre_hook(fails)
    with pytest.raises(ScoringFailed, match=r"error 1$"):
        score(transformer, questions(), most=MOST, batch_tokens=30, ranks=ranks)
    assert len(made) > 1
