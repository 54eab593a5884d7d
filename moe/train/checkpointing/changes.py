"""What changed in mid-run: settings and versions, from what to what, after which step, by which command.

- A start that resumes from a checkpoint is held against that checkpoint. What differs is an event of the run folder
  (`change` in events.jsonl), and each manifest from then on lists all changes on the way to it: a step folder alone
  tells under which setting each of its steps was trained.
- Going back to a step undoes the changes after it: the list comes from the checkpoint that is resumed from.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import sys
from typing import Any, TypedDict

from moe.config.former import with_present_settings
from moe.train.checkpointing.compatibility import OF_ONE_START, differing

PACKAGES = ("torch", "mosaicml", "mosaicml-streaming", "transformers", "numpy")


class Change(TypedDict):
    """step: the last one that was trained before it."""

    step: int
    key: str
    was: Any
    now: Any


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def command() -> str:
    """As it was typed, for a shell; `moe` without the folder it is installed in."""
    program = "moe" if os.path.basename(sys.argv[0]) == "moe" else sys.argv[0]
    return shlex.join([program, *sys.argv[1:]])


def new_changes(
    manifest: dict[str, Any], config: dict[str, Any], versions: dict[str, str], sources: dict[str, str | None]
) -> list[Change]:
    """What a start with `config` changes in the run that the checkpoint of `manifest` is of.

    sources: sha256 of the source of each callback that the config names; one that comes or goes is the config's change.
    """
    settings = differing(with_present_settings(manifest["config"]), with_present_settings(config))
    found = {key: both for key, both in settings.items() if key not in OF_ONE_START}
    if manifest.get("versions"):
        found |= {f"versions.{name}": both for name, both in differing(manifest["versions"], versions).items()}
    was, now = manifest.get("callbacks") or {}, sources
    found |= {
        f"callbacks.{key}": (was[key], now[key]) for key in sorted(was.keys() & now.keys()) if was[key] != now[key]
    }
    return [Change(step=manifest["step"], key=key, was=was, now=now) for key, (was, now) in found.items()]


def earlier_changes(manifest: dict[str, Any]) -> list[Change]:
    """Those on the way to a checkpoint, oldest first; none where it is of a version that did not note them."""
    return list(manifest.get("changes") or [])
