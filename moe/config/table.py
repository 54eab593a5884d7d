"""Prints docs/configuration.md, made from the dataclasses: python -m moe.config.table > docs/configuration.md"""

from __future__ import annotations

import ast
import inspect
import re

from moe.common.units import show
from moe.config import observe, schema


def rows() -> list[tuple[str, str, str, str]]:
    """(key, type, default, meaning) of every setting, sections after the keys of the level above."""
    nodes = [node for module in (schema, observe) for node in ast.parse(inspect.getsource(module)).body]
    classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
    found: list[tuple[str, str, str, str]] = []

    def visit(name: str, prefix: str) -> None:
        bases = [classes[base.id] for base in classes[name].bases if isinstance(base, ast.Name)]
        body = [node for part in (*bases, classes[name]) for node in part.body]
        sections = []
        for field, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign):
                continue
            kind = ast.unparse(field.annotation)
            key = prefix + ast.unparse(field.target)
            doc = ""
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                doc = str(following.value.value)
            section = next((c for c in re.findall(r"\w+", kind) if c in classes), None)
            if section:
                sections.append((section, f"{key}.NAME." if kind.startswith("dict") else f"{key}."))
            if doc or not section:
                found.append((key, _kind(kind, section), _default(field.value), doc))
        for section, path in sections:
            visit(section, path)

    visit("Config", "")
    return found


def _kind(kind: str, section: str | None) -> str:
    if section:
        return "sections by name" if kind.startswith("dict") else "section"
    kind = re.sub(r"\b[A-Z]\w+Name\b", lambda found: str(getattr(schema, found[0])).replace("typing.", ""), kind)
    return re.sub(r"Literal\[(.*?)\]", lambda found: found[1].replace("'", ""), kind.replace("None", "null"))


def _default(value: ast.expr | None) -> str:
    if value is None:
        return "**required**"
    text = ast.unparse(value)
    if text.startswith("field("):
        return "{}" if "list" not in text else "[]"
    return {"None": "null", "True": "true", "False": "false"}.get(text, text.strip("'"))


def render() -> str:
    """The complete page, a table for each section of the yaml."""
    lines = [
        "# Configuration",
        "",
        "Every key of a yaml, and of `key=value` on the command line. Made by `python -m moe.config.table`.",
        "Times are tokens (`100000000tok`) or optimizer steps (`1000ba`).",
    ]
    last = None
    for key, kind, default, doc in rows():
        section = key.partition(".")[0] if "." in key else "Run"
        if section != last:
            lines += ["", f"## {section}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
            last = section
        escaped = [cell.replace("|", "\\|") for cell in (kind, default, doc)]
        shown = escaped[1] if escaped[1].startswith("**") else f"`{escaped[1]}`"
        lines.append(f"| `{key}` | {escaped[0]} | {shown} | {escaped[2]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    show(render(), end="")
