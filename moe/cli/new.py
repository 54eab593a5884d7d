"""Write a yaml for a run of so many tokens: a shape that fits the card and the hours, batch, rates and intervals, each
with the number it came from; then print its estimate.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path
from shlex import join, quote
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError
from moe.common.parser import Parser
from moe.common.units import short, show

if TYPE_CHECKING:
    from moe.config import Config
    from moe.plan.new import Wanted
    from moe.plan.sizing import Fit

NODE = 8  # GPUs of a machine, at most
BASE = "500m"  # begun with where --like names none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokens", help="of the run, as 10B (default: those of --like)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--params", help="parameters, as 500M (default: the largest that fits, 20 tokens a parameter)")
    size.add_argument("--active", help="parameters that one token meets, as 170M; 32 finer experts, top 4")
    size.add_argument("--like", metavar="NAME", help="the shape of one of the yamls, as 500m: `moe yaml` lists them")
    add("--gpu", default="H100", help="the card, as `moe estimate` knows it (default: H100)")
    add("--gpu-memory", metavar="SIZE", help="of a --gpu that is not known, e.g. 48GB")
    add("--gpu-tflops", type=float, help="its peak, dense, in bf16, e.g. 180")
    add("--gpus", type=int, default=1, help="how many of them (default: 1)")
    add("--hours", type=float, help="the most that the run may take")
    add("--data", metavar="FOLDER", help="the converted data (default: that of the yaml it begins with)")
    add("--vocab-size", type=int, help="tokens in the vocabulary, where nothing on disk gives it")
    add("--out", required=True, help="the yaml to write")


def run(args: argparse.Namespace) -> int:
    import yaml

    from moe.cli.yaml import named_yaml, write_new
    from moe.common.paths import local_path
    from moe.config import load_config, to_yaml
    from moe.config.checks import RUN_NAME
    from moe.plan.new import make, notes
    from moe.plan.refusal import refusal
    from moe.plan.yaml_text import as_text, chosen_keys

    out = local_path(args.out, "--out")
    args.data = None if args.data is None else local_path(args.data, "--data")
    if out.exists():
        raise InputError(f"{out} is there already; remove it, or choose another file with --out")
    run_name = out.name.removesuffix(".yaml").removesuffix(".yml")
    if re.fullmatch(RUN_NAME, run_name) is None:
        raise InputError(f"--out ({out}): its name is the run's, of letters, digits, '.', '_' and '-'; choose another")
    path = named_yaml(args.like or BASE)
    like = load_config(path)
    wanted = _wanted(args, like)
    config, fit = make(wanted)
    if not wanted.met(fit):
        other = replace(wanted, **_begun_with(args, load_config(named_yaml(BASE))))
        raise InputError(refusal(wanted, other, config, fit))
    begun_with, before, after = (
        yaml.safe_load(text) for text in (path.read_text(encoding="utf-8"), to_yaml(like), to_yaml(config))
    )
    after["run_name"] = run_name
    after["save_folder"] = begun_with["save_folder"]
    tree = chosen_keys(after, begun_with, before)
    text = as_text(tree, notes(config, wanted), head=_head(args, config, fit, wanted, out))
    write_new(out, text.encode())
    try:
        load_config(out)
    except InputError:
        out.unlink()
        raise
    show(f"{out} is written")
    if args.data is not None and not (args.data / "meta.json").is_file():
        flags = f"--tokenizer {quote(config.tokenizer)} --seq-len {config.max_seq_len} --out {quote(str(args.data))}"
        show(f"{args.data} holds no converted data yet; before the run: moe convert {flags}")
    show()
    return _estimate(args, out, wanted)


def _estimate(args: argparse.Namespace, out: Path, wanted: Wanted) -> int:
    from moe.cli import estimate

    parser = Parser()
    estimate.add_arguments(parser)
    given = ("vocab_size", "gpu_memory", "gpu_tflops")
    words = [f"--{key.replace('_', '-')}={value}" for key in given if (value := getattr(args, key)) is not None]
    if wanted.n_gpus > 1:
        words += [f"--gpus={wanted.n_gpus}", f"--per-node={_per_node(wanted.n_gpus)}"]
    return estimate.run(parser.parse_args([str(out), f"--gpu={wanted.gpu.name}", *words]))


def _per_node(n_gpus: int) -> int:
    return max(n for n in range(1, NODE + 1) if n_gpus % n == 0)


def _head(args: argparse.Namespace, config: Config, fit: Fit, wanted: Wanted, out: Path) -> list[str]:
    from moe.common.units import clock
    from moe.config import parse_time
    from moe.plan.estimate import MFU

    tokens = parse_time(config.max_duration).to_tokens(config.global_train_batch_size * config.max_seq_len)
    asked = [
        word
        for key, value in vars(args).items()
        if value is not None and key not in ("out", "run")
        for word in (f"--{key.replace('_', '-')}", f"{value:.10g}" if isinstance(value, float) else str(value))
    ]
    cards, each = f"{wanted.n_gpus} x {wanted.gpu.name}", _per_node(wanted.n_gpus)
    start = f"moe launch -n {each} {quote(str(out))}"
    if wanted.n_gpus == 1:
        start = f"moe train {quote(str(out))}"
    elif wanted.n_gpus > each:
        start += f" --nodes {wanted.n_gpus // each} ... (docs/cluster.md)"
    return [
        f"A run of {short(tokens)} tokens for {cards}: {clock(fit.seconds)} at {MFU:.0%} of the peak (computed),",
        f"microbatch {fit.microbatch}. Written by: moe new {join(asked)}",
        "",
        f"  moe check {quote(str(out))}",
        f"  {start}",
        "",
        "docs/configuration.md lists every key.",
    ]


def _begun_with(args: argparse.Namespace, like: Config) -> dict[str, Any]:
    """Of Wanted: the yaml, on the data, and its vocabulary."""
    from moe.optim.auto import resolve
    from moe.plan.scaling import with_data
    from moe.plan.vocabulary import find_vocab_size

    like, _ = resolve(like if args.data is None else with_data(like, args.data))
    return {"like": like, "vocab_size": find_vocab_size(like, args.vocab_size)[0]}


def _wanted(args: argparse.Namespace, like: Config) -> Wanted:
    from moe.config.bounds import brief
    from moe.plan.counts import read_count
    from moe.plan.gpus import chosen_gpu
    from moe.plan.new import MOST_GPUS, MOST_HOURS, Wanted

    if args.tokens is None and args.like is None:
        raise InputError("give --tokens, as --tokens 10B, or --like NAME for those of one of the yamls")
    if not 1 <= args.gpus <= MOST_GPUS:
        raise InputError(f"--gpus ({brief(args.gpus)}) must be at least 1 and at most {MOST_GPUS:,}")
    if args.hours is not None and not 0 < args.hours <= MOST_HOURS:
        raise InputError(f"--hours ({args.hours}) must be above 0 and at most {MOST_HOURS:,}")
    given = {key: text for key in ("tokens", "params", "active") if (text := getattr(args, key)) is not None}
    counts = {key: read_count(f"--{key}", text) for key, text in given.items()}
    return Wanted(
        **_begun_with(args, like),
        tokens=counts.get("tokens"),
        params=counts.get("params"),
        active=counts.get("active"),
        gpu=chosen_gpu(args.gpu, args.gpu_memory, args.gpu_tflops),
        n_gpus=args.gpus,
        hours=args.hours,
        shape_free=args.like is None,
    )
