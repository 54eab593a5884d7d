"""One competitor of benchmarks/step.py, in a process (and an environment) of its own: a step for each line on stdin.

Prints what it is, then the seconds of each step, then, at the end of stdin, its peak memory in bytes. Lines of its own
begin with "@": libraries print too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
CLIP = 1.0


def ours(spec: dict[str, Any]) -> tuple[str, torch.nn.Module, Any, Callable[[torch.Tensor], torch.Tensor]]:
    from moe.model import Transformer
    from moe.model.documents import document_ends
    from moe.optim.groups import build_groups
    from moe.optim.muon import Muon

    with torch.device(DEVICE):
        model = Transformer(eos_id=0, document_mask=spec.get("document_mask", True), **spec["shape"])
    if spec.get("compile"):
        model.compile_blocks()
    optimizer = Muon(build_groups(model, name=spec["optimizer"], lr=1e-4, weight_decay=0.1))
    # counted on the CPU, as the loader does: without it there is room for a document a token, nearly all of it empty
    one_document = torch.ones(spec["batch"], spec["seq_len"], dtype=torch.int64)
    ends = document_ends(one_document, eos_id=0).to(DEVICE)
    return f"torch {torch.__version__}", model, optimizer, lambda tokens: mean_loss(model, tokens, ends)


def mean_loss(model: torch.nn.Module, tokens: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    parts = model(tokens, tokens, document_ends_BM=ends)
    return parts.loss / parts.targets


def peer(spec: dict[str, Any]) -> tuple[str, torch.nn.Module, Any, Callable[[torch.Tensor], torch.Tensor]]:
    """transformers' model of the same shape, in a loop as its Trainer's: fused AdamW, clipped gradients.

    bf16: weights, gradients and optimizer state are bf16, without autocast. Else weights are fp32 under autocast, as
    its Trainer has them: but version 5's experts compute in their weights' dtype, which autocast does not reach.
    """
    import transformers

    note = f"transformers {transformers.__version__}"
    if spec.get("liger"):
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3_moe

        apply_liger_kernel_to_qwen3_moe()
        note += " + Liger"
    shape = spec["shape"]
    config = transformers.Qwen3MoeConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["d_model"], num_hidden_layers=shape["n_layers"],
        num_attention_heads=shape["n_heads"], num_key_value_heads=shape["n_kv_heads"], head_dim=shape["head_dim"],
        num_experts=shape["n_experts"], num_experts_per_tok=shape["top_k"],
        moe_intermediate_size=shape["expert_hidden"], norm_topk_prob=True, tie_word_embeddings=True,
        output_router_logits=False, decoder_sparse_step=1, mlp_only_layers=[], use_cache=False,
        max_position_embeddings=spec["seq_len"],
    )  # fmt: skip
    with torch.device(DEVICE):
        model = transformers.Qwen3MoeForCausalLM(config)
    if spec.get("bf16"):
        model.bfloat16()
        note += ", bf16 weights"
    model.train()
    if spec.get("compile"):
        model.compile()
        note += ", compiled"
    kernels = getattr(config, "_experts_implementation", None)
    note += f", experts {kernels}" if kernels else ""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    return note, model, optimizer, lambda tokens: model(input_ids=tokens, labels=tokens).loss


def training(spec: dict[str, Any]) -> tuple[str, Callable[[], None]]:
    torch.manual_seed(0)
    note, model, optimizer, loss = {"ours": ours, "peer": peer}[spec["kind"]](spec)
    sizes = (spec["batch"], spec["seq_len"])
    tokens = torch.randint(1, spec["shape"]["vocab_size"], sizes, generator=torch.Generator().manual_seed(0))
    tokens = tokens.to(DEVICE)
    order: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
    if spec["kind"] == "ours":
        from moe.train.callbacks.fixed_order import fixed_order

        order = partial(fixed_order, DEVICE == "cuda")  # as a run has it

    def step() -> None:
        with order():
            with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda" and not spec.get("bf16")):
                value = loss(tokens)
            value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return note, step


def matmul(spec: dict[str, Any]) -> tuple[str, Callable[[], None]]:
    """Twenty large products: what the chip gives at most."""
    a, b = (torch.randn(spec["size"], spec["size"], device=DEVICE, dtype=DTYPE) for _ in range(2))

    def step() -> None:
        for _ in range(20):
            torch.mm(a, b)

    return f"{spec['size']}^3 {DTYPE}", step


def routed(spec: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weights, choices (at random, `tokens_per_expert` on average) and their counts."""
    n_experts, top_k, width = (spec["shape"][k] for k in ("n_experts", "top_k", "d_model"))
    n_tokens = spec["tokens_per_expert"] * n_experts // top_k
    random = torch.Generator().manual_seed(0)
    x = torch.randn(n_tokens, width, generator=random).to(DEVICE, DTYPE).requires_grad_()
    weight, expert = torch.randn(n_tokens, n_experts, generator=random).softmax(-1).topk(top_k, -1)
    counts = torch.bincount(expert.flatten(), minlength=n_experts)
    return x, weight.to(DEVICE).requires_grad_(), expert.to(DEVICE), counts.to(DEVICE)


def expert_layer(spec: dict[str, Any]) -> tuple[str, Callable[[], None]]:
    """Forward and backward of one layer of experts."""
    from moe.model.experts import choose_backend, moe_experts

    n_experts, width, hidden = (spec["shape"][k] for k in ("n_experts", "d_model", "expert_hidden"))
    x, weight, expert, counts = routed(spec)
    w13, w2 = (
        torch.randn(*shape, device=DEVICE, dtype=DTYPE).requires_grad_()
        for shape in ((n_experts, 2 * hidden, width), (n_experts, width, hidden))
    )

    def step() -> None:
        moe_experts(x, weight, expert, w13, w2, counts).sum().backward()
        for leaf in (x, weight, w13, w2):
            leaf.grad = None

    return f"backend {choose_backend(x.device, DTYPE, width, hidden)}", step


def dense_layer(spec: dict[str, Any]) -> tuple[str, Callable[[], None]]:
    """Forward and backward of one matrix product with as many FLOPs."""
    width, hidden = spec["shape"]["d_model"], spec["shape"]["expert_hidden"]
    n_rows = spec["tokens_per_expert"] * spec["shape"]["n_experts"]
    x = torch.randn(n_rows, width, device=DEVICE, dtype=DTYPE).requires_grad_()
    w = torch.randn(3 * hidden, width, device=DEVICE, dtype=DTYPE).requires_grad_()
    grad = torch.randn(n_rows, 3 * hidden, device=DEVICE, dtype=DTYPE)

    def step() -> None:
        torch.nn.functional.linear(x, w).backward(grad)
        x.grad = w.grad = None

    return "one product", step


def peer_layer(spec: dict[str, Any]) -> tuple[str, Callable[[], None]]:
    """transformers 5's layer of experts, tokens and weights as in `expert_layer`."""
    import transformers

    shape = spec["shape"]
    config = transformers.Qwen3MoeConfig(
        hidden_size=shape["d_model"], num_experts=shape["n_experts"], num_experts_per_tok=shape["top_k"],
        moe_intermediate_size=shape["expert_hidden"],
    )  # fmt: skip
    config._experts_implementation = "grouped_mm"
    modeling: Any = importlib.import_module("transformers.models.qwen3_moe.modeling_qwen3_moe")  # 4 has no such class
    with torch.device(DEVICE):
        layer = modeling.Qwen3MoeExperts(config).to(DTYPE)
    torch.manual_seed(0)
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    x, weight, expert, _ = routed(spec)

    def step() -> None:
        layer(x, expert, weight).sum().backward()
        for leaf in (x, weight, *layer.parameters()):
            leaf.grad = None

    return f"transformers {transformers.__version__}, grouped_mm", step


KINDS = {
    "ours": training, "peer": training, "matmul": matmul,
    "experts": expert_layer, "peer experts": peer_layer, "dense": dense_layer,
}  # fmt: skip


def main() -> None:
    spec = json.loads(sys.argv[1])
    if spec["threads"]:
        torch.set_num_threads(spec["threads"])
    clock = time.process_time if spec["threads"] == 1 and DEVICE == "cpu" else time.perf_counter
    note, step = KINDS[spec["kind"]](spec)
    for _ in range(2):  # warm-up, with the optimizer's state and what is compiled
        step()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    print("@" + json.dumps(note), flush=True)
    for _ in sys.stdin:
        start = clock()
        step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        print(f"@{clock() - start}", flush=True)
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"@{torch.cuda.max_memory_allocated() if DEVICE == 'cuda' else process}", flush=True)


if __name__ == "__main__":
    main()
