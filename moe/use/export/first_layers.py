"""The first layers of a Hugging Face folder, as a folder of its own: a model that is small enough for memory.

Logits tell whether names and settings mean to transformers what they mean here. They need a whole model in memory, in
fp32, on both sides. Every value of every layer is compared apart from that, and layers of one kind differ in nothing
else; so the first of each kind answer for a model that is too large.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from moe.use.export.hf_weights import INDEX, WHOLE, Place

MOST = 1 << 31  # bytes of the fp32 weights on each side
LAYER = re.compile(r"(?:^|\.)(?:blocks|layers)\.(\d+)\.")


def layers_that_fit(shapes: Mapping[str, Tensor], settings: Mapping[str, Any]) -> int:
    """How many of a model's first layers weigh no more than MOST with all that is no layer; at least one of experts.

    shapes: of all parameters.
    """
    sizes = [0] * settings["n_layers"]
    outside = 0
    for name, shape in shapes.items():
        number = _layer(name)
        if number is None:
            outside += 4 * shape.numel()
        else:
            sizes[number] += 4 * shape.numel()
    fit = [count for count in range(1, len(sizes) + 1) if outside + sum(sizes[:count]) <= MOST]
    return max([settings.get("first_k_dense_replace", 0) + 1, *fit])


def write_first_layers(folder: Path, place: Place, config: dict[str, Any], count: int, out: Path) -> None:
    """Makes `out`, with links to those files of `folder` that hold the first `count` layers.

    place: of `folder`. config: its config.json.
    """
    out.mkdir()
    cut = {
        key: value[:count] if key.endswith("layer_types") and isinstance(value, list) else value
        for key, value in config.items()
    }
    (out / "config.json").write_text(json.dumps({**cut, "num_hidden_layers": count}), encoding="utf-8")
    needed = {name: place.file(name).name for name in place if (_layer(name) or 0) < count}
    if (folder / WHOLE).is_file():  # transformers takes the single file then
        (out / WHOLE).symlink_to((folder / WHOLE).resolve())
        return
    for name in {*needed.values()}:
        (out / name).symlink_to((folder / name).resolve())
    (out / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": needed}), encoding="utf-8")


def _layer(name: str) -> int | None:
    found = LAYER.search(name)
    return int(found[1]) if found else None
