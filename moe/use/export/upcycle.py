"""A dense model as a Mixture of Experts that computes the same before its first step, whatever the router chooses.

    --upcycle copies=8,pieces=4[,active=1,shared=0]

- Each MLP is cut along its hidden units into `pieces` experts and, where asked for, `shared` more that become the
  shared expert; the experts are there `copies` times. E = copies * pieces, top_k = active * pieces.
- A copy's router rows are equal (virtual groups, arXiv 2410.07524), so a token takes all pieces of its `active` best
  copies. Their weights sum to 1, a piece's to 1 / pieces over its copies: w2 is multiplied by `pieces`.
- top_k 1 is refused: the one weight is always 1, and the router would never learn.
- A shared expert comes with sigmoid scores, as in the one architecture that has both (moe/model/families).
- Copies are alike until they are trained on other tokens; the router's rows are random (init.py's deviation), so that
  tokens spread over them.

F hidden units of the dense MLP, D width, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from moe.common.errors import InputError
from moe.model.init import STD

SEED = 17


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """copies of each MLP, pieces that a copy is cut into, copies active for a token, pieces that every token passes."""

    copies: int
    pieces: int
    active: int = 1
    shared: int = 0


def parse_recipe(text: str) -> Recipe:
    """`copies=8,pieces=4,active=1,shared=0`, in any order.

    Raises:
        InputError: a part is not understood, missing, given twice, or the parts do not go together.
    """
    flag = f"--upcycle ({text})"
    names = [field.name for field in fields(Recipe)]
    found: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d{1,6})\s*", part, flags=re.ASCII)
        if match is None or match[1] not in names:
            raise InputError(f"{flag}: '{part.strip()}' is none of {', '.join(f'{name}=NUMBER' for name in names)}")
        if match[1] in found:
            raise InputError(f"{flag}: {match[1]} is given twice")
        found[match[1]] = int(match[2])
    if missing := [name for name in ("copies", "pieces") if name not in found]:
        raise InputError(f"{flag}: {' and '.join(missing)} missing, as in copies=8,pieces=4")
    recipe = Recipe(**found)
    for name in ("copies", "pieces", "active"):
        if getattr(recipe, name) < 1:
            raise InputError(f"{flag}: {name} ({getattr(recipe, name)}) must be at least 1")
    if recipe.copies < 2:
        raise InputError(f"{flag}: copies ({recipe.copies}) must be at least 2; one copy is the dense model")
    if recipe.active > recipe.copies:
        raise InputError(f"{flag}: active ({recipe.active}) must be at most copies ({recipe.copies})")
    if recipe.active * recipe.pieces == 1:
        raise InputError(
            f"{flag}: active=1 and pieces=1 make top_k 1, whose weight is always 1: the router would never learn; "
            "give pieces=2 or active=2"
        )
    return recipe


def upcycled_settings(dense: dict[str, Any], recipe: Recipe, source: str) -> dict[str, Any]:
    """The `model` section of what becomes of a dense model (its own section, as an import gives it).

    Raises:
        InputError: the model is not dense, or its hidden units cannot be cut so.
    """
    if dense["n_experts"] != 1:
        raise InputError(f"--upcycle: {source} has {dense['n_experts']} experts already; give a dense model (Qwen3)")
    hidden, parts = dense["expert_hidden"], recipe.pieces + recipe.shared
    if hidden % parts:
        near = [n for n in range(2, 4 * parts) if hidden % n == 0]
        raise InputError(
            f"--upcycle: pieces + shared ({parts}) must divide intermediate_size ({hidden}) of {source}"
            + (f", as {', '.join(map(str, near))} do" if near else "")
        )
    settings = {
        **dense,
        "n_experts": recipe.copies * recipe.pieces,
        "top_k": recipe.active * recipe.pieces,
        "expert_hidden": hidden // parts,
        "norm_topk_prob": True,
    }
    return settings | ({"n_shared_experts": recipe.shared, "scoring_func": "sigmoid"} if recipe.shared else {})


class Upcycled(Mapping[str, Tensor]):
    """The parameters in fp32, each made when it is asked for. The dense model's own where they stay.

    shapes: the names of what is to be made, with their shapes.
    """

    def __init__(self, dense: Mapping[str, Tensor], shapes: dict[str, Tensor], recipe: Recipe):
        self._dense, self._shapes, self._recipe = dense, shapes, recipe
        random = torch.Generator().manual_seed(SEED)
        self._rows = {
            name: torch.empty(recipe.copies, shape.shape[1]).normal_(0, STD, generator=random)
            for name, shape in shapes.items()
            if name.endswith(".moe.router.weight")
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @torch.no_grad()
    def __getitem__(self, name: str) -> Tensor:
        recipe = self._recipe
        layer, _, inner = name.partition(".moe.")
        if not inner:
            return self._dense[name]
        if name in self._rows:
            return self._rows[name].repeat_interleave(recipe.pieces, 0)
        kind = inner.removeprefix("shared.")
        mlp = self._dense[f"{layer}.moe.{kind}"][0]
        width = self._shapes[f"{layer}.moe.w2"].shape[2]
        if inner != kind:
            return _units(mlp, kind, recipe.pieces * width, (recipe.pieces + recipe.shared) * width).contiguous()
        weight = torch.empty(self._shapes[name].shape)
        for expert, matrix in enumerate(weight):
            first = expert % recipe.pieces * width
            matrix.copy_(_units(mlp, kind, first, first + width))
        if kind == "w2":
            weight.mul_(recipe.pieces)
        return weight


def _units(matrix: Tensor, kind: str, first: int, last: int) -> Tensor:
    """What belongs to these hidden units: of w13 [2F, D] their rows of gate and up, of w2 [D, F] their columns."""
    if kind == "w2":
        return matrix[:, first:last]
    return torch.cat([half[first:last] for half in matrix.chunk(2)])
