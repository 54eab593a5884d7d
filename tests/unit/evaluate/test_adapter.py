"""Our model in memory, as lm-eval sees it, against lm-eval's own Hugging Face model of the export."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lm_eval", reason="needs the extra `eval`")

from moe.data.text.tokenizer import load_tokenizer
from moe.evaluate.adapter import ModelLM
from moe.evaluate.contained import bootstrapped, contained, standard_error_of
from moe.evaluate.ranks import ScoringFailed
from moe.evaluate.requests import Requests
from moe.evaluate.scores import hugging_face_model, main_scores, score_task, scores_of
from moe.evaluate.suites import SUITES, SuiteTask, suite_score
from moe.evaluate.tasks import LoadedTask, find_tasks, load_task, task_cost
from moe.use.export.beside import exported
from moe.use.inference import find_checkpoint, load_model
from tests.tiny import write_run

TASKS = Path(__file__).resolve().parents[3] / "yamls" / "tasks"
NAMES = ["offline_ends", "offline_order", "offline_last_word", "offline_text", "offline_copy"]


@pytest.fixture(scope="module")
def tasks() -> list[LoadedTask]:
    manager = find_tasks(NAMES, TASKS)
    return [load_task(manager, name, limit=7) for name in NAMES]


@pytest.fixture(scope="module")
def both(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelLM, object]:
    """Ours, and lm-eval's of the export; the model sees 64 tokens, so long contexts are cut."""
    run = write_run(tmp_path_factory.mktemp("adapter") / "run", tiny / "tokenizer")
    checkpoint = find_checkpoint(str(run))
    tokenizer = load_tokenizer(str(tiny / "tokenizer"))
    ours = ModelLM(
        load_model(checkpoint).cpu(),
        Requests(tokenizer, max_seq_len=64, trained_mask=True),
        batch_tokens=256,
    )
    return ours, hugging_face_model(str(exported(checkpoint)), 3)


def requests_of(task: LoadedTask) -> dict[str, list]:
    with contained():
        task.prepare()
        (only,) = task.loaded["tasks"].values()
        only.build_all_requests(limit=task.limit)
    kinds: dict[str, list] = {}
    for request in only.instances:
        kinds.setdefault(request.request_type, []).append(request)
    return kinds


def test_five_tasks_of_all_output_types_are_answered_as_the_export_answers(both, tasks) -> None:
    ours, theirs = both
    seen = set()
    for task in tasks:
        for kind, requests in requests_of(task).items():
            found, expected = getattr(ours, kind)(requests), getattr(theirs, kind)(requests)
            if kind == "generate_until":
                assert found == expected and len(set(found)) > 1
            elif kind == "loglikelihood":
                assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)
                assert [one[1] for one in found] == [one[1] for one in expected]
            else:
                assert found == pytest.approx(expected, rel=1e-6)
            seen.add((next(iter(task.loaded["tasks"].values())).OUTPUT_TYPE, kind))
    assert len(seen) == 4, "multiple_choice, loglikelihood, rolling, generate_until"
    assert any("x: contexts cut in front to max_seq_len (64): " in line for line in ours.requests.notes("x")), (
        "some contexts are too long"
    )


def test_scores_carry_errors_cost_what_was_told_and_leave_random_states_alone(both, tasks, monkeypatch) -> None:
    import moe.evaluate.scoring as scoring

    ours, theirs = both
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    tokens = []
    plain = scoring._forward
    monkeypatch.setattr(scoring, "_forward", lambda m, rows: tokens.extend(r.length for r in rows) or plain(m, rows))
    for task in tasks:
        cost = task_cost(ours.requests, task)
        assert ours.requests.notes(task.name) == [], "nothing has been scored yet"
        tokens.clear()
        found = scores_of(score_task(ours, task), task.name)
        assert task.name == "offline_copy" or cost == sum(tokens), "each question is asked once"
        expected = scores_of(score_task(theirs, task), task.name)
        assert [(one.metric, one.items) for one in found] == [(one.metric, one.items) for one in expected]
        assert [one.value for one in found] == pytest.approx([one.value for one in expected], rel=1e-5)
        assert all(one.error is not None and one.error >= 0 and one.items == 7 for one in found)
        assert score_task(ours, task)["results"] == score_task(ours, task)["results"], "asked the same every time"
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    (main,) = main_scores(scores_of(score_task(ours, tasks[0]), "offline_ends"))
    assert main.metric == "acc_norm"


def test_text_becomes_the_tokens_of_the_training(both) -> None:
    """No BOS before it, and the letters of EOS are letters; without a context it stands behind EOS."""
    asked = both[0].requests
    asked.notes("earlier ones")
    eos = asked.tokenizer.eos_token_id
    letters, bare, spaced = asked.questions([("a <|endoftext|>", " b"), ("", "the model"), ("the model ", "reads")])
    assert eos not in letters.context and len(letters.context) > 5
    assert bare.context == (eos,)
    assert asked.tokenizer.decode(spaced.context) == "the model" and asked.tokenizer.decode(spaced.answer) == " reads"
    assert "x: texts after a bare EOS: 1; in training" in "".join(asked.notes("x"))
    asked.questions([("a", "b")])
    assert asked.notes("x") == []


SAMPLES = {"until": ["."], "do_sample": True, "temperature": 0.7}


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("generate_until", ("a", {"until": ["."]}), r"asks for 256 new tokens \(max_gen_toks\), and the model sees 64"),
        ("generate_until", ("a", {**SAMPLES, "max_gen_toks": 4}), "samples its answers"),
        ("loglikelihood", ("a", " the" * 80), r"an answer of \d+ tokens does not fit the model's 64"),
        ("loglikelihood", ("a", ""), "has no token of its own"),
    ],
)
def test_what_the_model_cannot_be_asked_is_one_sentence(both, kind: str, arguments: tuple, message: str) -> None:
    from lm_eval.api.instance import Instance

    request = Instance(kind, {}, arguments, 0, ("task", 0, 1))
    with pytest.raises(ScoringFailed, match=message):
        getattr(both[0], kind)([request])
    with pytest.raises(ScoringFailed, match=message):
        both[0].requests.cost(kind, [request])


def test_a_suite_has_the_mean_of_its_centred_scores(both, tasks) -> None:
    """0 for a model that guesses, 1 for one that is always right; by hand from two tasks."""
    suite = (SuiteTask("offline_ends", "acc", 0, 0.25), SuiteTask("offline_last_word", "acc", 0, 0.0))
    scores = {task.name: scores_of(score_task(both[0], task), task.name) for task in (tasks[0], tasks[2])}
    counted, mean = suite_score(suite, scores)
    first, second = counted
    assert (first.metric, second.metric) == ("acc", "acc")
    assert mean.value == pytest.approx(((first.value - 0.25) / 0.75 + second.value) / 2)
    assert mean.error == pytest.approx(((first.error / 0.75) ** 2 + second.error**2) ** 0.5 / 2)
    assert len(SUITES["core"]) == 9 and all(0 <= task.baseline < 1 for task in SUITES["core"])


def test_a_bootstrapped_error_is_that_of_the_formula_where_there_is_one() -> None:
    draw = random.Random(1)
    items = [draw.random() for _ in range(400)]
    mean = sum(items) / 400
    formula = (sum((x - mean) ** 2 for x in items) / 399) ** 0.5 / 20
    assert bootstrapped(lambda values: sum(values) / len(values), items) == pytest.approx(formula, rel=0.2)
    assert bootstrapped(lambda values: values[1000], items) is None
    assert standard_error_of(lambda values: values[1000], 10)(items) == "N/A"


def test_a_bootstrap_takes_turns_and_ter_which_would_take_hours_has_no_error() -> None:
    from lm_eval.api.metrics import ter

    turns: list[None] = []
    assert bootstrapped(lambda values: values[0], [1.0, 2.0], lambda: turns.append(None)) is not None
    assert len(turns) == 200

    def stops() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bootstrapped(lambda values: values[0], [1.0, 2.0], stops)
    assert standard_error_of(ter, 100)([("the end", "an end")] * 3) == "N/A"


def test_what_tasks_draw_is_alike_everywhere_and_moves_nothing_outside() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(()).item()

    found = []
    for seed in (1, 2):
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        with contained():
            found.append(draws())
        behind = draws()
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
        assert behind == draws()
    assert found[0] == found[1]


def test_a_run_asks_with_a_tasks_own_number_of_examples() -> None:
    from moe.config.observe import EvalTasks

    wanted = EvalTasks(names=["offline_order"])
    task = load_task(find_tasks(wanted.names, TASKS), "offline_order", fewshot=wanted.fewshot)
    task.prepare()
    assert [each.get_config("num_fewshot") for each in task.loaded["tasks"].values()] == [3]


def test_data_to_bring_have_the_folder_that_datasets_gives_them() -> None:
    from types import SimpleNamespace

    from moe.evaluate.tasks import _bring

    entry = SimpleNamespace(cfg={"dataset_path": "TIGER-Lab/MMLU-Pro"})
    told = _bring(SimpleNamespace(task_index={"mmlu_pro": entry}), "mmlu_pro")
    assert "load_dataset('TIGER-Lab/MMLU-Pro')" in told and "/TIGER-Lab___mmlu-pro here" in told
