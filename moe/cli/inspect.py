"""Shows a converted dataset: its summary from disk, whether its bytes are sound, and sequences as text."""

from __future__ import annotations

import argparse
from typing import Any

from moe.common.paths import path_or_address
from moe.common.units import note, show

BOUNDARY = " ⟦end of document⟧ "
SHOWN = 1000  # characters of a sequence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="what convert/fineweb_to_mds.py wrote (its --out): a folder, or s3://")
    parser.add_argument("--split", choices=["train", "val"], default="train", help="which split's sequences to show")
    parser.add_argument("--sequences", type=int, default=2, help="how many to show, spread over the split")
    parser.add_argument(
        "--full", action="store_true", help=f"show complete sequences, not their first {SHOWN:,} characters"
    )
    parser.add_argument("--samples", type=int, default=None, help=argparse.SUPPRESS)  # the former names
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", default=None, help="decode with this one, if the dataset's own is not available")
    parser.add_argument("--quick", action="store_true", help="check sizes only, not every byte's hash")


def run(args: argparse.Namespace) -> int:
    """0 when the dataset is sound, 2 when it is not one or is damaged."""
    from moe.common.errors import InputError
    from moe.data.meta import SPLITS, read_meta
    from moe.data.read.index import split_bytes
    from moe.data.read.verify import verify_split
    from moe.data.write.progress import Verifying
    from moe.data.write.report import recorded_report, summary

    if args.samples is not None:
        note("--samples is called --sequences now")
        args.sequences = args.samples
    if args.whole:
        note("--whole is called --full now")
        args.full = True
    if args.sequences < 0:
        raise InputError(f"--sequences ({args.sequences}) must not be below 0")
    args.data = path_or_address(args.data, "the dataset")
    meta = read_meta(args.data)
    for line in summary(meta, args.data, recorded_report(args.data)):
        show(line)
    splits = [f"{args.data}/{split}" for split in SPLITS]
    with Verifying(0 if args.quick else sum(map(split_bytes, splits))) as verifying:
        errors = [error for split in splits for error in verify_split(split, not args.quick, verifying.add)]
    for error in errors:
        show(f"error        {error}")
    if errors:
        show("the dataset is damaged: restore these files, or convert again with --overwrite")
        return 2
    show("verified     " + ("sizes of all shards" if args.quick else "sizes and xxh64 of all shards"))
    if args.sequences > 0:
        show_sequences(args, meta)
    return 0


def show_sequences(args: argparse.Namespace, meta: Any) -> None:
    """Print sequences as text, with a mark where one document ends and the next begins."""
    import numpy as np

    from moe.common.errors import InputError
    from moe.data.read.verify import read_samples
    from moe.data.text.tokenizer import load_tokenizer, spare_torch, tokenizer_fingerprint

    spare_torch()
    tokenizer = load_tokenizer(args.tokenizer or meta.tokenizer)
    if tokenizer_fingerprint(tokenizer) != meta.tokenizer_fingerprint:
        name = args.tokenizer or meta.tokenizer
        raise InputError(f"tokenizer '{name}' is not the one these ids came from; give that with --tokenizer")
    total = meta.samples[args.split]
    count = min(args.sequences, total)
    for number in sorted({int(i) for i in np.linspace(0, max(0, total - 1), count)}) if count else []:
        found = read_samples(f"{args.data}/{args.split}", number, 1)
        if not len(found):
            raise InputError(
                f"{args.data}: meta.json counts {total:,} sequences of {args.split}, its index fewer; convert again"
            )
        tokens = found[0]
        ends = np.flatnonzero(tokens == meta.eos_id) + 1
        pieces = np.split(tokens, ends)
        texts = [tokenizer.decode(piece[piece != meta.eos_id], skip_special_tokens=False) for piece in pieces]
        show(f"\n--- {args.split} sequence {number} of {total}: {len(tokens)} tokens, {len(ends)} document ends")
        text = BOUNDARY.join(texts)
        rest = 0 if args.full else max(0, len(text) - SHOWN)
        show(text[: len(text) - rest] + (f" ... ({rest:,} more characters; --full shows them)" if rest else ""))
