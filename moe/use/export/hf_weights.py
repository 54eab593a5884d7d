"""The safetensors of a Hugging Face folder: all there, of the sizes that config.json says, finite; as our parameters.

- Sizes are held against the files' headers before anything is built of them: a wrong number costs no memory.
- A parameter is made when it is asked for: no more of them are in memory than the asker keeps.
- What was read of a mapped file counts as this process's memory while it is mapped: files are closed when some of them
  was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe.common.errors import InputError
from moe.common.typed_json import parse_json
from moe.common.untrusted_names import OutsideName, file_name
from moe.model.families.family import Family
from moe.use.export.names import hf_parts, scale_of

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
IGNORED_NAMES = ("rotary_emb.inv_freq",)  # older files hold the table of rotary embeddings
MOST_MAPPED = 1 << 26  # bytes that are read before what is mapped is let go


class Place:
    """The tensors of files, by name. `files`: with the names they hold."""

    def __init__(self, files: dict[Path, list[str]]):
        self._file = {name: path for path, names in files.items() for name in names}
        self._open: dict[Path, Any] = {}
        self._mapped = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def shape(self, name: str) -> list[int]:
        return [*self._opened(name).get_slice(name).get_shape()]

    def file(self, name: str) -> Path:
        return self._file[name]

    def rows(self, name: str, count: int) -> Tensor:
        """The first `count` rows; for one use, before the next ones are asked for."""
        if self._mapped > MOST_MAPPED:
            self.close()
        found: Tensor = self._opened(name).get_slice(name)[:count]
        self._mapped += found.nbytes
        return found

    def close(self) -> None:
        self._open.clear()
        self._mapped = 0

    def _opened(self, name: str) -> Any:
        path = self._file[name]
        if path not in self._open:
            self._open[path] = open_weights(path)
        return self._open[path]


class Index(TypedDict):
    weight_map: dict[str, str]


@contextmanager
def opened(folder: Path) -> Iterator[Place]:
    """The tensors of a folder, each in the file that transformers takes it from: the one that is named WHOLE; else that
    which the index names; else, without an index, the only one that has it.

    Raises:
        InputError: a file is missing or damaged, or two files have a tensor of one name.
    """
    place = Place(_files(folder))
    try:
        yield place
    finally:
        place.close()


def not_read(folder: Path) -> list[str]:
    """Names of weights in the folder that `opened` does not read."""
    return sorted(path.name for path in {*folder.glob("*.safetensors")} - {*_files(folder)})


def _files(folder: Path) -> dict[Path, list[str]]:
    """Each file that is read, with the names of what is read of it."""
    if (folder / WHOLE).is_file():
        return {folder / WHOLE: [*open_weights(folder / WHOLE).keys()]}
    if (folder / INDEX).is_file():
        listed = _indexed(folder)
        return {path: [name for name in open_weights(path).keys() if name in names] for path, names in listed.items()}  # noqa: SIM118
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise InputError(f"--from-hf ({folder}): has no weights (*.safetensors)")
    found = {path: [*open_weights(path).keys()] for path in paths}
    first: dict[str, Path] = {}
    for path, names in found.items():
        for name in names:
            if (other := first.setdefault(name, path)) != path:
                raise InputError(
                    f"--from-hf ({folder}): {other.name} and {path.name} both have {name}, and no {INDEX} says "
                    "which is meant; remove one of them"
                )
    return found


def open_weights(path: Path) -> Any:
    """Raises InputError where the file is damaged or gone."""
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError) as error:
        raise InputError(f"--from-hf ({path}): its weights cannot be read ({error})") from None


def _indexed(folder: Path) -> dict[Path, set[str]]:
    """The files that the index lists, with the names that it has in each."""
    path = folder / INDEX
    found: dict[Path, set[str]] = {}
    try:
        for name, file in parse_json(path.read_bytes(), Index)["weight_map"].items():
            found.setdefault(folder / file_name(file, f"--from-hf: {path}"), set()).add(name)
    except OutsideName:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"--from-hf: {path} cannot be read ({error})") from None
    if lost := sorted(file.name for file in found if not file.is_file()):
        more = f" and {len(lost) - 10} more" if len(lost) > 10 else ""
        raise InputError(
            f"--from-hf ({folder}): {', '.join(lost[:10])}{more} is missing, though {INDEX} lists it; fetch it again"
        )
    return dict(sorted(found.items()))


def check_sizes(place: Place, content: dict[str, Any], settings: dict[str, Any], family: Family, source: str) -> None:
    """Holds the sizes in config.json (`content`, our `settings` of it) against the weights' shapes.

    Raises:
        InputError: names each key, its value and the one of the weights.
    """
    embed, first = "model.embed_tokens.weight", "model.layers.0.self_attn."
    sparse = f"model.layers.{settings['first_k_dense_replace']}."
    width = settings["head_dim"] or settings["d_model"] // settings["n_heads"]
    keys = {ours: theirs for ours, (theirs, _) in family.keys.items()}
    held = {
        "vocab_size": _size(place, embed, 0),
        "hidden_size": _size(place, embed, 1),
        "num_hidden_layers": _count(place, "model.layers."),
    }
    if settings["qk_norm"] == "head":
        held["head_dim"] = _size(place, f"{first}q_norm.weight", 0)
        width = held["head_dim"] or 1
    held["num_attention_heads"] = _size(place, f"{first}q_proj.weight", 0) // width
    held["num_key_value_heads"] = _size(place, f"{first}k_proj.weight", 0) // width
    experts = keys.get("n_experts") or ("num_experts" if "num_experts" in content else "num_local_experts")
    if joined := family.names.get("moe.w13"):
        held[keys["expert_hidden"]] = _size(place, sparse + joined, 1) // 2
        held[experts] = _size(place, sparse + joined, 0)
    else:
        gate = f"{sparse}{family.experts.format(0)}.{family.projections[0]}.weight"
        held[keys["expert_hidden"]] = _size(place, gate, 0)
        if not family.dense:
            held[experts] = _count(place, sparse + family.experts.format(""))
    held = {key: size for key, size in held.items() if key in content}
    errors = [
        f"{key} ({content[key]}): must be {size}, as in the weights"
        if size
        else f"{key} ({content[key]}): the weights lack the tensors that it describes"
        for key, size in held.items()
        if size != content[key]
    ]
    if errors:
        raise InputError(f"{source}: its config.json describes other weights:\n" + _listed(errors))


def _size(place: Place, name: str, axis: int) -> int:
    """A size of a tensor; 0 where there is no such tensor."""
    shape = place.shape(name) if name in place else []
    return shape[axis] if axis < len(shape) else 0


def _count(place: Place, prefix: str) -> int:
    """How many numbers follow `prefix` in the tensors' names."""
    words = {name.removeprefix(prefix).partition(".")[0] for name in place if name.startswith(prefix)}
    return len({word for word in words if word.isdigit()})


class HubWeights(Mapping[str, Tensor]):
    """Our parameters as a folder's files hold them, in fp32, by our names.

    shapes: our names with the shapes they must have.

    Raises:
        InputError: names that are missing, that this model has no place for, or whose shape is another; and, when one
            is asked for, a parameter that holds NaN or infinity.
    """

    def __init__(self, place: Place, shapes: dict[str, Tensor], family: Family, source: str):
        _refuse_others(place, shapes, family, source)
        self._place, self._shapes, self._family, self._source = place, shapes, family, source

    def __getitem__(self, name: str) -> Tensor:
        weight = torch.zeros(self._shapes[name].shape)
        errors = []
        for theirs, part in hf_parts(name, weight, self._family).items():
            part.copy_(self._place.rows(theirs, part.shape[0]))
            if (scale := scale_of(name, self._family)) != 1:
                part.mul_(scale)
            if not is_finite(part):
                errors.append(theirs)
        check_finite(errors, self._source)
        return weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def _refuse_others(place: Place, shapes: dict[str, Tensor], family: Family, source: str) -> None:
    needed = {n: s for name, shape in shapes.items() for n, s in hf_parts(name, shape, family).items()}
    tied = "lm_head.weight" not in needed
    extra = [name for name in place if name not in needed and not name.endswith(IGNORED_NAMES)]
    extra = [name for name in extra if not (tied and name == "lm_head.weight")]
    errors = [f"{name}: is missing" for name in needed if name not in place]
    errors += [f"{name}: has no place in this model" for name in extra]
    for name, part in needed.items():
        found = place.shape(name) if name in place else list(part.shape)
        rows_may_differ = name in ("model.embed_tokens.weight", "lm_head.weight")
        fits = len(found) == part.ndim and (found[0] >= part.shape[0] if rows_may_differ else found[0] == part.shape[0])
        if not fits or found[1:] != list(part.shape[1:]):
            errors.append(f"{name}: has shape {found}, needs {list(part.shape)}")
    if errors:
        raise InputError(f"{source}: is not a model of this family; its weights differ:\n{_listed(errors)}")


def is_finite(weight: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; needs no memory of its size."""
    return all(bool(edge.isfinite()) for edge in weight.aminmax())


def check_finite(names: list[str], source: str) -> None:
    """Raises InputError where `names`, those of tensors that are not finite, names any."""
    if names:
        raise InputError(f"{source}: weights that hold NaN or infinity are of no use:\n{_listed(names)}")


def _listed(errors: list[str]) -> str:
    more = f"\n  and {len(errors) - 10} more" if len(errors) > 10 else ""
    return "\n".join(f"  {error}" for error in errors[:10]) + more
