"""Flags of the conversion scripts, and their exit codes.

0 done, 2 invalid input (one message, no traceback), 75 stopped by SIGTERM and 130 by Ctrl+C: the same command
resumes.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from moe.common.paths import local_path, path_or_address
from moe.common.units import note, ready, tell

DEFAULT_DATASET, DEFAULT_CONFIG = "HuggingFaceFW/fineweb", "sample-10BT"
SHOWN = " (default: %(default)s)"  # argparse's own way says it of flags without one too, as "None"

# EFBIG: more than `ulimit -f`, or the file system, lets a file grow
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)


class Stopped(BaseException):
    """SIGTERM: stop now, keep what is done."""


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--dataset",
        nargs="+",
        default=[DEFAULT_DATASET],
        metavar="NAME",
        help=f"a hub dataset, or folders and files (default: {DEFAULT_DATASET})",
    )
    config = f"the dataset's config (default: {DEFAULT_CONFIG} for {DEFAULT_DATASET}, else the dataset's own default)"
    add("--config", help=config)
    add("--split", default="train", help="the dataset's split" + SHOWN)
    add("--revision", help="branch, tag or commit of a hub dataset (default: the newest commit)")
    add("--text-column", default="text", help="the column that holds the text" + SHOWN)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    add = parser.add_argument
    add("--tokenizer", default="openai-community/gpt2", help="a hub name or a folder with a tokenizer.json" + SHOWN)
    add("--seq-len", type=int, default=2048, help="tokens per sequence" + SHOWN)
    add("--out", default="data/fineweb-10bt", help="the folder to write, or s3://bucket/prefix" + SHOWN)
    add("--val-fraction", type=float, default=0.005, help="share of the documents that go to val" + SHOWN)
    add("--seed", type=int, default=17, help="decides which documents go to val, and their order" + SHOWN)
    add("--max-documents", type=int, help="stop after this many documents (default: all)")
    add("--max-tokens", type=int, help="stop before this many tokens are exceeded (default: all)")
    add("--workers", type=int, help="processes, one thread each (default: one a core, fewer for little text)")
    engine = "processes of this machine, or a Ray cluster's" + SHOWN
    add("--engine", choices=["local", "ray"], default="local", help=engine)
    encoders = ["auto", "gigatoken", "fastokens", "transformers"]
    add("--encoder", choices=encoders, default="auto", help="all give the same ids; auto: the fastest there is" + SHOWN)
    add("--overwrite", action="store_true", help="replace a finished or unfinished conversion that differs")
    add("--skip-bad-files", action="store_true", help="continue without files that cannot be read")
    verify = "files that were read before and touched since: hash those, or all (default: %(default)s)"
    add("--verify", choices=["samples", "full"], default="samples", help=verify)
    add("--dry-run", action="store_true", help="say which files are in and out and what it would take; write nothing")
    shard = "which shard of a run over several machines this is, from 0 (default: not sharded)"
    add("--shard-index", type=int, help=shard)
    add("--num-shards", type=int, help="how many shards there are (default: not sharded); each makes its share")
    add("--merge-only", action="store_true", help="after all shards: merge what they made")


def add_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser)
    add = parser.add_argument
    add("--vocab-size", type=int, default=32768, help="tokens, the 256 bytes and EOS among them" + SHOWN)
    add("--max-bytes", type=int, default=1 << 30, help="read this much text from the front of the dataset" + SHOWN)
    add("--out", default="data/tokenizer", help="the folder to write" + SHOWN)
    add("--overwrite", action="store_true", help="replace what is in --out")


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped


def exit_code(action: Callable[[], object], out: str | Path, *, resumes: bool = True) -> int:
    """Run `action`, which writes to `out`, and say in one message how it ended, if not well. resumes: what is done is
    kept, for the same command.

    Call it before anything of transformers is imported.
    """
    from moe.common.environment import settle
    from moe.common.errors import InputError
    from moe.data.text.tokenizer import spare_torch

    ready()
    spare_torch()
    signal.signal(signal.SIGTERM, _stop)
    try:
        settle()
        action()
    except InputError as error:
        note(f"error: {error}")
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRNOS and not _is_of(error.filename, out):
            raise
        where = error.filename or out  # a write names no file
        reason = f"{where}: {error.strerror}{_free(where)}"
        note(f"error: {reason}; fix that and run the same command{': it resumes' if resumes else ' again'}")
        return 2
    except (KeyboardInterrupt, Stopped) as stop:
        note(f"stopped; {'the same command resumes from here' if resumes else 'run the same command again'}")
        return 75 if isinstance(stop, Stopped) else 130
    return 0


def _is_of(name: object, out: str | Path) -> bool:
    """Whether a file that an error names is `out`, in it or its work, or above it: whatever was met there, the place is
    the user's.
    """
    if not isinstance(name, (str, bytes)) or "://" in str(out):
        return False
    found, place = (Path(os.path.realpath(os.fsdecode(path))) for path in (name, os.path.expanduser(out)))
    work = place.with_name(f"{place.name}.partial")
    return place.is_relative_to(found) or found.is_relative_to(place) or found.is_relative_to(work)


def _free(path: str | Path) -> str:
    """What is free where `path` lies, or was to lie; nothing for a bucket."""
    if "://" in str(path):
        return ""
    place = Path(path).absolute()
    while not os.path.exists(place):
        place = place.parent
    return f" ({shutil.disk_usage(place).free:,} bytes free)"


def _source_values(arguments: argparse.Namespace) -> dict:
    values = dict(vars(arguments))
    values["dataset"] = tuple(
        str(local_path(name, "--dataset")) if name.startswith("~") or ":/" in name else name
        for name in values["dataset"]
    )
    if "tokenizer" in values and values["tokenizer"].startswith("~"):
        values["tokenizer"] = str(local_path(values["tokenizer"], "--tokenizer"))
    values["out"] = path_or_address(values["out"], "--out")
    if values["dataset"] == (DEFAULT_DATASET,) and values["config"] is None:
        values["config"] = DEFAULT_CONFIG
    return values


def convert_from(arguments: argparse.Namespace) -> int:
    def action() -> None:
        from moe.data.write.convert import convert
        from moe.data.write.next_step import to_train
        from moe.data.write.request import Request

        request = Request(**_source_values(arguments))
        if meta := convert(request):
            for line in to_train(meta, request.out):
                tell(line)

    return exit_code(action, arguments.out)


def train_tokenizer_from(arguments: argparse.Namespace) -> int:
    def action() -> None:
        from moe.data.text.train_tokenizer import train_tokenizer
        from moe.data.write.next_step import to_convert

        values = _source_values(arguments)
        for line in to_convert(values, train_tokenizer(**values)):
            tell(line)

    return exit_code(action, arguments.out, resumes=False)
