"""The tensors of a checkpoint of ranks that share a model: one safetensors file a rank, each with its own rows.

    step-00005000/shard-00001-model-00001-of-00001.safetensors   the first rank's part of each tensor it has one of

Decisions:
- A tensor is divided along its first dimension, or along another one that the manifest names (`dim`): its rows are then
  those of that dimension. Which rows lie in which file stands in the manifest (`tensors`), and nothing else is asked: a
  reader takes slices of those files, whatever the number of ranks it has and however they divide the tensor.
- Names and header are those of torch.distributed.checkpoint's files for Hugging Face, so that its own reader
  (HuggingFaceStorageReader) gives the same tensors. Its default format is not used: its `.metadata` is a pickle.
- A file is written tensor by tensor, hashed on the way, and each tensor is let go when it is written: no second copy.
- What is read is read through the descriptor whose bytes were verified: nothing looks the name up again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe.common.errors import InputError
from moe.train.checkpointing.files import PIECE, File, hash_rest, write_file

MODEL, OPTIMIZER = "model", "optimizer"  # names are model.NAME and optimizer.KEY.NAME; no KEY has a dot
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
MOST_MAPPED = 1 << 26  # bytes: what was read of a mapped file counts as memory of this process until it is unmapped


class Rows(NamedTuple):
    """Of one rank: rows of dimension `dim` of a tensor, contiguous, on the CPU; the first one's number."""

    values: Tensor
    first: int
    dim: int = 0


Part = dict[str, Rows]  # one rank's, by name


class _Along(TypedDict, total=False):
    dim: int | None  # that is divided; without it the first


class Divided(_Along):
    """How a tensor is divided. parts: file -> [first row, number of rows]."""

    shape: list[int]
    dtype: str
    parts: dict[str, list[int]]


class CheckpointError(InputError):
    """A checkpoint that a user named, or that a run needs, cannot be used."""


def part_name(number: int) -> str:
    """number: of the part, from 0."""
    return f"shard-{number + 1:05d}-model-00001-of-00001.safetensors"


def part_files(manifest: dict[str, Any]) -> list[str]:
    """The files of a checkpoint that hold its divided tensors, in the order of their numbers."""
    return sorted({file for tensor in (manifest.get("tensors") or {}).values() for file in tensor["parts"]})


def write_part(path: Path, part: Part) -> File:
    """Empties `part` as it is written. Raises OSError."""
    shapes = {name: rows._replace(values=rows.values.to("meta")) for name, rows in part.items()}
    return write_rows(path, shapes, lambda name: part.pop(name).values)


def write_rows(path: Path, shapes: Part, values: Callable[[str], Tensor]) -> File:
    """shapes: of the part to be written, without values. values: gives those of a name, once, when its turn comes.

    Raises OSError, and what `values` raises.
    """
    order = sorted(shapes, key=lambda name: (-shapes[name].values.element_size(), name))  # larger items first: aligned
    offsets = {name: {"saved_offsets": _offsets(shapes[name])} for name in order}
    about = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name in order:
        rows = shapes[name].values
        header[name] = {"dtype": DTYPES[rows.dtype], "shape": [*rows.shape], "data_offsets": [end, end + rows.nbytes]}
        end += rows.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterator[bytes | memoryview]:
        yield len(text).to_bytes(8, "little") + text
        for name in order:
            content = values(name).flatten().view(torch.uint8).numpy().data
            for start in range(0, len(content), PIECE):
                yield content[start : start + PIECE]

    return write_file(path, pieces())


def _offsets(rows: Rows) -> list[int]:
    return [rows.first if dim == rows.dim else 0 for dim in range(rows.values.ndim)]


def describe(part: Part, shapes: dict[str, list[int]], file: str) -> dict[str, Divided]:
    """What the manifest says of one rank's part. shapes: of the complete tensors."""
    found: dict[str, Divided] = {}
    for name, (rows, first, dim) in part.items():
        parts = {file: [first, rows.shape[dim]]}
        found[name] = {"shape": shapes[name], "dtype": DTYPES[rows.dtype], "parts": parts}
        if dim:
            found[name]["dim"] = dim
    return found


def joined(described: list[dict[str, Divided]]) -> dict[str, Divided]:
    """`describe` of all ranks as one, in the order of rows."""
    found: dict[str, Divided] = {}
    for tensors in described:
        for name, tensor in tensors.items():
            found.setdefault(name, {**tensor, "parts": {}})["parts"].update(tensor["parts"])
    for tensor in found.values():
        tensor["parts"] = dict(sorted(tensor["parts"].items(), key=lambda item: item[1]))
    return found


def error_in_parts(tensors: dict[str, Divided], files: dict[str, File]) -> str | None:
    """What keeps a manifest's `tensors` from being complete, in words; None where nothing does."""
    for name, tensor in tensors.items():
        dim = tensor.get("dim") or 0
        if len(tensor["shape"]) <= dim or tensor["dtype"] not in DTYPES.values():
            return f"tensors.{name} has no shape, or a dtype that is not known"
        end = 0
        for file, rows in tensor["parts"].items():
            if file not in files:
                return f"tensors.{name} lies in {file}, which is not in its files"
            if len(rows) != 2 or rows[0] != end:
                return f"tensors.{name} has rows up to {end}, then {rows} in {file}"
            end = rows[0] + rows[1]
        if end != tensor["shape"][dim]:
            return f"tensors.{name} has {end} of {tensor['shape'][dim]} rows"
    return None


class Parts:
    """Reads a checkpoint's tensors, of complete ones or of rows, each file verified as it is first opened.

    manifest: of the checkpoint in `folder`, with `tensors` that are complete.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder = folder
        self.files: dict[str, File] = manifest["files"]
        self.tensors: dict[str, Divided] = manifest["tensors"]
        self._descriptors: dict[str, int] = {}
        self._maps: dict[str, Any] = {}
        self._mapped = 0  # bytes of them that were read
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Parts:
        return self

    def __exit__(self, *error: object) -> None:
        self._maps.clear()
        self._held.close()

    def rows(self, name: str, first: int = 0, count: int | None = None) -> Tensor:
        """Rows of a tensor, all without `count`: a copy in memory. Raises as `read` does."""
        shape = self.tensors[name]["shape"]
        found = torch.empty(shape[0] - first if count is None else count, *shape[1:], dtype=self.dtype(name))
        self.read(name, first, found)
        return found

    def dtype(self, name: str) -> torch.dtype:
        return next(dtype for dtype, known in DTYPES.items() if known == self.tensors[name]["dtype"])

    def read(self, name: str, first: int, into: Tensor, dim: int = 0) -> None:
        """Fills `into` with as many rows of dimension `dim` of a tensor, from `first` on.

        Raises:
            CheckpointError: a file is not what the manifest says.
        """
        along = self.tensors[name].get("dim") or 0
        begin = first if along == dim else 0
        end = begin + into.shape[along]
        for file, (start, length) in self.tensors[name]["parts"].items():
            low, high = max(begin, start), min(end, start + length)
            if low < high:
                rows = into.narrow(along, low - begin, high - low)
                place = [slice(None)] * into.ndim
                place[dim] = slice(first, first + into.shape[dim])
                place[along] = slice(low - start, high - start)
                rows.copy_(self._slice(file, name, tuple(place), rows))
                self._mapped += rows.nbytes
        if self._mapped > MOST_MAPPED:
            self._maps.clear()
            self._mapped = 0

    def _slice(self, file: str, name: str, place: tuple[slice, ...], like: Tensor) -> Tensor:
        try:
            rows = self._opened(file).get_slice(name)[place]
        except OSError as error:
            raise CheckpointError(f"{self.folder / file}: cannot be read ({error.strerror or error})") from None
        except SafetensorError as error:
            raise CheckpointError(f"{self.folder / file}: is not what its manifest says ({error})") from None
        if rows.shape != like.shape or rows.dtype != like.dtype:
            raise CheckpointError(f"{self.folder / file}: is not what its manifest says (the shape of {name})")
        return rows

    def _opened(self, name: str) -> Any:
        if name not in self._descriptors:
            path = self.folder / name
            file = self._held.enter_context(open(path, "rb"))  # noqa: SIM115
            if hash_rest(file) != self.files[name]["xxh64"]:
                raise CheckpointError(f"{path}: its bytes have changed since it was written (xxh64 differs)")
            self._descriptors[name] = file.fileno()
        if name not in self._maps:
            self._maps[name] = safe_open(f"/proc/self/fd/{self._descriptors[name]}", "pt")
        return self._maps[name]
