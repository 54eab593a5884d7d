"""`moe generate` against transformers on the exported folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moe.cli.main import main
from moe.data.text.tokenizer import load_tokenizer
from moe.model.generation import generate
from moe.use.export.to_hf import export
from moe.use.inference import find_checkpoint, load_model
from tests.tiny import divide

PROMPTS = ("the model", "every expert waits for", "a")
GREEDY = ["--temperature", "0", "--max-new-tokens", "24"]
SAMPLED = ["--seed", "3", "--max-new-tokens", "24"]  # random weights: greedy decoding may repeat a part of a character


def prompts(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--prompt", text)]


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False, "n_kv_heads": 1}, {"n_experts": 1, "top_k": 1}])
def test_greedy_tokens_are_transformers_tokens(make_run: Callable, tmp_path: Path, changes: dict) -> None:
    from transformers import AutoModelForCausalLM

    run = make_run(**changes)
    export(str(run), out=tmp_path / "hf", say=lambda line: None)
    model = load_model(find_checkpoint(str(run))).cpu()
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(tmp_path / "hf"))
    lengths = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        theirs = peer.generate(tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=32)
        theirs = theirs[0, tokens.shape[1] :].tolist()
        ours = list(generate(model, tokens[0].tolist(), max_new_tokens=32, temperature=0))
        assert ours == [token for token in theirs if token != model.eos_id]
        lengths.append(len(ours))
    assert max(lengths) == 32


def test_a_prompt_becomes_the_same_alone_and_in_company(make_run: Callable, capsys) -> None:
    run = str(make_run())
    for flags in (GREEDY, SAMPLED):
        assert main(["generate", run, *flags, *prompts(*PROMPTS)]) == 0
        together = capsys.readouterr().out
        for prompt in PROMPTS:
            assert main(["generate", run, *flags, *prompts(prompt)]) == 0
        assert capsys.readouterr().out == together
        assert all(line.startswith(prompt) for prompt, line in zip(PROMPTS, together.split("\n\n"), strict=False))


def test_text_is_shown_as_it_comes(make_run: Callable, monkeypatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("moe.cli.generate.show", lambda text, **settings: shown.append(text))
    assert main(["generate", str(make_run()), *SAMPLED, *prompts("the model")]) == 0
    assert shown[0] == "the model" and len(shown) > 10


def test_a_checkpoint_of_several_ranks_says_the_same(make_run: Callable, capsys) -> None:
    run = make_run()
    texts = []
    for _ in range(2):
        assert main(["generate", str(run), *SAMPLED, *prompts("the model")]) == 0
        texts.append(capsys.readouterr().out)
        divide(run / "step-00000010", 3)
    assert texts[0] == texts[1]


def test_a_step_is_chosen_and_a_missing_one_told(make_run: Callable, capsys) -> None:
    run = make_run(steps=(10, 20))
    texts = []
    for step in ("10", "20"):
        assert main(["generate", str(run), "--step", step, *SAMPLED, *prompts("the model")]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] != texts[1]
    assert main(["generate", str(run), *SAMPLED, *prompts("the model")]) == 0
    assert capsys.readouterr().out == texts[1]
    assert main(["generate", str(run), "--step", "7", *prompts("x")]) == 2
    assert "step-00000007: there is no such checkpoint folder" in capsys.readouterr().err
    for path in (run / "step-00000010", run / "step-00000010" / "state.pt"):
        assert main(["generate", str(path), "--step", "20", *prompts("x")]) == 2
        assert f"{path}: is one step's folder and takes no --step (20)" in capsys.readouterr().err
    assert main(["generate", str(run), "--step", "-3", *prompts("x")]) == 2
    assert "--step (-3): must be at least 0" in capsys.readouterr().err


def test_more_than_the_trained_length_is_warned_of(make_run: Callable, capsys) -> None:
    assert main(["generate", str(make_run()), "--max-new-tokens", "80", *prompts("the model")]) == 0
    assert "80 new ones; the model was trained on 64" in capsys.readouterr().err


@pytest.mark.parametrize("heat", ["nan", "inf", "-1", "1e-45"])
def test_a_temperature_without_probabilities_is_refused(capsys: pytest.CaptureFixture, heat: str) -> None:
    assert main(["generate", "nowhere", "--prompt", "hi", f"--temperature={heat}"]) == 2
    assert capsys.readouterr().err == f"error: --temperature ({float(heat)}) must be 0, or from 0.001 to 1,000\n"


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_generator_takes_is_refused(capsys: pytest.CaptureFixture, seed: int) -> None:
    assert main(["generate", "nowhere", "--prompt", "hi", f"--seed={seed}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --seed ({seed:.15g}) must be 0 or more and below 2^63")


def test_a_step_that_is_not_there_is_told_with_those_that_are(make_run: Callable, tmp_path: Path, capsys) -> None:
    """D8: of many the newest; a folder that is not there at all is told as that."""
    run = make_run(steps=(10, 20))
    assert main(["generate", str(run), "x", "--step", "70"]) == 2
    assert f"; {run} holds step 10, 20\n" in capsys.readouterr().err
    for step in range(100, 130):
        (run / f"step-{step:08d}").mkdir()
    assert main(["generate", str(run), "x", "--step", "70"]) == 2
    assert "129, and 12 earlier ones\n" in capsys.readouterr().err
    assert main(["generate", str(tmp_path / "no"), "x", "--step", "70"]) == 2
    assert f"; {tmp_path / 'no'} is not there at all" in capsys.readouterr().err


def test_a_prompt_needs_no_flag(make_run: Callable, capsys) -> None:
    """D10: several, beside flags, in any order; none is told."""
    run = str(make_run())
    assert main(["generate", run, *GREEDY, *prompts("the model", "a")]) == 0
    expected = capsys.readouterr().out
    assert main(["generate", run, "the model", "a", *GREEDY]) == 0
    assert capsys.readouterr().out == expected
    assert main(["generate", *GREEDY, run, "the model", "a"]) == 0
    assert capsys.readouterr().out == expected
    assert main(["generate", run]) == 2
    assert "give a text to continue" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/no/such", "./no", "../no", "~/no", "a/b/c", "runs/no", "no/"])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """D12: a path, or a name in a folder that is there."""
    import moe.data.text.tokenizer as module
    from moe.common.errors import InputError
    from moe.use.export.from_hf import import_folder

    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "hub_error", lambda name: pytest.fail("the hub was asked"))
    with pytest.raises(InputError, match="that folder is not there"):
        load_tokenizer(name)
    with pytest.raises(InputError, match="there is no such folder"):
        import_folder(name, out=tmp_path / "out")
    assert module.is_hub_name("gpt2") and module.is_hub_name("openai-community/gpt2")
