"""The command that follows on a conversion, and on a tokenizer: to be copied as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path, PurePosixPath
from typing import Any

from moe.data.meta import Meta

FOR_A_GPU = 1_000_000_000  # tokens from which on the yaml to begin with is one for a GPU


def to_train(meta: Meta, out: str | Path) -> list[str]:
    """`moe train` with every key that has to fit the data at `out`, a folder or s3://."""
    yaml = "500m" if sum(meta.tokens.values()) >= FOR_A_GPU else "own_text"
    splits = ["train_data", "eval_data"] if meta.samples["val"] else ["train_data"]
    remote = str(out).startswith("s3://")
    local = f"data/{PurePosixPath(str(out)).name}" if remote else str(out)
    settings = {"tokenizer": meta.tokenizer, "max_seq_len": meta.seq_len}
    settings |= {f"{split}.local": local for split in splits}
    settings |= {f"{split}.remote": str(out) for split in splits if remote}
    if not meta.samples["val"]:
        settings["eval_data"] = "null"
    words = ["moe", "train", f"{yaml}.yaml", *(f"{key}={value}" for key, value in settings.items())]
    return _shown([f"moe yaml {yaml}", shlex.join(words)])


def to_convert(flags: dict[str, Any], tokenizer: Path) -> list[str]:
    """`moe convert` of what the tokenizer in the folder `tokenizer` was trained on, by the `flags` of that."""
    folder = str(tokenizer) if tokenizer.is_absolute() else f"./{tokenizer}"  # which cannot be a hub's name
    words = ["moe", "convert", "--dataset", *flags["dataset"]]
    for name, usual in (("config", None), ("split", "train"), ("revision", None), ("text_column", "text")):
        if flags[name] != usual:
            words += [f"--{name.replace('_', '-')}", flags[name]]
    return _shown([shlex.join([*words, "--tokenizer", folder, "--seq-len", "512", "--out", "data/own"])])


def _shown(commands: list[str]) -> list[str]:
    return [f"{'next' if number == 0 else '':<12} {command}" for number, command in enumerate(commands)]
