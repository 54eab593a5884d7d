"""Forward and backward of this model and of transformers' Qwen3MoeForCausalLM, same shape and tokens, in turn.

    make bench        or: python benchmarks/step.py --d-model 256 --pairs 3

Prints tokens/s of both and the ratio, pair by pair; quote the median of several pairs on a quiet machine.
Both run in fp32 on CPU or bf16 autocast on a GPU, without document mask, with the load-balance loss off on both sides.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from moe.model import Transformer


def make_steps(args: argparse.Namespace, device: str) -> dict[str, Callable[[], None]]:
    """One call is one forward and backward over the same batch."""
    heads = args.d_model // 64
    shape = {"n_experts": 8, "top_k": 2, "expert_hidden": args.expert_hidden, "n_layers": args.n_layers}
    torch.manual_seed(0)
    ours = Transformer(
        vocab_size=args.vocab_size, eos_id=0, d_model=args.d_model, n_heads=heads, n_kv_heads=heads, head_dim=64,
        document_mask=False, **shape,
    ).to(device)  # fmt: skip
    config = Qwen3MoeConfig(
        vocab_size=args.vocab_size, hidden_size=args.d_model, num_hidden_layers=args.n_layers, head_dim=64,
        num_attention_heads=heads, num_key_value_heads=heads, num_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=args.expert_hidden, norm_topk_prob=True, tie_word_embeddings=True,
        output_router_logits=False, decoder_sparse_step=1, mlp_only_layers=[],
    )  # fmt: skip
    theirs = Qwen3MoeForCausalLM(config).to(device)
    tokens = torch.randint(1, args.vocab_size, (args.batch, args.seq_len), device=device)
    targets = args.batch * (args.seq_len - 1)

    def step(loss: Callable[[], torch.Tensor], model: torch.nn.Module) -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss()
        value.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return {
        "ours": lambda: step(lambda: ours(tokens, tokens).loss / targets, ours),
        "transformers": lambda: step(lambda: theirs(tokens, labels=tokens).loss, theirs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--n-layers", type=int, default=4)
    parser.add_argument("--expert-hidden", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    steps = make_steps(args, "cuda" if torch.cuda.is_available() else "cpu")
    for step in steps.values():
        step()
    ratios = []
    for _ in range(args.pairs):
        rates = {}
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            rates[name] = args.batch * args.seq_len / (time.perf_counter() - start)
        ratios.append(rates["ours"] / rates["transformers"])
        print("  ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in rates.items()), f" ratio {ratios[-1]:.2f}")
    print(f"median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
