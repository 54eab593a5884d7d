"""The proof of an export can fail: one key of config.json or one tensor of each kind altered, family by family.

What transformers does not read is not tried: no logit tells of it, and verify_tensors holds every bit beside.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from moe.common.errors import RunFailed
from moe.model import Transformer
from moe.model.families.table import FAMILIES
from moe.use.export.to_hf import export
from moe.use.export.verify import verify_logits, verify_tensors
from moe.use.inference import find_checkpoint, load_model
from tests.tiny import write_run

ROOT = Path(__file__).resolve().parents[3]
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"n_layers": 2, "first_k_dense_replace": 1, "dense_hidden": 40},
    "Mixtral": {"qk_norm": False},
    "Olmoe": {"qk_norm": "full", "norm_topk_prob": False},
    "Glm4Moe": {
        "scoring_func": "sigmoid",
        "balance": "sign",
        "n_layers": 2,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "partial_rotary_factor": 0.5,
        "tie_embeddings": False,
    },
}
OF_ALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "num_key_value_heads": 4,
    "rms_norm_eps": 0.1,
    "hidden_act": "gelu",
    "num_experts_per_tok": 1,
    "rope": 500.0,  # rope_theta, at the top and in rope_parameters
}
KEYS: dict[str, dict[str, Any]] = {
    "Qwen3Moe": {"norm_topk_prob": False, "mlp_only_layers": [], "intermediate_size": 48, "head_dim": 16},
    "Mixtral": {"num_local_experts": 3, "sliding_window": 2, "intermediate_size": 48},
    "Olmoe": {"norm_topk_prob": True, "clip_qkv": 0.01, "num_experts": 3, "intermediate_size": 48},
    "Glm4Moe": {
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "n_shared_experts": 2,
        "first_k_dense_replace": 0,
        "use_qk_norm": False,
        "n_routed_experts": 3,
        "moe_intermediate_size": 48,
        "partial": 1.0,  # partial_rotary_factor, at the top and in rope_parameters
    },
}
KINDS = {
    "Qwen3Moe": ["0.mlp.gate_proj", "0.mlp.down_proj", "1.mlp.gate", "1.mlp.experts.2.up_proj", "1.self_attn.q_norm"],
    "Mixtral": ["1.block_sparse_moe.gate", "1.block_sparse_moe.experts.2.w1", "0.block_sparse_moe.experts.1.w3"],
    "Olmoe": ["0.self_attn.q_norm", "1.self_attn.k_norm", "1.mlp.gate", "1.mlp.experts.0.down_proj"],
    "Glm4Moe": [
        "1.mlp.gate.e_score_correction_bias",
        "1.mlp.gate",
        "1.mlp.shared_experts.gate_proj",
        "1.mlp.shared_experts.down_proj",
        "0.mlp.up_proj",
        "1.mlp.experts.3.gate_proj",
        "0.self_attn.k_proj",
        "0.self_attn.v_proj",
        "1.self_attn.o_proj",
        "1.self_attn.k_norm",
        "0.input_layernorm",
        "1.post_attention_layernorm",
        "embed_tokens",
        "norm",
        "lm_head",
    ],
}


class Exported(NamedTuple):
    folder: Path
    model: Transformer


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> dict[str, Exported]:
    found = {}
    for name, shape in SHAPES.items():
        place = tmp_path_factory.mktemp(name)
        run = write_run(place / "run", tokenizer_folder, **shape)
        export(str(run), out=place / "hf", say=lambda line: None)
        found[name] = Exported(place / "hf", load_model(find_checkpoint(str(run))).cpu())
        assert json.loads((place / "hf" / "config.json").read_text())["architectures"] == [f"{name}ForCausalLM"]
    return found


def altered(folder: Path, key: str, value: Any) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    key = {"rope": "rope_theta", "partial": "partial_rotary_factor"}.get(key, key)
    assert config[key] != value
    rope = config["rope_parameters"]
    return config | {key: value, "rope_parameters": rope | {key: value} if key in rope else rope}


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [(family, key, value) for family, own in KEYS.items() for key, value in (OF_ALL | own).items()],
    ids=str,
)
def test_an_altered_key_fails(families, tmp_path: Path, family: str, key: str, value: Any) -> None:
    folder, model = families[family]
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(altered(folder, key, value)))
    with pytest.raises(RunFailed):
        verify_logits(tmp_path, model)


@pytest.mark.parametrize("family", KINDS)
def test_an_altered_tensor_of_each_kind_fails_and_what_was_exported_does_not(families, tmp_path: Path, family: str):
    folder, model = families[family]
    assert verify_logits(folder, model) < 1e-5
    right = load_file(folder / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    for kind in KINDS[family]:
        (name,) = (n for n in right if n.removesuffix(".weight").removeprefix("model.").removeprefix("layers.") == kind)
        save_file(
            {**right, name: right[name].flip(0).contiguous()}, tmp_path / "model.safetensors", metadata={"format": "pt"}
        )
        with pytest.raises(RunFailed, match=f"{name}: its values"):
            verify_tensors(tmp_path, right)
        with pytest.raises(RunFailed, match="logits differ"):
            verify_logits(tmp_path, model)


@pytest.mark.parametrize("factor", [1e-6, 1e3])
def test_a_difference_counts_relative_to_the_logits_however_large_they_are(families, tmp_path: Path, factor: float):
    folder, model = families["Qwen3Moe"]
    tensors, model = load_file(folder / "model.safetensors"), copy.deepcopy(model)
    shutil.copy(folder / "config.json", tmp_path)
    model.norm.weight.data *= factor
    tensors["model.norm.weight"] *= factor
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert verify_logits(tmp_path, model) < 1e-5
    tensors["model.layers.1.mlp.gate.weight"] = tensors["model.layers.1.mlp.gate.weight"].flip(0).contiguous()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunFailed, match="logits differ"):
        verify_logits(tmp_path, model)


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Of the median token, relative: in bf16 a near tie between two experts falls either way."""
    return ((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).median().item()


@pytest.mark.parametrize("family", SHAPES)
def test_in_bf16_transformers_makes_the_same_of_a_folder_within_its_rounding(families, family: str) -> None:
    folder, model = families[family]
    tokens = torch.randint(1, 290, (4, 48), generator=torch.Generator().manual_seed(9))
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours = model(tokens).float()
    with torch.no_grad():
        theirs = peer(tokens).logits.float()
    assert 0 < distance(ours, theirs) < 0.05
    for router in model.routers:
        router.weight.data.neg_()
    with torch.no_grad():
        assert distance(model(tokens), theirs) > 0.1, "what is wrong is further away"
    for router in model.routers:
        router.weight.data.neg_()


def test_the_page_lists_the_architectures_in_the_order_of_preference() -> None:
    page = (ROOT / "docs/serving.md").read_text()
    table = re.search(r"<!-- families.*?<!-- /families -->", page, re.S)
    assert table
    assert re.findall(r"^\| `(\w+)`", table[0], re.M) == [family.architecture for family in FAMILIES]
