"""The model against transformers' Qwen3MoeForCausalLM with the same weights, named by hand; test_families.py has every
option and family, by the names of the export.

These go through a folder with one matrix per expert, as transformers 4 and 5 both read it; inside, 5 fuses experts.
"""

import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from moe.model.documents import document_causal_mask, document_ids

transformers = pytest.importorskip("transformers")


def qwen3_moe(model, shape, **changes):
    """A Qwen3MoeForCausalLM that holds the weights of `model`."""
    shape = {**shape, **changes}
    config = transformers.Qwen3MoeConfig(
        vocab_size=shape["vocab_size"],
        hidden_size=shape["d_model"],
        num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"],
        num_key_value_heads=shape["n_kv_heads"],
        head_dim=model.head_dim,
        num_experts=shape["n_experts"],
        num_experts_per_tok=shape["top_k"],
        moe_intermediate_size=shape["expert_hidden"],
        norm_topk_prob=shape.get("norm_topk_prob", True),
        rope_theta=model.rope_theta,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        rms_norm_eps=1e-6,
        tie_word_embeddings=model.lm_head is None,
        max_position_embeddings=256,
    )
    peer = loaded(model, transformers.Qwen3MoeForCausalLM, config)
    assert peer.config.rope_parameters["rope_theta"] == model.rope_theta
    return peer


def loaded(model, architecture, config):
    """An `architecture` that holds the weights of `model`, by way of a folder."""
    renamed = {}
    for name, weight in model.state_dict().items():
        name = "model." + name.replace("blocks.", "layers.").replace("embed.", "embed_tokens.")
        name = name.replace("attn_norm", "input_layernorm").replace("moe_norm", "post_attention_layernorm")
        name = name.replace(".attn.", ".self_attn.").replace("moe.router", "mlp.gate")
        if name.endswith("moe.w13"):
            for expert, (gate, up) in enumerate(w.chunk(2) for w in weight):
                renamed[name.replace("moe.w13", f"mlp.experts.{expert}.gate_proj.weight")] = gate
                renamed[name.replace("moe.w13", f"mlp.experts.{expert}.up_proj.weight")] = up
        elif name.endswith("moe.w2"):
            for expert, down in enumerate(weight):
                renamed[name.replace("moe.w2", f"mlp.experts.{expert}.down_proj.weight")] = down
        else:
            renamed[name.replace("model.lm_head", "lm_head")] = weight
    if model.lm_head is None:
        renamed["lm_head.weight"] = model.embed.weight
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        parts = {name: weight.detach().clone() for name, weight in renamed.items()}
        save_file(parts, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        return architecture.from_pretrained(folder, dtype=torch.float32).eval()


CONFIGS = [
    {"tie_embeddings": True},
    {"tie_embeddings": False},
    {"n_kv_heads": 4, "top_k": 1, "rope_theta": 1e6},
    {"n_kv_heads": 1, "head_dim": 16, "n_experts": 6, "top_k": 3},
    {"norm_topk_prob": False},
]


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_logits_equal_transformers(build, shape, tokens, changes):
    model = build(document_mask=False, **changes).eval()
    with torch.no_grad():
        ours, theirs = model(tokens), qwen3_moe(model, shape, **changes)(tokens).logits
    assert theirs.std() > 0.5, "logits near zero would agree whatever the model does"
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", CONFIGS, ids=str)
def test_logits_with_document_mask_equal_transformers_with_a_4d_mask(build, shape, tokens, changes):
    model = build(document_mask=True, **changes).eval()
    peer = qwen3_moe(model, shape, **changes)
    mask = document_causal_mask(document_ids(tokens, model.eos_id), torch.float32)
    with torch.no_grad():
        ours, theirs, unmasked = model(tokens), peer(tokens, attention_mask=mask).logits, peer(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours - unmasked).abs().max() > 0.1


def test_loss_and_gradients_equal_transformers(build, shape, tokens):
    """F2: in the transformers of either kind."""
    model = build(document_mask=False)
    peer = qwen3_moe(model, shape).train()
    labels = tokens.clone()
    labels[0, :7] = -100
    parts = model(tokens, labels)
    (parts.loss / parts.targets).backward()
    loss = peer(tokens, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(parts.nll / parts.targets, loss.detach(), atol=1e-5, rtol=1e-5)
    layer = peer.model.layers[0]
    pairs = [
        (model.embed.weight, peer.model.embed_tokens.weight),
        (model.blocks[0].attn.q_proj.weight, layer.self_attn.q_proj.weight),
        (model.blocks[0].attn.k_norm.weight, layer.self_attn.k_norm.weight),
        (model.blocks[0].moe.router.weight, layer.mlp.gate.weight),
    ]
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-3)
    experts, hidden = layer.mlp.experts, shape["expert_hidden"]
    if hasattr(experts, "gate_up_proj"):  # transformers 5
        gate = experts.gate_up_proj.grad[:, :hidden]
    else:
        gate = torch.stack([expert.gate_proj.weight.grad for expert in experts])
    torch.testing.assert_close(model.blocks[0].moe.w13.grad[:, :hidden], gate, atol=1e-5, rtol=1e-3)
