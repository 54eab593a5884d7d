"""Write one of the yamls to begin with into a file of your own; without a name: list them."""

from __future__ import annotations

import argparse
from pathlib import Path

import moe
from moe.common.errors import InputError
from moe.common.paths import local_path
from moe.common.units import show

PACKAGE = Path(moe.__file__).resolve().parent


def folder() -> Path:
    """Where the yamls are, from here where they lie below: beside an installed package's code (setup.py copies them
    there), else in the repository.
    """
    packed = PACKAGE / "yamls"
    found = packed if packed.is_dir() else PACKAGE.parent / "yamls"
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="which one, e.g. quick")
    parser.add_argument("--out", help="the file to write (default: NAME.yaml in this folder)")


def named_yaml(name: str) -> Path:
    """Raises InputError where there is none of that name."""
    there = yamls()
    if name.removesuffix(".yaml") not in there:
        raise InputError(f"there is no yaml '{name}'; there are {', '.join(there)}")
    return there[name.removesuffix(".yaml")]


def yamls() -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def write_new(out: Path, content: bytes) -> None:
    """Raises InputError where the file is there: one of the user's is never written over."""
    try:
        with open(out, "xb") as file:
            file.write(content)
    except FileExistsError:
        raise InputError(f"{out} is there already; remove it, or choose another file with --out") from None
    except OSError as error:
        raise InputError(f"{out} cannot be written ({error.strerror}); choose another file with --out") from None


def run(args: argparse.Namespace) -> int:
    there = yamls()
    if args.name is None:
        if args.out is not None:
            raise InputError(f"--out ({args.out}) needs the name of a yaml: {', '.join(there)}")
        for name, path in there.items():
            show(f"{name:<10} {_first_sentence(path.read_text(encoding='utf-8'))}")
        return 0
    source = named_yaml(args.name)
    out = local_path(args.out, "--out") if args.out is not None else Path(source.name)
    write_new(out, source.read_bytes())
    show(f"{out} is written; change in it what you like, then: moe train {out}")
    return 0


def _first_sentence(text: str) -> str:
    """Of the comment that a yaml begins with."""
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith("# "):
            break
        lines.append(line.removeprefix("# "))
    sentence, dot, _ = " ".join(lines).partition(". ")
    return sentence + "." * bool(dot)
