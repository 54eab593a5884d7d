"""The flags of convert/fineweb_to_mds.py, and exit codes:

0 done, 2 input a user can mend, 75 stopped by SIGTERM, 130 by Ctrl+C.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

DEFAULT_DATASET, DEFAULT_CONFIG = "HuggingFaceFW/fineweb", "sample-10BT"


class Stopped(BaseException):
    """SIGTERM: stop now, keep what is done."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--dataset",
        nargs="+",
        default=[DEFAULT_DATASET],
        metavar="NAME",
        help="a hub dataset, or folders and files here",
    )
    add("--config", default=None, help=f"the dataset's config ({DEFAULT_CONFIG} for {DEFAULT_DATASET})")
    add("--split", default="train", help="the dataset's split")
    add("--revision", default=None, help="branch, tag or commit of a hub dataset")
    add("--text-column", default="text", help="the column that holds the text")
    add("--tokenizer", default="openai-community/gpt2", help="a hub name or a folder with a tokenizer.json")
    add("--seq-len", type=int, default=2048, help="tokens a sample")
    add("--out", type=Path, default=Path("data/fineweb-10bt"), help="the folder to write")
    add("--val-fraction", type=float, default=0.005, help="share of the documents that go to val")
    add("--seed", type=int, default=17, help="decides which documents go to val, and their order")
    add("--max-documents", type=int, default=None, help="stop after this many documents")
    add("--max-tokens", type=int, default=None, help="stop before this many tokens are exceeded")
    add("--workers", type=int, default=None, help="processes, one thread each (a core each, fewer for little text)")
    add(
        "--encoder",
        choices=["auto", "gigatoken", "fastokens", "transformers"],
        default="auto",
        help="all give the same ids",
    )
    add("--overwrite", action="store_true", help="replace a finished or begun conversion that differs")
    add("--skip-bad-files", action="store_true", help="go on without files that cannot be read")


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def main(arguments: argparse.Namespace) -> int:
    os.environ.setdefault(
        "USE_TORCH", "0"
    )  # transformers then loads a tokenizer in 3 s and 130 MB, not 18 s and 690 MB
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from moe.data.convert import convert
    from moe.data.errors import InputError
    from moe.data.request import Request

    values = vars(arguments)
    values["dataset"] = tuple(values["dataset"])
    if values["dataset"] == (DEFAULT_DATASET,) and values["config"] is None:
        values["config"] = DEFAULT_CONFIG
    signal.signal(signal.SIGTERM, _stop)
    try:
        convert(Request(**values))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Stopped) as stop:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 75 if isinstance(stop, Stopped) else 130
    return 0
