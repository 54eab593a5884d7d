"""How to install what an optional command needs.

The hint names the packages of the extra, not the extra: pip would resolve all that this project asks for again, and
may put another torch in the place of the one that is installed.
"""

from __future__ import annotations

import shlex
from importlib.metadata import PackageNotFoundError, requires

PROJECT = "moe-trainer"


def install_command(extra: str) -> str:
    """The command that installs the packages of `extra` into this environment, whether from a clone or a wheel."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(line) for line in requires(PROJECT) or []]
    except PackageNotFoundError:  # run from a folder of sources
        wanted = []
    packages = []
    for package in wanted:
        if package.marker is not None and package.marker.evaluate({"extra": extra}):
            package.marker = None
            packages.append(str(package))
    return "pip install " + " ".join(map(shlex.quote, packages or [f"{PROJECT}[{extra}]"]))
