"""lm-eval's tasks on a checkpoint, without a network: a task file and data of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from moe.cli.main import main
from moe.data.text.tokenizer import load_tokenizer
from moe.use.inference import find_checkpoint, load_model
from tests.tiny import WORDS, write_run

TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
target_delimiter: ""
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
QUESTIONS = [(f"{WORDS[i]} {WORDS[i + 1]}", [f" {WORDS[i + 2]}", f" {WORDS[i + 3]}"]) for i in range(12)]


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", tiny / "tokenizer", steps=(10, 20))


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one task of which the right answer is always the first choice."""
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"question": question, "choices": choices, "answer": 0} for question, choices in QUESTIONS]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "own.yaml").write_text(TASK.format(name="own_choice", data=folder / "data.jsonl"))
    return folder


def first_is_likelier(run: Path, tokenizer_folder: Path) -> list[bool]:
    """What lm-eval must find: whether our own model gives the first choice more probability than the second."""
    checkpoint = find_checkpoint(str(run))
    model, tokenizer = load_model(checkpoint).cpu(), load_tokenizer(str(tokenizer_folder))
    answers = []
    for question, choices in QUESTIONS:
        scores = []
        for choice in choices:
            start = len(tokenizer(question, add_special_tokens=False)["input_ids"])
            tokens = torch.tensor([tokenizer(question + choice, add_special_tokens=False)["input_ids"]])
            with torch.no_grad():
                log_prob = model(tokens)[0, :-1].log_softmax(-1)
            scores.append(log_prob.gather(1, tokens[0, 1:, None])[start - 1 :].sum().item())
        answers.append(scores[0] > scores[1])
    return answers


def test_a_task_of_ones_own_is_scored_as_the_model_answers(
    run: Path, tasks: Path, tiny: Path, tmp_path: Path, capsys
) -> None:
    out = tmp_path / "results" / "own.json"
    command = ["eval", str(run), "--tasks", "own_choice", "--include-path", str(tasks), "--output", str(out)]
    assert main(command) == 0
    expected = first_is_likelier(run, tiny / "tokenizer")
    assert 0 < sum(expected) < len(expected), "a score of 0 or 1 would show little"
    results = json.loads(out.read_text())
    assert results["step"] == 20 and results["results"]["own_choice"]["acc,none"] == sum(expected) / len(expected)
    assert "own_choice" in capsys.readouterr().out and not (run / "hf").exists(), "nothing is exported"
    assert main([*command, "--limit", "5", "--through-export"]) == 0
    assert "verified: max logit difference" in capsys.readouterr().out
    (exported,) = (run / "hf").iterdir()
    assert exported.name.startswith("step-00000020-")
    assert json.loads(out.read_text())["results"]["own_choice"]["acc,none"] == sum(expected[:5]) / 5
    assert main([*command, "--limit", "5", "--fewshot", "0", "--beside", str(exported)]) == 0
    shown = capsys.readouterr().out
    assert "verified" not in shown
    compared = json.loads(out.read_text())["compared"]
    ours, beside = (scores[0] for scores in compared.values())
    assert ours == beside and ours["value"] == sum(expected[:5]) / 5 and ours["error"] > 0
    assert f"{ours['value']:.4f} ±{ours['error']:.4f}" in shown and exported.name in shown


def test_other_models_are_looked_for_first_and_take_no_result_away(
    run: Path, tasks: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    import moe.evaluate.scores as module
    from moe.common.errors import InputError

    out = tmp_path / "own.json"
    command = ["eval", str(run), "--tasks", "own_choice", "--include-path", str(tasks), "--limit", "5"]
    command += ["--output", str(out), "--beside", str(tmp_path / "none")]
    (tmp_path / "none").mkdir()
    assert main(command) == 2
    assert f"--beside ({tmp_path / 'none'})" in capsys.readouterr().err and not out.exists()

    def breaks(*_: object) -> None:
        raise InputError("no room for it")

    monkeypatch.setattr(module, "check_hugging_face_model", lambda *_: None)
    monkeypatch.setattr(module, "hugging_face_model", breaks)
    assert main(command) == 2 and "no room for it" in capsys.readouterr().err
    assert "own_choice" in json.loads(out.read_text())["results"]


def test_a_suite_is_scored_with_its_centred_mean(run: Path, tasks: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from moe.evaluate.suites import SUITES, SuiteTask

    monkeypatch.setitem(SUITES, "core", (SuiteTask("own_choice", "acc", 0, 0.5),))
    out = tmp_path / "core.json"
    command = ["eval", str(run), "--suite", "core", "--include-path", str(tasks), "--output", str(out)]
    assert main(command) == 0
    value, mean = next(iter(json.loads(out.read_text())["compared"].values()))
    assert mean["value"] == pytest.approx((value["value"] - 0.5) / 0.5) and "centred mean" in capsys.readouterr().out
    for flags, cause in (
        (["--suite", "score"], "--suite (score): there is core"),
        (["--suite", "core", "--fewshot", "2"], "--fewshot (2) has no effect on --suite"),
        (["--suite", "core", "--tasks", "own_choice"], "--tasks (own_choice) is in --suite core"),
    ):
        assert main(["eval", str(run), *flags, "--include-path", str(tasks)]) == 2
        assert cause in capsys.readouterr().err


def test_an_unknown_task_and_a_missing_folder_are_told(run: Path, tasks: Path, capsys, monkeypatch) -> None:
    import lm_eval.tasks

    known = lm_eval.tasks.TaskManager
    monkeypatch.setattr(lm_eval.tasks, "TaskManager", lambda **k: known(**{**k, "include_defaults": False}))
    assert main(["eval", str(run), "--tasks", "own_choice,nonesuch", "--include-path", str(tasks)]) == 2
    told = capsys.readouterr().err
    assert "lm-eval does not know nonesuch;" in told
    assert main(["eval", str(run), "--tasks", "own_choice", "--include-path", "nowhere"]) == 2
    assert "--include-path (nowhere): there is no such folder" in capsys.readouterr().err


def test_a_task_whose_data_cannot_be_had_is_told(run: Path, tasks: Path, capsys) -> None:
    (tasks / "data.jsonl").unlink()
    assert main(["eval", str(run), "--tasks", "own_choice", "--include-path", str(tasks)]) == 2
    told = capsys.readouterr().err
    assert "--tasks: the data of own_choice is not available: " in told and "docs/evaluation.md" in told
    assert "Traceback" not in told and not (run / "hf").exists()


def test_without_lm_eval_the_command_to_install_it_is_told(run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    assert main(["eval", str(run), "--tasks", "hellaswag"]) == 2
    assert "; pip install 'lm-eval[hf]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        ('doc_to_text: "{{question}}"', 'doc_to_text: "{{question | nofilter}}"', "lm-eval cannot do it ("),
        ("output_type: multiple_choice", "output_type: generate_until", "cannot be scored: it asks for 256 new tokens"),
    ],
)
def test_a_task_that_lm_eval_cannot_run_is_one_message(
    run: Path, tasks: Path, capsys, old: str, new: str, cause: str
) -> None:
    """C8: a template that is wrong, a task of another kind: lm-eval's words, exit code 2, no traceback."""
    text = (tasks / "own.yaml").read_text()
    assert old in text
    (tasks / "own.yaml").write_text(text.replace(old, new))
    assert main(["eval", str(run), "--tasks", "own_choice", "--include-path", str(tasks)]) == 2
    told = capsys.readouterr().err
    assert told.count("error: --tasks (own_choice)") == 1 and cause in told and "Traceback" not in told
