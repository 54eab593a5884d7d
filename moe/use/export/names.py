"""Our parameters and what transformers calls them, for both directions.

- A Mixture-of-Experts model is a `Qwen3MoeForCausalLM` with one matrix per expert, gate, up and down apart: the names
  of every published Qwen3-MoE checkpoint, which transformers 4 and 5, vLLM, SGLang and llama.cpp read.
- A dense model (one expert) is a `Qwen3ForCausalLM`. The router of a single expert gives it weight 1 whatever it holds,
  so it is dropped.
- Parts are views: naming a parameter reads nothing of it.
"""

from __future__ import annotations

from torch import Tensor

OUTER = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "lm_head.weight": "lm_head.weight",
}
INNER = {
    "attn_norm.weight": "input_layernorm.weight",
    "moe_norm.weight": "post_attention_layernorm.weight",
    "moe.router.weight": "mlp.gate.weight",
}


def hf_parts(name: str, weight: Tensor, *, dense: bool) -> dict[str, Tensor]:
    """The tensors that hold parameter `name` in a Hugging Face folder, each a view of `weight`."""
    if name in OUTER:
        return {OUTER[name]: weight}
    _, number, rest = name.split(".", 2)
    layer = f"model.layers.{number}"
    experts = [f"{layer}.mlp" if dense else f"{layer}.mlp.experts.{e}" for e in range(weight.shape[0])]
    if rest == "moe.w13":
        halves = [weight_2FD.chunk(2) for weight_2FD in weight]
        gates = {f"{expert}.gate_proj.weight": gate for expert, (gate, _) in zip(experts, halves, strict=True)}
        return gates | {f"{expert}.up_proj.weight": up for expert, (_, up) in zip(experts, halves, strict=True)}
    if rest == "moe.w2":
        return {f"{expert}.down_proj.weight": down for expert, down in zip(experts, weight, strict=True)}
    if rest == "moe.router.weight" and dense:
        return {}
    return {f"{layer}.{INNER.get(rest, rest.replace('attn.', 'self_attn.'))}": weight}
