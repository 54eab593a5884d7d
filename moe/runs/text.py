"""Text of files, made safe to show: a terminal obeys control characters, and a page cannot be written with half a
surrogate pair. Each such character becomes `?`; line ends and tabs stay.
"""

from __future__ import annotations

from typing import Any

from rich.cells import cell_len

from moe.common.units import clean

MOST_NESTED = 50


def shorten(text: str, width: int, dots: str = "…") -> str:
    """At most `width` cells of `text`, its end: that of a path tells more than its beginning."""
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) > width - len(dots):
        text = text[1:]
    return dots[:width] + text


def clean_all(node: Any, levels: int = MOST_NESTED) -> Any:
    """Every text in `node`, of JSON or YAML, names included.

    Raises:
        RecursionError: `node` is nested more than `levels` deep: nothing of ours is, and who walks it would fail.
    """
    if not levels:
        raise RecursionError
    if isinstance(node, str):
        return clean(node)
    if isinstance(node, dict):
        return {clean_all(key, levels - 1): clean_all(value, levels - 1) for key, value in node.items()}
    if isinstance(node, list) and not set(map(type, node)) <= {int, float}:  # the experts' load is numbers alone
        return [clean_all(value, levels - 1) for value in node]
    return node
