"""`callbacks`: what an entry must look like, and which names are refused.

Nothing is imported here: a config is read by much that must run no code of it. Whether there is such a class is for a
start to find out (moe/train/callbacks/user_classes.py).
"""

from __future__ import annotations

import re
from typing import Any

from moe.config.bounds import brief

EXAMPLE = "{class: my_file.MyCallback, every: 100ba}"
BUILT_BEFORE = (
    "it changes the model or its loss as Composer's Trainer is made or between forward and loss; here the loss is "
    "computed in forward, and optimizer and sharding exist before the Trainer"
)
EMA = (
    "it averages buffers too (the bytes of each token change), is not what a checkpoint's model or an export "
    "holds, and averages nothing any more after a resume on another number of ranks, where its weights' names differ"
)
OWN_PART = {  # Composer's callbacks that would do what the run does itself
    "CheckpointSaver": "checkpoints are written by the run itself: save_interval, save_num_checkpoints_to_keep",
    "LoadCheckpoint": "a run starts from another's weights with load_path",
    "SpeedMonitor": "it would log other values under the names that the run logs itself (throughput/, time/)",
}


def refused(module: str, name: str) -> str | None:
    """Why Composer's class `name` of `module` cannot be one of `callbacks`; None where it can."""
    if module.startswith("composer.algorithms"):
        return f"Composer's algorithms cannot be used: {EMA if name == 'EMA' else BUILT_BEFORE}"
    return OWN_PART.get(name) if module.startswith("composer.") else None


def check_callbacks(entries: list[Any], errors: list[str]) -> None:
    for number, entry in enumerate(entries):
        path = f"callbacks[{number}]"
        if not isinstance(entry, dict):
            errors.append(f"{path} ({brief(entry)}) must be a section with a class, as {EXAMPLE}")
            continue
        name = entry.get("class")
        if not isinstance(name, str):
            errors.append(f"{path} ({brief(entry)}) has no class; name one, as {EXAMPLE}")
        elif re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name) is None:
            errors.append(f"{path}.class ({brief(name)}) must be a module and a class of it, as my_file.MyCallback")
        elif reason := refused(*name.rpartition(".")[::2]):
            errors.append(f"{path}.class ({name}): {reason}; remove it")
        _check_numbers(path, entry, errors)
        errors += [
            f"{path}.{key}: is no name of an argument; write what the class takes, as {EXAMPLE}"
            for key in entry
            if not key.isidentifier()
        ]


def _check_numbers(path: str, value: Any, errors: list[str]) -> None:
    """What is a number to everybody and text to yaml: nothing tells here which one an argument is to be."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]+\.?[0-9]*[eE][-+]?[0-9]+", value):
        number = str(float(value))
        number = number if "." in number else number.replace("e", ".0e")
        errors.append(f"{path} ({value}) is text to yaml; write the number as {number}")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        _check_numbers(f"{path}.{key}" if isinstance(key, str) else f"{path}[{key}]", item, errors)
