"""Checkpoints as Hugging Face folders, read by the transformers of this environment and, where there is one, by 5.x."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from moe.common.errors import InputError, RunFailed
from moe.use.export import to_hf
from moe.use.export.to_hf import export
from moe.use.inference import find_checkpoint, load_model

ROOT = Path(__file__).resolve().parents[3]
PYTHON_5 = ROOT / ".venv5" / "bin" / "python"
SIGMOID = {"scoring_func": "sigmoid", "routed_scaling_factor": 2.5}
MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tie_embeddings": False, "head_dim": 16, "rope_theta": 1e6},
    "top 1": {"top_k": 1, "n_kv_heads": 4, "norm_eps": 1e-5},
    "dense": {"n_experts": 1, "top_k": 1},
    "dense first": {"first_k_dense_replace": 1, "dense_hidden": 40, "norm_topk_prob": False},
    "mixtral": {"qk_norm": False, "head_dim": 16},
    "olmoe": {"qk_norm": "full", "norm_topk_prob": False, "n_kv_heads": 4},
    "glm": {**SIGMOID, "balance": "quantile", "n_layers": 3, "first_k_dense_replace": 1, "n_shared_experts": 2},
    "glm without": {**SIGMOID, "qk_norm": False, "partial_rotary_factor": 0.5, "tie_embeddings": False},
}


def run_export(run: Path, out: Path, **settings: Any) -> None:
    export(str(run), out=out, say=lambda line: None, **settings)


def logits(folder: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(tokens).logits


def our_logits(run: Path, tokens: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return load_model(find_checkpoint(str(run))).cpu()(tokens)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(1, 290, (2, 48), generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("name", MODELS)
def test_transformers_makes_the_same_logits_of_the_folder(make_run: Callable, tmp_path: Path, tokens, name) -> None:
    run = make_run(**MODELS[name])
    run_export(run, tmp_path / "hf")
    ours = our_logits(run, tokens)
    assert ours.std() > 0.5, "logits near zero would agree whatever the model does"
    torch.testing.assert_close(logits(tmp_path / "hf", tokens), ours, atol=1e-5, rtol=1e-5)


def test_names_are_per_expert_and_the_config_says_what_either_transformers_needs(
    make_run: Callable, tmp_path: Path
) -> None:
    run_export(make_run(), tmp_path / "hf")
    names = load_file(tmp_path / "hf" / "model.safetensors")
    assert names["model.layers.1.mlp.experts.3.gate_proj.weight"].shape == (24, 32)
    assert names["model.layers.0.mlp.gate.weight"].shape == (4, 32)
    assert torch.equal(names["lm_head.weight"], names["model.embed_tokens.weight"]), "SGLang ties no head"
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        "num_local_experts": 4,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "head_dim": 8,
        "intermediate_size": 48,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 64,
        "eos_token_id": 0,
    }
    assert expected == {key: config[key] for key in expected}
    sampling = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (sampling.eos_token_id, sampling.temperature, sampling.top_p) == (0, 0.8, 0.95)
    assert sampling.top_k == config["vocab_size"], (
        "transformers takes 50 where nothing is said; `moe generate` takes all"
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.model_max_length == 64 and tokenizer("the model")["input_ids"]


def test_a_dense_model_is_a_plain_qwen3_without_a_router(make_run: Callable, tmp_path: Path) -> None:
    run_export(make_run(n_experts=1, top_k=1), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForCausalLM"] and config["intermediate_size"] == 24
    names = load_file(tmp_path / "hf" / "model.safetensors")
    assert "model.layers.0.mlp.gate_proj.weight" in names and not [n for n in names if "mlp.gate." in n]


def test_a_large_model_is_sharded_with_an_index(make_run: Callable, tmp_path: Path, tokens) -> None:
    run = make_run()
    run_export(run, tmp_path / "one")
    run_export(run, tmp_path / "many", shard_bytes=20_000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 3 and files == sorted(set(index["weight_map"].values()))
    whole = load_file(tmp_path / "one" / "model.safetensors")
    parts = {name: load_file(tmp_path / "many" / file)[name] for name, file in index["weight_map"].items()}
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(part.nbytes for part in whole.values())
    largest = max(part.nbytes for part in whole.values())
    for file in files:
        size = sum(part.nbytes for part in load_file(tmp_path / "many" / file).values())
        assert size <= max(20_000, largest)
    assert torch.equal(logits(tmp_path / "many", tokens), logits(tmp_path / "one", tokens))


def test_what_transformers_reads_otherwise_is_not_left_behind(make_run: Callable, tmp_path: Path, monkeypatch) -> None:
    run, plain = make_run(), to_hf.to_config
    wrong = {"rope_theta": 9000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 9000.0}}
    for change in (wrong, {"norm_topk_prob": False}, {"rms_norm_eps": 0.1}, {"num_key_value_heads": 3}):
        monkeypatch.setattr(to_hf, "to_config", lambda *a, change=change, **k: plain(*a, **k) | change)
        with pytest.raises(RunFailed, match="transformers"):
            run_export(run, tmp_path / "hf")
    monkeypatch.setattr(to_hf, "to_config", plain)
    parts = to_hf.hf_parts

    def swapped(name, weight, family):
        turned = {"gate_proj": "up_proj", "up_proj": "gate_proj"}
        found = parts(name, weight, family)
        return {".".join(turned.get(word, word) for word in key.split(".")): part for key, part in found.items()}

    monkeypatch.setattr(to_hf, "hf_parts", swapped)
    with pytest.raises(RunFailed, match="differ from ours"):
        run_export(run, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_folder_that_is_there_is_refused_replaced_only_on_demand_and_only_if_it_was_exported(
    make_run: Callable, tmp_path: Path
) -> None:
    run, out = make_run(steps=(10, 20)), tmp_path / "hf"
    run_export(run, out, step=10)
    first = (out / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="is there already"):
        run_export(run, out)
    assert (out / "model.safetensors").read_bytes() == first
    run_export(run, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="holds something else"):
        run_export(run, tmp_path / "mine", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "mine", "run"]


def test_a_failed_overwrite_leaves_what_was_there(make_run: Callable, tmp_path: Path, monkeypatch) -> None:
    run, out = make_run(), tmp_path / "hf"
    run_export(run, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setattr(to_hf, "verify_logits", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_export(run, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]


def test_the_script_exports_a_step(make_run: Callable, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "convert" / "checkpoint_to_hf.py"), str(make_run(steps=(10, 20)))]
    command += ["--step", "10", "--out", "hf"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "verified: max logit difference" in done.stdout and "step 10 of" in done.stdout
    assert (tmp_path / "hf" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["{run}", "--step", "7", "--out", "x"], "step-00000007: there is no such checkpoint"),
        (["nowhere", "--out", "x"], "nowhere: is not there; give a run folder"),
        (["--out", "x"], "give a checkpoint to export, or --from-hf"),
        (["{run}", "--from-hf", "y", "--out", "x"], "give a checkpoint to export, or --from-hf, not both"),
        (
            ["--from-hf", "y", "--step", "3", "--out", "x"],
            "--step (3) chooses a checkpoint to export; --from-hf has none",
        ),
        (["{run}", "--step", "-3", "--out", "x"], "--step (-3): must be at least 0"),
        (
            ["{run}/step-00000010", "--step", "20", "--out", "x"],
            "step-00000010: is one step's folder and takes no --step",
        ),
        (["{run}", "--out", "/dev/null/x"], "--out (/dev/null/x)"),
    ],
)
def test_bad_flags_are_one_message_and_exit_code_2(make_run: Callable, capsys, flags: list[str], told: str) -> None:
    import argparse

    from moe.use.export.flags import add_arguments, export_from

    parser, run = argparse.ArgumentParser(), str(make_run())
    add_arguments(parser)
    assert export_from(parser.parse_args([flag.format(run=run) for flag in flags])) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"routed_scaling_factor": 2.5}, "Qwen3MoeForCausalLM needs model.routed_scaling_factor 1.0 (is 2.5)"),
        ({"n_shared_experts": 1}, "Qwen3MoeForCausalLM needs model.n_shared_experts 0 (is 1)"),
        ({"n_shared_experts": 1}, "Glm4MoeForCausalLM needs model.scoring_func sigmoid (is softmax)"),
        ({"partial_rotary_factor": 0.5}, "Qwen3MoeForCausalLM needs model.partial_rotary_factor 1.0 (is 0.5)"),
        ({"balance": "quantile"}, "Qwen3MoeForCausalLM needs model.balance loss (is quantile)"),
        ({"qk_norm": False, "norm_topk_prob": False}, "MixtralForCausalLM needs model.norm_topk_prob true (is false)"),
        ({"qk_norm": "full"}, "OlmoeForCausalLM needs model.norm_topk_prob false (is true)"),
        ({"qk_norm": "full", "norm_topk_prob": False, "head_dim": 16}, "needs model.head_dim 8, which is d_model / n_"),
        ({"n_experts": 1, "top_k": 1, "qk_norm": False}, "Qwen3ForCausalLM needs model.qk_norm head (is false)"),
        (
            {"scoring_func": "sigmoid", "qk_norm": "full"},
            "Glm4MoeForCausalLM needs model.qk_norm head or false (is full)",
        ),
    ],
    ids=str,
)
def test_a_model_without_a_counterpart_is_refused_by_the_names_of_all_that_hinders(
    make_run: Callable, tmp_path: Path, changes: dict, told: str
) -> None:
    with pytest.raises(InputError) as error:
        run_export(make_run(**changes), tmp_path / "hf")
    assert "no architecture of transformers computes this model" in str(error.value) and told in str(error.value)
    assert str(error.value).count("ForCausalLM needs") == 5 and not (tmp_path / "hf").exists()


def test_the_card_tells_data_tokens_recipe_validation_and_shows_curves(make_run: Callable, tmp_path: Path) -> None:
    run = make_run(steps=(5, 10))
    run_export(run, tmp_path / "hf", step=5)
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "after step 5: 1.28k tokens" in card and "| optimizer.name | muon |" in card
    assert "| eval | 5 | 5.5000 | 244.7 | 2.5000 |" in card, "rows beyond the step are not its own"
    assert "![Training and validation loss over tokens](curves.png)" in card
    assert (tmp_path / "hf" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    (run / "metrics.jsonl").unlink()
    run_export(run, tmp_path / "bare")
    assert "curves.png" not in (tmp_path / "bare" / "README.md").read_text()
    assert not (tmp_path / "bare" / "curves.png").exists()


def test_the_card_tells_how_the_router_chooses_and_what_dense_layers_there_are(
    make_run: Callable, tmp_path: Path
) -> None:
    from moe.use.export.card import write_card

    checkpoint = find_checkpoint(str(make_run(**MODELS["glm"])))
    write_card(tmp_path, checkpoint)
    card = (tmp_path / "README.md").read_text()
    lines = ["n_shared_experts | 2", "first_k_dense_replace | 1", "scoring_func | sigmoid", "norm_topk_prob | true"]
    lines += ["routed_scaling_factor | 2.5", "model.balance | quantile", "qk_norm | head"]
    assert all(f"| {line} |" in card for line in lines)
    total = sum(weight.numel() for weight in load_model(checkpoint).parameters())
    assert f"language model of {total:,} parameters" in card
    del checkpoint.manifest["config"]["model"]["scoring_func"]  # as an earlier version wrote it
    write_card(tmp_path, checkpoint)
    assert "| scoring_func | softmax |" in (tmp_path / "README.md").read_text()


def test_the_card_of_an_adamw_run_names_no_setting_of_muon(make_run: Callable, tmp_path: Path) -> None:
    from moe.use.export.card import write_card
    from moe.use.inference import find_checkpoint

    checkpoint = find_checkpoint(str(make_run()))
    for name in ("muon", "adamw"):
        checkpoint.manifest["config"]["optimizer"] = {"name": name, "lr": 1e-3, "momentum": 0.95}
        write_card(tmp_path, checkpoint)
        card = (tmp_path / "README.md").read_text()
        assert f"| optimizer.name | {name} |" in card
        assert ("| optimizer.momentum | 0.95 |" in card) == (name == "muon")


def test_the_lines_of_python_on_the_card_work(make_run: Callable, tmp_path: Path, monkeypatch, capsys) -> None:
    run_export(make_run(), tmp_path / "run-hf")
    code = (tmp_path / "run-hf" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert 'folder = "run"' in code
    exec(code.replace('folder = "run"', f'folder = "{tmp_path / "run-hf"}"'), {})
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_the_card_describes_the_data_of_every_stream_that_is_still_there(
    make_run: Callable, tmp_path: Path, tiny: Path
) -> None:
    from moe.data.read.fingerprint import shards_fingerprint
    from moe.use.export.card import write_card
    from moe.use.inference import find_checkpoint

    checkpoint = find_checkpoint(str(make_run()))
    config, data = checkpoint.manifest["config"], str(tiny / "data")
    checkpoint.manifest["data"] = shards_fingerprint(data)
    alone, lost, text = (
        {"local": data},
        {"local": str(tmp_path / "gone")},
        {"local": None, "text": {"dataset": "some/text"}},
    )
    for train_data, described in (
        (alone, 1),
        ({"local": None, "streams": {"a": alone, "b": alone, "c": lost}}, 2),
        (text, 0),
    ):
        config["train_data"] = train_data
        write_card(tmp_path, checkpoint)
        assert (tmp_path / "README.md").read_text().count("documents, ") == described
    assert "`some/text`, tokenised as it was read." in (tmp_path / "README.md").read_text()


READ_AND_CONTINUE = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
tokens, answers = torch.tensor(json.loads(sys.argv[1])), []
for folder in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    AutoTokenizer.from_pretrained(folder)("the model")
    with torch.no_grad():
        logits = model(tokens).logits
        rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()(tokens).logits.float()
    greedy = model.generate(tokens[:1, :4], attention_mask=torch.ones(1, 4), do_sample=False, max_new_tokens=12)
    answers.append({"logits": logits, "rounded": rounded, "greedy": greedy[0, 4:].tolist()})
torch.save({"version": transformers.__version__, "answers": answers}, sys.argv[2])
"""


@pytest.mark.skipif(not PYTHON_5.exists(), reason="no environment with transformers 5: make test-transformers5")
def test_transformers_5_makes_the_same_of_the_same_folders(make_run: Callable, tmp_path: Path, tokens) -> None:
    from moe.model.generation import generate

    runs = [make_run(name=name.replace(" ", "-"), **changes) for name, changes in MODELS.items()]
    folders = [tmp_path / "hf" / run.name for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        run_export(run, folder)
    command = [PYTHON_5, "-c", READ_AND_CONTINUE, json.dumps(tokens.tolist()), tmp_path / "answer.pt", *folders]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, cwd=tmp_path)
    answer = torch.load(tmp_path / "answer.pt")
    assert int(answer["version"].split(".")[0]) >= 5
    for run, theirs in zip(runs, answer["answers"], strict=True):
        exact = our_logits(run, tokens)
        torch.testing.assert_close(theirs["logits"], exact, atol=1e-5, rtol=1e-5)
        away = (theirs["rounded"] - exact).norm(dim=-1) / exact.norm(dim=-1)
        assert 0 < away.median() < 0.05, "in bf16, where a near tie between two experts falls either way"
        model = load_model(find_checkpoint(str(run)))
        ours = list(generate(model, tokens[0, :4].tolist(), max_new_tokens=12, temperature=0))
        assert ours and theirs["greedy"][: len(ours)] == ours
