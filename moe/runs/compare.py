"""What differs between runs: their config, the data they read, the versions they ran with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from moe.common.errors import InputError
from moe.config.former import with_present_settings
from moe.data.read.fingerprint import meta_of
from moe.runs.changes import changes
from moe.runs.reading import Run
from moe.runs.text import clean_all

ABSENT = "-"
OF_DATA = ("dataset", "config", "split", "revision", "tokenizer", "tokenizer_fingerprint", "vocab_size", "seq_len")
MORE_OF_DATA = ("seed", "val_fraction", "documents", "tokens", "samples")
Table = dict[str, list[str]]  # name -> its value in each run


def differences(runs: list[Run]) -> dict[str, Table]:
    """Section (config, data, versions, changes in mid-run) -> what differs there."""
    parts: dict[str, Callable[[Run], dict[str, str]]] = {"config": settings, "data": data, "versions": versions}
    parts["changes"] = changed
    return {name: _differing([part(run) for run in runs]) for name, part in parts.items()}


def _differing(sides: list[dict[str, str]]) -> Table:
    keys = {key: None for side in sides for key in side}
    rows = {key: [side.get(key, ABSENT) for side in sides] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def settings(run: Run) -> dict[str, str]:
    """config.yaml, flat: `optimizer.lr` -> "0.004". What an earlier version wrote counts as this one would write it."""
    return _flat(with_present_settings(run.config))


def data(run: Run) -> dict[str, str]:
    """The training data: its fingerprint as of the newest checkpoint, and its meta.json where it is still there."""
    found = {"fingerprint": str(run.manifest["data"]).split(" | ")[0]} if "data" in run.manifest else {}
    for name, meta in metas(run).items():
        prefix = f"{name}." if name else ""
        found |= _flat({key: meta[key] for key in (*OF_DATA, *MORE_OF_DATA) if key in meta}, prefix)
    return found


def metas(run: Run) -> dict[str, dict[str, Any]]:
    """meta.json of each stream of the training data ("" for the only one), as far as that is here and is still what the
    run was trained on.
    """
    spec = run.config.get("train_data")
    spec = spec if isinstance(spec, dict) else {}
    streams = spec.get("streams")
    found = {}
    for name, stream in (streams if isinstance(streams, dict) and streams else {"": spec}).items():
        folder = stream.get("local") if isinstance(stream, dict) else None
        meta = meta_of(folder, str(run.manifest.get("data"))) if isinstance(folder, str) else None
        if meta is not None:
            found[name] = clean_all(asdict(meta))
    return found


def versions(run: Run) -> dict[str, str]:
    """Of the packages, as of the newest checkpoint."""
    return _flat(run.manifest.get("versions") or {})


def changed(run: Run) -> dict[str, str]:
    """Settings that were changed in mid-run: `optimizer.lr` -> "0.004 -> 0.001 after step 10"."""
    found: dict[str, list[str]] = {}
    for one in changes(run):
        found.setdefault(one.key, []).append(f"{one.was} -> {one.now} after step {one.step:,}")
    return {key: ", then ".join(texts) for key, texts in found.items()}


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(node, dict):
        return {}
    found: dict[str, str] = {}
    for key, value in node.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return found


def labels(runs: list[Run]) -> dict[str, Run]:
    """The runs by their names, or by their folders where two have the same name."""
    names = [run.name for run in runs]
    found = {run.name if names.count(run.name) == 1 else run.folder: run for run in runs}
    if len(found) < len(runs):
        raise InputError(f"the same run is given twice: {', '.join(run.folder for run in runs)}; leave one out")
    return found
