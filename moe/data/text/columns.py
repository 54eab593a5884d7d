"""Columns by name, in tables and objects: which hold text, which can name a document, and how both become bytes.

- A name with dots is a column of that name, else a field below one: `doc.text` is `text` of `doc`.
- Whatever Arrow can cast to text may be an id; a text column has to be of strings or bytes, in any layout of Arrow's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from moe.data.text.errors import BadFileError

ID_COLUMN = "id"
TEXT_KINDS = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_string_view,
    pa.types.is_binary,
    pa.types.is_large_binary,
    pa.types.is_binary_view,
)


@dataclass(frozen=True)
class Column:
    """`top` is the column in the file, `inner` the fields below it."""

    top: str
    inner: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return ".".join((self.top, *self.inner))

    def of(self, batch: pa.RecordBatch) -> pa.Array:
        """The column's values, null where a struct around them is null."""
        column = batch.column(batch.schema.get_field_index(self.top))
        return _plain(pc.struct_field(column, list(self.inner)) if self.inner else column)


def _plain(column: pa.Array) -> pa.Array:
    """Text in a layout that any two batches share."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    views = pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type)
    return column.cast(pa.large_binary()) if views else column


def is_text(kind: pa.DataType) -> bool:
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(check(value) for check in TEXT_KINDS)


def is_key(kind: pa.DataType) -> bool:
    """Whether values of this type can be written as text."""
    try:
        key_bytes(pa.array([], kind))
        if pa.types.is_timestamp(kind):
            key_bytes(pa.nulls(1, kind))  # its zone is looked up for a value alone
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return False
    return True


def key_bytes(ids: pa.Array) -> list[bytes | None]:
    """Each id as the bytes of its text. Bytes that are no UTF-8 stay as they are."""
    if pa.types.is_dictionary(ids.type):
        ids = ids.dictionary_decode()
    if pa.types.is_boolean(ids.type) or pa.types.is_primitive(ids.type) or pa.types.is_decimal(ids.type):
        ids = ids.cast(pa.large_string())
    return ids.cast(pa.large_binary()).to_pylist()


def as_text(texts: pa.Array) -> pa.Array:
    """A text column of any layout as large_string; whether it is UTF-8 has not been looked at."""
    return texts.cast(pa.large_binary()).view(pa.large_string())


def names_of(schema: pa.Schema) -> list[str]:
    """The columns' names, with the fields of structs below them."""

    def below(prefix: str, kind: pa.DataType) -> list[str]:
        if not pa.types.is_struct(kind):
            return [prefix]
        return [name for field in kind for name in below(f"{prefix}.{field.name}", field.type)]

    return [name for field in schema for name in below(field.name, field.type)]


def absent(file: str, column: str, there_are: Sequence[str]) -> BadFileError:
    return BadFileError(file, f"no column '{column}'; there are {', '.join(there_are)}: choose one with --text-column")


def once(file: str, column: str, names: Sequence[str]) -> None:
    """BadFileError for a column that there is more than once."""
    if names.count(column) > 1:
        raise BadFileError(
            file, f"column '{column}' occurs {names.count(column)} times; rename all but one, or choose another "
            "with --text-column"
        )  # fmt: skip


def find_column(schema: pa.Schema, name: str) -> tuple[Column, pa.DataType] | None:
    """The column called `name` and its type; None where there is none, or more than one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        top, inner = ".".join(parts[:cut]), parts[cut:]
        if schema.names.count(top) != 1:
            continue
        kind = schema.field(top).type
        for part in inner:
            if not pa.types.is_struct(kind) or kind.get_field_index(part) < 0:
                break
            kind = kind.field(part).type
        else:
            return Column(top, tuple(inner)), kind
    return None


def text_column_of(schema: pa.Schema, name: str, file: str) -> Column:
    """The text column called `name`. BadFileError where there is none, or it holds no text; names those there are."""
    once(file, name, schema.names)
    found = find_column(schema, name)
    if found is None:
        raise absent(file, name, names_of(schema))
    column, kind = found
    if not is_text(kind):
        raise BadFileError(file, f"column '{name}' is {kind}, not text; choose another with --text-column")
    return column


def id_column_of(schema: pa.Schema, name: str | None, text: Column) -> Column | None:
    """The column that names documents; None where there is none that can."""
    found = find_column(schema, name) if name is not None else None
    return found[0] if found is not None and found[0] != text and is_key(found[1]) else None


def field_of(row: dict[str, Any], name: str) -> Any:
    """The value called `name` in an object, None where there is none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        value: Any = row
        for part in (".".join(parts[:cut]), *parts[cut:]):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None
