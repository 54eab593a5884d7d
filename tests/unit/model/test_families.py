"""Every option of the model against transformers' own classes of its family: logits, loss and every gradient, fp32.

The folder is written by the names and keys of moe/model/families, as the export writes it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from moe.common.errors import InputError
from moe.model.families.family import Family
from moe.model.families.table import complete, engine_notes, family_of, hindrance_of
from moe.use.export.names import hf_parts, with_zeros
from moe.use.export.settings import from_config, to_config
from moe.use.export.to_hf import hf_tensors

transformers = pytest.importorskip("transformers")

SIGMOID = {"scoring_func": "sigmoid"}
FIRST = {"n_layers": 3, "first_k_dense_replace": 1}
# name -> (architecture, settings): each option alone, then all together
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("Qwen3Moe", {}),
    "not normalised": ("Qwen3Moe", {"norm_topk_prob": False}),
    "dense first": ("Qwen3Moe", {**FIRST, "dense_hidden": 40}),
    "two dense first, as wide as a token's experts": ("Qwen3Moe", {"n_layers": 3, "first_k_dense_replace": 2}),
    "no QK-norm": ("Mixtral", {"qk_norm": False}),
    "full QK-norm": ("Olmoe", {"qk_norm": "full", "norm_topk_prob": False}),
    "sigmoid": ("Glm4Moe", SIGMOID),
    "sign": ("Glm4Moe", {**SIGMOID, "balance": "sign"}),
    "scaled": ("Glm4Moe", {**SIGMOID, "routed_scaling_factor": 2.5}),
    "shared": ("Glm4Moe", {**SIGMOID, "n_shared_experts": 2}),
    "part of the channels": ("Glm4Moe", {**SIGMOID, "partial_rotary_factor": 0.5}),
    "sigmoid, no QK-norm": ("Glm4Moe", {**SIGMOID, "qk_norm": False}),
    "sigmoid, not normalised": ("Glm4Moe", {**SIGMOID, "norm_topk_prob": False}),
    "sigmoid, dense first": ("Glm4Moe", {**SIGMOID, **FIRST}),
    "softmax, all": (
        "Qwen3Moe",
        {**FIRST, "dense_hidden": 72, "norm_topk_prob": False, "tie_embeddings": False, "head_dim": 16},
    ),
    "sigmoid, all": (
        "Glm4Moe",
        {
            **SIGMOID,
            **FIRST,
            "dense_hidden": 72,
            "balance": "quantile",
            "routed_scaling_factor": 2.5,
            "n_shared_experts": 1,
            "partial_rotary_factor": 0.5,
            "norm_topk_prob": False,
            "qk_norm": False,
            "tie_embeddings": False,
            "n_experts": 6,
            "top_k": 3,
        },
    ),
}


def settings_of(shape: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return complete({"tie_embeddings": True, **{k: v for k, v in shape.items() if k != "vocab_size"}, **changes})


def random_bias(model: Any) -> None:
    for router in model.routers:
        if router.bias_E is not None:
            router.bias_E.uniform_(-0.3, 0.3)


def write(folder: Path, model: Any, settings: dict[str, Any], family: Family) -> None:
    weights = with_zeros({name: weight.detach() for name, weight in model.state_dict().items()}, settings, family)
    weights.setdefault("lm_head.weight", model.embed.weight.detach().clone())
    parts = {name: part.contiguous() for name, part in hf_tensors(weights, family).items()}
    save_file(parts, folder / "model.safetensors", metadata={"format": "pt"})
    vocab_size = model.embed.weight.shape[0]
    config = to_config(settings, family, vocab_size=vocab_size, max_seq_len=64, special={"eos_token_id": 0})
    (folder / "config.json").write_text(json.dumps(config))


def in_5(name: str) -> str:
    """What transformers 5 calls a parameter of Mixtral's inside; its folders are those of 4."""
    others = {"block_sparse_moe": "mlp", ".w1.": ".gate_proj.", ".w3.": ".up_proj.", ".w2.": ".down_proj."}
    for former, now in others.items():
        name = name.replace(former, now)
    return name


def gradients_by_name(peer: Any, hidden: int) -> dict[str, Tensor]:
    """Of transformers 4 as they are; 5 has the experts of a layer in two tensors, which are taken apart."""
    found: dict[str, Tensor] = {}
    for name, parameter in peer.named_parameters():
        if name.endswith("experts.gate_up_proj"):
            for expert, grad in enumerate(parameter.grad):
                stem = name.replace("gate_up_proj", str(expert))
                found |= {f"{stem}.gate_proj.weight": grad[:hidden], f"{stem}.up_proj.weight": grad[hidden:]}
        elif name.endswith("experts.down_proj"):
            stems = (name.replace("down_proj", str(expert)) for expert in range(len(parameter.grad)))
            found |= {f"{stem}.down_proj.weight": grad for stem, grad in zip(stems, parameter.grad, strict=True)}
        else:
            found[name] = parameter.grad
    return found


@pytest.mark.parametrize("name", CASES)
def test_logits_loss_and_every_gradient_are_those_of_transformers(build, shape, tokens, tmp_path: Path, name: str):
    architecture, changes = CASES[name]
    settings = settings_of(shape, changes)
    family = family_of(settings)
    assert family.architecture == f"{architecture}ForCausalLM"
    model = build(document_mask=False, **changes)
    random_bias(model)
    write(tmp_path, model, settings, family)
    peer, told = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        ours, theirs = model.eval()(tokens), peer.eval()(tokens).logits
    assert theirs.std() > 0.5, "logits near zero would agree whatever the model does"
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    if model.routers[0].bias_E is not None:
        model.routers[0].bias_E.neg_()
        with torch.no_grad():
            assert (model(tokens) - theirs).abs().max() > 0.1, "the bias decides"
        model.routers[0].bias_E.neg_()
    parts = model.train()(tokens, tokens)
    (parts.loss / parts.targets).backward()
    loss = peer.train()(tokens, labels=tokens).loss
    loss.backward()
    torch.testing.assert_close(parts.nll / parts.targets, loss.detach(), atol=1e-5, rtol=1e-5)
    found = gradients_by_name(peer, shape["expert_hidden"])
    known, compared = set(peer.state_dict()), 0
    for ours_name, parameter in model.named_parameters():
        for theirs_name, grad in hf_parts(ours_name, parameter.grad, family).items():
            wanted = found.get(theirs_name, found.get(in_5(theirs_name)))
            if wanted is None:  # an expert that no token chose
                assert theirs_name in known and ".experts." in theirs_name and not grad.any(), theirs_name
                continue
            assert wanted.abs().max() > 1e-6 or ".experts." in theirs_name, theirs_name
            torch.testing.assert_close(grad, wanted, atol=1e-5, rtol=1e-3, msg=lambda m, n=theirs_name: f"{n}: {m}")
            compared += 1
    assert compared > 20


@pytest.mark.parametrize("name", CASES)
def test_a_config_json_is_read_back_as_the_settings_it_was_written_of(shape, name: str):
    _, changes = CASES[name]
    settings = settings_of(shape, changes)
    family = family_of(settings)
    written = to_config(settings, family, vocab_size=97, max_seq_len=64, special={"eos_token_id": 0})
    read, found = from_config(json.loads(json.dumps(written)), "x")
    assert found is family
    back = complete(read)
    differing = {key for key in back if key not in ("dropout", "document_mask") and back[key] != settings.get(key)}
    if not settings["first_k_dense_replace"]:
        differing.discard("dense_hidden")
    if family.zeros and settings["n_shared_experts"] == 0 and settings["first_k_dense_replace"]:
        assert back["dense_hidden"] == settings["top_k"] * settings["expert_hidden"]
        differing.discard("dense_hidden")
    if family.zeros:  # a bias and a shared expert are always there, if only as zeros
        assert back["balance"] == "sign" and back["n_shared_experts"] == max(1, settings["n_shared_experts"])
        differing -= {"balance", "n_shared_experts"}
    assert not differing


def test_what_an_engine_loses_is_told_and_what_none_computes_is_refused(shape):
    def of(**changes: Any) -> dict[str, Any]:
        return settings_of(shape, changes)

    assert engine_notes(of()) == engine_notes(of(qk_norm=False)) == engine_notes(of(scoring_func="sigmoid")) == []
    assert "there is no GGUF" in engine_notes(of(**FIRST))[0]
    assert "llama.cpp's Qwen3-MoE always divides" in engine_notes(of(norm_topk_prob=False))[0]
    olmoe = {"qk_norm": "full", "norm_topk_prob": False}
    assert "n_kv_heads (2): llama.cpp's OLMoE wants" in engine_notes(of(**olmoe))[0]
    assert engine_notes(of(**olmoe, n_kv_heads=4)) == []
    told = hindrance_of(of(n_shared_experts=1))
    assert told is not None and told.index("Qwen3Moe") < told.index("Mixtral"), "the nearest first"
    assert hindrance_of(of()) is None
    with pytest.raises(InputError, match=r"config.model: has no d_model, n_experts; the manifest is damaged"):
        complete({name: value for name, value in shape.items() if name not in ("d_model", "n_experts")})
    former = {**shape, "qk_norm": True}  # as version 0.1 wrote it, and without the settings it had not
    assert family_of(former).architecture == "Qwen3MoeForCausalLM"
