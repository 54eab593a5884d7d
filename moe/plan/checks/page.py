"""Runs the checklist and shows it, for `moe check` and for `train.py ... check=true`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout

from moe.common.environment import is_silent, number, settle
from moe.common.errors import InputError
from moe.common.units import complain, show, tell
from moe.config import Config
from moe.plan.checks.redact import redacted
from moe.plan.checks.result import Result

INDENT = 21
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}


def show_checks(load: Callable[[], Config], source: str, *, fast: bool = False, as_json: bool = False) -> int:
    """0 when the run can start, 2 when something must be fixed first. Under a launcher rank 0 checks, as if alone.

    load: gives the config that was read from `source`, or raises InputError.
    """
    from moe.plan.checks.checklist import run_checks

    # Python's tracker of shared memory tells at the end of what Streaming has cleared itself
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    try:
        settle()
    except InputError as error:
        complain(str(error))
        return 2
    world_size = number("WORLD_SIZE", 0)
    if is_silent():
        return 0
    os.environ.update({key: value for key, value in ALONE.items() if key in os.environ})

    def say(line: str) -> None:
        tell(line, to=sys.stderr if as_json else out)

    out, results = sys.stdout, []
    with redirect_stdout(sys.stderr):  # what libraries print is no part of the list
        try:
            config = load()
            found: Iterable[Result] = [Result("config", "pass", source)]
        except InputError as error:
            found = [Result("config", "fail", str(error))]
            config = None
        for result in found:
            results.append(result)
            say(line_of(result))
        checks = (
            run_checks(config, world_size=world_size, fast=fast, report=lambda t: say(f"      {t}")) if config else ()
        )
        for result in checks:
            results.append(result)
            say(line_of(result))
    states = [result.state for result in results]
    say(f"{states.count('pass')} pass, {states.count('warn')} warn, {states.count('fail')} fail")
    if as_json:
        rows = [{**result._asdict(), "text": redacted(result.text)} for result in results]
        show(json.dumps({"ok": "fail" not in states, "results": rows}, indent=1))
    return 2 if "fail" in states else 0


def line_of(result: Result) -> str:
    """One line; further lines of a text are indented."""
    return f"{result.state}  {result.name:<{INDENT - 6}}" + result.text.replace("\n", "\n" + " " * INDENT)
