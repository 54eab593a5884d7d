"""argparse, which writes by itself: through the console, as all else, for words of the command line are shown in it."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from moe.common.units import note, tell


class Parser(argparse.ArgumentParser):
    """Help goes to stdout, errors to stderr, and no control character of either to a terminal."""

    def add_argument(self, *names: str, **settings: Any) -> Any:
        if settings.get("nargs") == "*":  # without a default of its own argparse calls it required
            settings.setdefault("default", [])
        return super().add_argument(*names, **settings)

    def _print_message(self, message: str | None, file: Any = None) -> None:
        if message:
            (tell if file is sys.stdout else note)(message, end="")
