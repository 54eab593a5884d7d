"""Write a yaml for a run of so many tokens: a shape that fits the card and the hours, batch, rates and intervals, each
with the number it came from; then print its estimate.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

from moe.common.errors import InputError
from moe.common.parser import Parser
from moe.common.units import short, show

if TYPE_CHECKING:
    from moe.config import Config
    from moe.plan.new import Wanted
    from moe.plan.sizing import Fit

LETTERS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
MOST_COUNT, MOST_HOURS = 10**15, 24 * 366 * 10
BASE = "500m"  # begun with where --like names none


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokens", help="of the run, as 10B (default: those of --like)")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--params", help="parameters, as 500M (default: the largest that fits, 20 tokens a parameter)")
    size.add_argument("--active", help="parameters that one token meets, as 170M")
    size.add_argument("--like", metavar="NAME", help="the shape of one of the yamls, as 500m: `moe yaml` lists them")
    add("--gpu", default="H100", help="the card, as `moe estimate` knows it (default: H100)")
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
    from moe.plan.new import make, notes, with_data
    from moe.plan.vocabulary import find_vocab_size
    from moe.plan.yaml_text import as_text, chosen_keys

    wanted, out = _wanted(args), local_path(args.out, "--out")
    if out.exists():
        raise InputError(f"{out} is there already; remove it, or choose another file with --out")
    if re.fullmatch(RUN_NAME, out.stem) is None:
        raise InputError(f"--out ({out}): its name is the run's, of letters, digits, '.', '_' and '-'; choose another")
    path = named_yaml(args.like or BASE)
    like = load_config(path)
    base = like if args.data is None else with_data(like, args.data)
    vocab_size = args.vocab_size or find_vocab_size(base)[0]
    config, fit = make(base, wanted, vocab_size)
    begun_with, before, after = (
        yaml.safe_load(text) for text in (path.read_text(encoding="utf-8"), to_yaml(like), to_yaml(config))
    )
    after["run_name"] = out.stem
    after["save_folder"] = begun_with["save_folder"]
    tree = chosen_keys(after, begun_with, before)
    text = as_text(tree, notes(config, fit, wanted, vocab_size), head=_head(args, config, fit, wanted, out))
    write_new(out, text.encode())
    try:
        load_config(out)
    except InputError:
        out.unlink()
        raise
    show(f"{out} is written")
    if args.data is not None and not (Path(args.data) / "meta.json").is_file():
        flags = f"--tokenizer {quote(config.tokenizer)} --seq-len {config.max_seq_len} --out {quote(args.data)}"
        show(f"{args.data} holds no converted data yet; before the run: moe convert {flags}")
    show()
    return _estimate(out, wanted, args.vocab_size)


def _estimate(out: Path, wanted: Wanted, vocab_size: int | None) -> int:
    from moe.cli import estimate

    parser = Parser()
    estimate.add_arguments(parser)
    own = [] if vocab_size is None else ["--vocab-size", str(vocab_size)]
    return estimate.run(parser.parse_args([str(out), "--gpu", wanted.gpu.name, *own]))


def _head(args: argparse.Namespace, config: Config, fit: Fit, wanted: Wanted, out: Path) -> list[str]:
    from moe.common.units import clock
    from moe.config import parse_time
    from moe.plan.estimate import MFU

    tokens = parse_time(config.max_duration).to_tokens(config.global_train_batch_size * config.max_seq_len)
    asked = [f"--{key} {value}" for key, value in vars(args).items() if value is not None and key not in ("out",)]
    cards = f"{wanted.n_gpus} x {wanted.gpu.name}"
    return [
        f"A run of {short(tokens)} tokens for {cards}: {clock(fit.seconds)} at {MFU:.0%} of the peak (computed),",
        f"microbatch {fit.microbatch}. Written by: moe new {' '.join(asked).replace('vocab_size', 'vocab-size')}",
        "",
        f"  moe check {out.name}",
        f"  {'moe train' if wanted.n_gpus == 1 else f'composer -n {wanted.n_gpus} train.py'} {out.name}",
        "",
        "docs/configuration.md lists every key.",
    ]


def _wanted(args: argparse.Namespace) -> Wanted:
    from moe.config.bounds import brief
    from moe.plan.gpus import find_gpu
    from moe.plan.new import MOST_GPUS, Wanted

    if args.tokens is None and args.like is None:
        raise InputError("give --tokens, as --tokens 10B, or --like NAME for those of one of the yamls")
    if not 1 <= args.gpus <= MOST_GPUS:
        raise InputError(f"--gpus ({brief(args.gpus)}) must be at least 1 and at most {MOST_GPUS:,}")
    if args.hours is not None and not 0 < args.hours <= MOST_HOURS:
        raise InputError(f"--hours ({args.hours}) must be above 0 and at most {MOST_HOURS:,}")
    if args.vocab_size is not None and not 2 <= args.vocab_size <= 100_000_000:
        raise InputError(f"--vocab-size ({brief(args.vocab_size)}) must be at least 2 and at most 100,000,000")
    return Wanted(
        tokens=_count("--tokens", args.tokens),
        gpu=find_gpu(args.gpu),
        n_gpus=args.gpus,
        params=_count("--params", args.params),
        active=_count("--active", args.active),
        hours=args.hours,
        shape_free=args.like is None,
    )


def _count(flag: str, text: str | None) -> int | None:
    """10B -> 10,000,000,000."""
    from moe.config.bounds import brief

    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,12})?)([kmbt]?)", text.strip().replace("_", ""), re.IGNORECASE)
    count = round(float(found[1]) * LETTERS[found[2].lower()]) if found else 0
    if not 1 <= count <= MOST_COUNT:
        most = f"{MOST_COUNT // LETTERS['t']:,}T"
        raise InputError(f"{flag} ({brief(text)}): write a number from 1 to {most}, such as 10B, 500M or 600000")
    return count
