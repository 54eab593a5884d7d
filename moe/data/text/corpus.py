"""English text that is on every machine with this project: the docstrings of Python packages, as parquet in FineWeb's
schema.

- Sources are parsed, never imported. Packages come in a fixed order, each gives at most PACKAGE_BYTES, until
  MAX_BYTES are reached.
- A document is the docstrings of one top-level class or function, or of a module. Doctest lines are dropped, and so
  is a docstring that reads like code rather than English, or that was seen before.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from moe.common.errors import InputError
from moe.common.units import tell

PACKAGES = (
    "stdlib",
    "numpy",
    "torch",
    "transformers",
    "pandas",
    "sympy",
    "composer",
    "networkx",
    "datasets",
    "huggingface_hub",
    "torchmetrics",
    "streaming",
    "pip",
    "setuptools",
    "botocore",
)
PACKAGE_BYTES, MAX_BYTES = 2_000_000, 8_000_000
LEAST_CHARS = 200
ROWS_PER_GROUP = 1000
COMMON_WORDS = frozenset(
    "the,of,to,and,a,in,is,for,that,with,as,are,be,on,by,this,it,from,or,an,if,not,can,will".split(",")  # noqa: SIM905
)
SCHEMA = pa.schema(
    {
        **dict.fromkeys(("text", "id", "dump", "url", "date", "file_path", "language"), pa.string()),
        "language_score": pa.float64(),
        "token_count": pa.int64(),
    }
)


def prose(docstring: str) -> str | None:
    """The docstring without doctest lines; None when little of it is English sentences."""
    kept, in_example = [], False
    for line in inspect.cleandoc(docstring).splitlines():
        in_example = bool(line.strip()) and (in_example or line.lstrip().startswith(">>>"))
        if not in_example:
            kept.append(line.rstrip())
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()
    words = re.findall(r"[A-Za-z']+", text)
    letters = sum(len(word) for word in words)
    if len(words) < 8 or letters < 0.6 * len(text.replace(" ", "").replace("\n", "")):
        return None
    return text if sum(word.lower() in COMMON_WORDS for word in words) >= 0.15 * len(words) else None


def documents(source: str, seen: set[bytes]) -> Iterator[tuple[str, str]]:
    """(name, text) of a module's documents. `seen` holds digests of the docstrings used so far."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    groups: list[tuple[str, list[ast.AST]]] = [("", [tree])]
    for top in tree.body:
        if isinstance(top, kinds):
            groups.append((top.name, [inner for inner in ast.walk(top) if isinstance(inner, kinds)]))
    for name, nodes in groups:
        parts = []
        for node in nodes:
            docstring = ast.get_docstring(node, clean=False)  # type: ignore[arg-type]
            text = prose(docstring) if docstring else None
            if text is None:
                continue
            digest = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                parts.append(text)
        text = "\n\n".join(parts)
        if len(text) >= LEAST_CHARS:
            yield name, text.encode("utf-8", "replace").decode()


def package_files(package: str) -> tuple[Path, list[Path]]:
    """The package's folder and its .py files in order, without tests; no files where it is not installed."""
    if package == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        skip = {"site-packages", "dist-packages", "test", "idlelib", "lib2to3", "ensurepip"}
    else:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return Path(), []
        root, skip = Path(next(iter(spec.submodule_search_locations))), {"tests", "testing", "_vendor"}
    found = (path for path in root.rglob("*.py") if not skip & set(path.relative_to(root).parts))
    return root, sorted(found, key=lambda path: path.relative_to(root).as_posix())


def build_corpus(
    out_folder: str | Path,
    *,
    packages: tuple[str, ...] = PACKAGES,
    package_bytes: int = PACKAGE_BYTES,
    max_bytes: int = MAX_BYTES,
) -> Path:
    """Write `out_folder`/000_00000.parquet and return it; one that is there is kept. Prints a line per package."""
    out = Path(out_folder) / "000_00000.parquet"
    if out.exists():
        tell(f"corpus: {out} is there already")
        return out
    rows: list[dict] = []
    seen: set[bytes] = set()
    total = 0
    for package in packages:
        if total >= max_bytes:
            break
        root, files = package_files(package)
        size = 0
        for path in files:
            if size >= package_bytes or total + size >= max_bytes:
                break
            name = f"{package}/{path.relative_to(root).as_posix()}"
            for definition, text in documents(path.read_text(encoding="utf-8", errors="replace"), seen):
                rows.append({"text": text, "id": f"<docs:{name}:{definition}:{len(rows)}>", "file_path": name})
                size += len(text.encode())
        total += size
        if files:
            tell(f"corpus: {package:<16} {size / 1e6:5.2f} MB, {total / 1e6:5.2f} of {max_bytes / 1e6:g} MB")
    if not rows:
        raise InputError("no package with docstrings was found; this Python has no sources on the disk")
    for row in rows:
        row |= {
            "dump": "python-docs",
            "url": f"file:{row['file_path']}",
            "date": "",
            "language": "en",
            "language_score": 1.0,
        }
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_suffix(".tmp")
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), aside, row_group_size=ROWS_PER_GROUP)
    aside.rename(out)
    tell(f"corpus: {len(rows):,} documents, {total / 1e6:.2f} MB of text in {out}")
    return out
