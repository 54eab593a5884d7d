"""A config as the text of a yaml for people: in sections, each key with its comment.

What it holds: the keys that the yaml it began with has, and those that differ from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from moe.common.units import printable

WIDTH = 120
SECTIONS = {
    "model": ("max_seq_len", "tokenizer", "model"),
    "data": ("train_data", "eval_data", "num_workers"),
    "how long, how fast": (
        "max_duration",
        "global_train_batch_size",
        "device_train_microbatch_size",
        "optimizer",
        "scheduler",
        "gradient_clip_norm",
        "precision",
        "activation_checkpointing",
        "parallelism",
        "compile",
        "deterministic",
    ),
    "checkpoints and resuming": (
        "save_folder",
        "save_interval",
        "save_num_checkpoints_to_keep",
        "keep_every",
        "autoresume",
    ),
}
LAST = "what you see"  # and whatever no other section has


def chosen_keys(full: dict[str, Any], begun_with: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Of `full` what stands in the yaml `begun_with`, and what is not as in `defaults`, its full config."""
    found: dict[str, Any] = {}
    for key, value in full.items():
        before = begun_with.get(key)
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            inner = chosen_keys(value, before if isinstance(before, dict) else {}, defaults[key])
            if inner or key in begun_with:
                found[key] = inner
        elif key in begun_with or value != defaults.get(key):
            found[key] = value
    return found


def as_text(tree: dict[str, Any], comments: dict[str, str], *, head: list[str]) -> str:
    """head: the lines of the comment at the top. comments: by dotted key."""
    lines = [f"# {printable(line)}".rstrip() for line in head] + [""]
    first = [key for key in ("run_name", "seed") if key in tree]
    named = {key for keys in SECTIONS.values() for key in keys} | {*first}
    sections = {**SECTIONS, LAST: tuple(key for key in tree if key not in named)}
    lines += _lines({key: tree[key] for key in first}, comments, "")
    for title, keys in sections.items():
        there = {key: tree[key] for key in keys if key in tree}
        if there:
            lines += ["", f"# ---- {title} ".ljust(WIDTH, "-"), *_lines(there, comments, "")]
    return "\n".join(lines) + "\n"


def _lines(tree: dict[str, Any], comments: dict[str, str], path: str) -> Iterator[str]:
    indent = "  " * path.count(".")
    for key, value in tree.items():
        comment = f" # {printable(comments[path + key])}" if path + key in comments else ""
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:{comment}"
            yield from _lines(value, comments, f"{path}{key}.")
        else:
            yield f"{indent}{key}: {_value(value)}{comment}"


def _value(value: Any) -> str:
    if isinstance(value, float):
        return repr(value) if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("\n").removesuffix("\n...")
