"""Hugging Face folders as checkpoints to start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe.common.errors import InputError, RunFailed
from moe.use.export import from_hf
from moe.use.export.from_hf import import_folder
from moe.use.export.settings import from_config
from moe.use.export.to_hf import export
from moe.use.inference import find_checkpoint, load_weights


def quiet(line: str) -> None:
    pass


@pytest.fixture
def folder(make_run: Callable, tmp_path: Path) -> Path:
    export(str(make_run()), out=tmp_path / "hf", say=quiet)
    return tmp_path / "hf"


GLM: dict[str, Any] = {"scoring_func": "sigmoid", "balance": "sign", "n_layers": 2, "first_k_dense_replace": 1}
GLM |= {
    "qk_norm": "head",
    "dense_hidden": 40,
    "n_shared_experts": 1,
    "routed_scaling_factor": 2.5,
    "partial_rotary_factor": 0.5,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": False, "head_dim": 16, "rope_theta": 1e6, "norm_topk_prob": False},
        {"qk_norm": False},  # Mixtral
        {"qk_norm": "full", "norm_topk_prob": False},  # OLMoE
        GLM,
    ],
    ids=str,
)
def test_the_round_trip_is_bit_identical(make_run: Callable, tmp_path: Path, changes: dict[str, Any]) -> None:
    run = make_run(**changes)
    export(str(run), out=tmp_path / "hf", say=quiet, shard_bytes=30_000)
    import_folder(str(tmp_path / "hf"), out=tmp_path / "back", say=quiet)
    before, after = find_checkpoint(str(run)), find_checkpoint(str(tmp_path / "back"))
    ours, theirs = load_weights(before), load_weights(after)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    settings, saved = after.manifest["config"]["model"], before.manifest["config"]["model"]
    assert settings == {key: saved[key] for key in settings}
    assert (after.step, after.manifest["vocab_size"]) == (0, before.manifest["vocab_size"])
    export(str(tmp_path / "back"), out=tmp_path / "again", say=quiet, shard_bytes=30_000)
    for path in (tmp_path / "hf").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_a_folder_that_transformers_saved_itself_is_read(make_run: Callable, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = make_run(tie_embeddings=False, rope_theta=1e6)
    export(str(run), out=tmp_path / "hf", say=quiet)
    AutoModelForCausalLM.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(tmp_path / "hf").save_pretrained(tmp_path / "saved")
    import_folder(str(tmp_path / "saved"), out=tmp_path / "back", say=quiet)
    ours, theirs = (load_weights(find_checkpoint(str(path))) for path in (run, tmp_path / "back"))
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())
    assert find_checkpoint(str(tmp_path / "back")).manifest["config"]["model"]["rope_theta"] == 1e6


def test_a_dense_model_returns_but_for_the_router_that_does_nothing(make_run: Callable, tmp_path: Path) -> None:
    run = make_run(n_experts=1, top_k=1)
    export(str(run), out=tmp_path / "hf", say=quiet)
    import_folder(str(tmp_path / "hf"), out=tmp_path / "back", say=quiet)
    ours, theirs = (load_weights(find_checkpoint(str(path))) for path in (run, tmp_path / "back"))
    for name, weight in ours.items():
        assert torch.equal(theirs[name], torch.zeros_like(weight) if "router" in name else weight)


def test_every_key_of_another_family_is_named(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    changes = {
        "norm_topk_prob": None,
        "attention_bias": True,
        "mlp_only_layers": [1],
        "decoder_sparse_step": 2,
        "use_sliding_window": True,
        "hidden_act": "gelu",
        "shared_expert_intermediate_size": 64,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0},
        "quantization_config": {"bits": 4},
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(InputError) as error:
        import_folder(str(folder), out=tmp_path / "back", say=quiet)
    for key in changes:
        assert key.replace("rope_parameters", "rope_type") in str(error.value)
    assert not (tmp_path / "back").exists()


def test_a_folder_without_a_config_is_told_and_a_run_with_the_key_that_continues_it(
    make_run: Callable, tmp_path: Path
) -> None:
    run = make_run()
    with pytest.raises(InputError, match=rf"holds no config\.json, .*; to continue a run .*: load_path={run}$"):
        import_folder(str(run), out=tmp_path / "back", say=quiet)
    with pytest.raises(InputError, match=r"holds no config\.json, so it is not a Hugging Face folder$"):
        import_folder(str(tmp_path), out=tmp_path / "back", say=quiet)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"architectures": ["Qwen2MoeForCausalLM"]}, r"architectures \(\['Qwen2MoeForCausalLM'\]\)"),
        ({"architectures": ["Qwen3MoeForCausalLM"]}, "hidden_size: is missing"),
        ({}, r"architectures \(None\)"),
    ],
)
def test_another_architecture_is_refused(config: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        from_config(config, "x")


def test_another_architecture_is_refused_with_the_other_keys_that_hinder() -> None:
    config = {"architectures": ["DeepseekV3ForCausalLM"], "n_shared_experts": 2, "quantization_config": {"bits": 8}}
    with pytest.raises(InputError) as error:
        from_config(config, "x")
    assert "architectures (['DeepseekV3ForCausalLM'])" in str(error.value)
    assert "quantization_config ({'bits': 8}): is not supported" in str(error.value)
    assert "n_shared_experts" not in str(error.value), "which Glm4Moe has"


def test_an_absent_rope_theta_is_what_the_architecture_means_by_it(make_run: Callable, tmp_path: Path) -> None:
    for name, changes, expected in (("mixtral", {"qk_norm": False}, 1e6), ("qwen", {}, 1e4)):
        export(str(make_run(name=name, **changes)), out=tmp_path / f"hf-{name}", say=quiet)
        config = json.loads((tmp_path / f"hf-{name}" / "config.json").read_text())
        config.pop("rope_theta", None), config.pop("rope_parameters", None)
        assert from_config(config, "x")[0]["rope_theta"] == expected


def test_layers_that_predict_several_tokens_are_refused_by_name(make_run: Callable, tmp_path: Path) -> None:
    export(str(make_run(**GLM)), out=tmp_path / "hf", say=quiet)
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 0 and from_config(config, "x")
    with pytest.raises(InputError, match=r"num_nextn_predict_layers \(1\): must be 0"):
        from_config({**config, "num_nextn_predict_layers": 1}, "x")


def test_weights_with_no_place_or_of_another_shape_are_named(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(32)
    weights.pop("model.norm.weight")
    weights["model.layers.1.mlp.gate.weight"] = torch.zeros(5, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError) as error:
        import_folder(str(folder), out=tmp_path / "back", say=quiet)
    for line in (
        "q_proj.bias: has no place",
        "model.norm.weight: is missing",
        "gate.weight: has shape [5, 32], needs [4, 32]",
    ):
        assert line in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]


def test_a_damaged_file_is_told(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="its weights cannot be read"):
        import_folder(str(folder), out=tmp_path / "back", say=quiet)


def test_rows_of_the_embedding_beyond_the_tokenizer_are_cut(folder: Path, tmp_path: Path) -> None:
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    name = "model.embed_tokens.weight"
    plain = weights[name]
    weights[name] = torch.cat([plain, torch.ones(12, plain.shape[1])])
    weights["lm_head.weight"] = weights[name].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": len(plain) + 12}))
    said: list[str] = []
    import_folder(str(folder), out=tmp_path / "back", say=said.append)
    assert torch.equal(load_weights(find_checkpoint(str(tmp_path / "back")))["embed.weight"], plain)
    assert "the rest is cut" in said[0]


def test_a_half_precision_folder_becomes_fp32(folder: Path, tmp_path: Path) -> None:
    weights = {name: part.bfloat16() for name, part in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    import_folder(str(folder), out=tmp_path / "back", say=quiet)
    embedding = load_weights(find_checkpoint(str(tmp_path / "back")))["embed.weight"]
    assert embedding.dtype == torch.float32 and torch.equal(embedding, weights["model.embed_tokens.weight"].float())


def test_a_name_is_fetched_from_the_hub_and_one_it_does_not_have_is_told(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    def hub(name: str, **settings: Any) -> str:
        if name != "someone/model":
            raise OSError("404 no such repository")
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    import_folder("someone/model", out=tmp_path / "back", say=quiet)
    assert find_checkpoint(str(tmp_path / "back")).manifest["config"]["tokenizer"] == "someone/model"
    with pytest.raises(InputError, match=r"someone/other\): is not a folder, and the hub does not give it \(404"):
        import_folder("someone/other", out=tmp_path / "other", say=quiet)


def test_what_does_not_agree_is_not_left_behind_and_a_trained_run_is_never_replaced(
    folder: Path, tmp_path: Path, monkeypatch
) -> None:
    with pytest.raises(InputError, match="holds something else"):
        import_folder(str(folder), out=tmp_path / "run", overwrite=True, say=quiet)
    plain = from_hf.from_config

    def wrong(*args: Any) -> tuple[dict[str, Any], Any]:
        settings, family = plain(*args)
        return {**settings, "rope_theta": 500.0}, family

    monkeypatch.setattr(from_hf, "from_config", wrong)
    with pytest.raises(RunFailed, match="differ from ours"):
        import_folder(str(folder), out=tmp_path / "back", say=quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "run"]
    monkeypatch.undo()
    import_folder(str(folder), out=tmp_path / "back", say=quiet)
    import_folder(str(folder), out=tmp_path / "back", overwrite=True, say=quiet)
    assert [path.name for path in sorted((tmp_path / "back").iterdir())] == [".made.json", ".saved", "step-00000000"]
