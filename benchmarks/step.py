"""A training step of this model and of transformers' Qwen3MoeForCausalLM: same shape and tokens, in turn.

    make bench-step        or: python benchmarks/step.py --rounds 3 [--write]

Each competitor is a process of its own that waits while another works: transformers 5 has an environment of its own
(.venv5; left out where it is missing), and peak memory is each one's (on CPU that of the process, imports included). A
step is forward, backward, clipping and the optimizer. This model meets one other at a time; in every round both take
steps for some seconds, then a matmul says what the chip gives just then; ratios are of the same round. fp32 on CPU; on
a GPU bf16 and the shapes of the yamls: this model under autocast, transformers' with bf16 weights, or its experts would
compute in fp32 (benchmarks/step_worker.py). With `--threads 1` a step's time is the processor's, so that the others
on a shared machine count less. No load-balance loss on any side. This model keeps documents apart, as
it does by default, which the others do not; there is one document a sample, so that all compute the same.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import re
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from competitor import Competitor

from moe.model.flops import flops_per_token

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PYTHON5 = ROOT / ".venv5" / "bin" / "python"
BASE = "this model, AdamW"
MUON, COMPILED = "this model, Muon", "this model, AdamW, compiled"
NO_MASK = "this model, AdamW, no document mask"
OLD = f"transformers {importlib.metadata.version('transformers').partition('.')[0]}"  # of this environment
NEW, LIGER = "transformers 5", f"{OLD}, Liger"
GPT2_VOCABULARY = 50257


def cpu_shape(d_model: int, expert_hidden: int, vocab_size: int) -> dict[str, int]:
    heads = d_model // 64
    return {
        "vocab_size": vocab_size, "d_model": d_model, "n_layers": 4, "n_heads": heads, "n_kv_heads": heads,
        "head_dim": 64, "n_experts": 8, "top_k": 2, "expert_hidden": expert_hidden,
    }  # fmt: skip


def yaml_shape(name: str) -> tuple[dict[str, int], int]:
    """Shape and sequence length of yamls/NAME.yaml."""
    from moe.config import load_config

    config = load_config(ROOT / "yamls" / f"{name}.yaml")
    wanted = ("d_model", "n_layers", "n_heads", "n_kv_heads", "n_experts", "top_k", "expert_hidden")
    shape = {key: value for key, value in asdict(config.model).items() if key in wanted}
    head_dim = config.model.head_dim or config.model.d_model // config.model.n_heads
    return {**shape, "head_dim": head_dim, "vocab_size": GPT2_VOCABULARY}, config.max_seq_len


def sizes_of(name: str) -> tuple[dict[str, int], int, int]:
    """Shape, batch and sequence length; "d256/2048" is d256 with one sequence of 2,048 tokens,
    fine64 is d256 with 64 experts of 128, 8 a token.
    """
    name, _, longer = name.partition("/")
    small = {"d256": cpu_shape(256, 512, 8192), "d768": cpu_shape(768, 2048, GPT2_VOCABULARY)}
    small |= {f"fine{n}": {**small["d256"], "n_experts": n, "top_k": 8, "expert_hidden": 128} for n in (32, 64, 128)}
    if name in small:
        return (small[name], 2048 // int(longer), int(longer)) if longer else (small[name], 4, 512)
    shape, seq_len = yaml_shape(name)
    return shape, 8, seq_len


def opponents(spec: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """What each runs, and in which Python."""
    peer = {**spec, "kind": "peer", "compile": False, "bf16": torch.cuda.is_available()}
    found = {
        MUON: ({**spec, "kind": "ours", "optimizer": "muon"}, sys.executable),
        NO_MASK: ({**spec, "kind": "ours", "optimizer": "adamw", "document_mask": False}, sys.executable),
        OLD: (peer, sys.executable),
    }
    if PYTHON5.exists() and OLD != NEW:
        found[NEW] = (peer, str(PYTHON5))
    if not spec["compile"]:
        found[COMPILED] = ({**spec, "kind": "ours", "optimizer": "adamw", "compile": True}, sys.executable)
    if torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None:
        found[LIGER] = ({**peer, "liger": True}, sys.executable)
    return found


def in_turn(name: str, running: dict[str, Competitor], rounds: int, turn: float) -> dict[str, list[float]]:
    """Seconds of a step, a list over rounds for each."""
    times: dict[str, list[float]] = {who: [] for who in running}
    for number in range(1, rounds + 1):
        for who, competitor in running.items():
            times[who].append(competitor.seconds(turn))
        print(f"{name} round {number}", {who: round(found[-1], 3) for who, found in times.items()}, flush=True)
    return times


def compare(name: str, args: argparse.Namespace) -> list[str]:
    """Rows of the table for one shape. Two trainers at a time: more might not fit into memory."""
    shape, batch, seq_len = sizes_of(name)
    on_gpu = torch.cuda.is_available()
    spec = {"shape": shape, "batch": batch, "seq_len": seq_len, "threads": args.threads}
    spec["compile"] = on_gpu
    size = 8192 if on_gpu else 2048
    flops = flops_per_token(**shape, seq_len=seq_len) * batch * seq_len

    def row(who: str, note: str, seconds: list[float], base: list[float], matmuls: list[float], peak: int) -> str:
        # a matmul's step is 20 products
        shares = [flops / mine / (40 * size**3 / product) for mine, product in zip(seconds, matmuls, strict=True)]
        return (
            f"| {name} | {who} ({note}) | {batch * seq_len / statistics.median(seconds):,.0f} | "
            f"{ratio(seconds, base)} | {statistics.median(shares):.0%} | {peak / 2**20:,.0f} |"
        )

    rows, base_times, products, peak = [], [], [], 0
    for who, (what, python) in opponents(spec).items():
        if args.against and who not in args.against:
            continue
        running = {
            BASE: Competitor({**spec, "kind": "ours", "optimizer": "adamw"}),
            who: Competitor(what, python),
            "matmul": Competitor({**spec, "kind": "matmul", "size": size}),
        }
        times = in_turn(name, running, args.rounds, args.turn)
        notes = {key: competitor.note for key, competitor in running.items()}
        peaks = {key: competitor.close() for key, competitor in running.items()}
        rows.append(row(who, notes[who], times[who], times[BASE], times["matmul"], peaks[who]))
        base_times += times[BASE]
        products += times["matmul"]
        peak = max(peak, peaks[BASE])
    rows.insert(0, row(BASE, notes[BASE], base_times, base_times, products, peak))
    gflops = 40 * size**3 / statistics.median(products) / 1e9
    rows.append(f"| {name} | matmul ({notes['matmul']}) | {gflops:,.0f} GFLOP/s | | 100% | |")
    layer = {**spec, "tokens_per_expert": args.tokens_per_expert}
    rows.append(layers(name, {**layer, "kind": "dense"}, sys.executable, "of one dense product", args))
    if PYTHON5.exists():
        layer["tokens_per_expert"] = batch * seq_len * shape["top_k"] // shape["n_experts"]
        rows.append(layers(name, {**layer, "kind": "peer experts"}, str(PYTHON5), f"against {NEW}'s", args))
    return rows


def layers(name: str, other: dict[str, Any], python: str, against: str, args: argparse.Namespace) -> str:
    """A row: the expert layer alone, forward and backward, and another of the same size."""
    running = {"experts": Competitor({**other, "kind": "experts"}), other["kind"]: Competitor(other, python)}
    times = in_turn(name, running, args.rounds, args.turn)
    notes = [competitor.note for competitor in running.values()]
    for competitor in running.values():
        competitor.close()
    return (
        f"| {name} | expert layer ({notes[0]}), {other['tokens_per_expert']:,} tokens an expert | | "
        f"{ratio(times[other['kind']], times['experts'])} {against} ({notes[1]}) | | |"
    )


def ratio(theirs: list[float], ours: list[float]) -> str:
    """How many times as fast `ours` is, round by round: median (range)."""
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shapes", nargs="+", default=["500m", "1b", "1_5b"] if on_gpu else ["d256", "d768", "fine64", "fine128"],
        help="d256, d768, d256/2048 (tokens in a sequence), fine32, fine64, fine128, or the names of yamls",
    )  # fmt: skip
    parser.add_argument("--against", nargs="+", help="rows of the table, as named there; left out: all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--turn", type=float, default=10, help="seconds of steps of each competitor in a round")
    parser.add_argument("--tokens-per-expert", type=int, default=1024, help="for the expert layer against one product")
    parser.add_argument("--threads", type=int, default=0 if on_gpu else len(os.sched_getaffinity(0)))
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    args = parser.parse_args()
    lines = [
        "| shape | trainer | tokens/s | this model (AdamW) against it, median (range) | of the matmul peak | peak MB |",
        "|---|---|---|---|---|---|",
    ]
    for name in args.shapes:
        lines += compare(name, args)
    chip = torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {args.threads} threads"
    command = f"python benchmarks/step.py --rounds {args.rounds} --turn {args.turn:g} --write"
    load = f"load average {os.getloadavg()[0]:.1f} at the end"
    text = "\n".join([f"`{command}` on {chip}, {datetime.date.today()}; {load}.", "", *lines])
    print("\n" + text)
    if args.write:
        page, found = re.subn(
            r"(<!-- step -->\n).*?(<!-- /step -->)",
            lambda m: f"{m[1]}{text}\n{m[2]}",
            PAGE.read_text(encoding="utf-8"),
            flags=re.S,
        )
        assert found == 1, f"{PAGE} has no place for the table"
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
