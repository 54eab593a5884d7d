"""Our step beside transformers', in turn, in processes of their own (benchmarks/step_worker.py); Liger where carried.

There is one document a sample, so that both compute the same. A ratio is of the same round. Labels are the versions
that are here. Both sides take fused AdamW. Ours trains fp32 weights under bf16 autocast. Theirs has bf16 weights, which
is the faster way: their grouped experts compute in the dtype of the weights. Once, last, they run under autocast, as
their Trainer's `bf16: true` has them. The goal is against the fastest of them.
"""

from __future__ import annotations

import importlib.util
import statistics
from typing import Any

from step import Competitor

from gpu_stages.models import shape_of
from gpu_stages.run import Run

GOAL = 1.4
NEEDED = 90  # seconds of a comparison: two starts, two compilations, the turns
OTHERS: dict[str, dict[str, Any]] = {  # in the order of what the goal asks for: time may end
    "Liger": {"liger": True, "bf16": True},
    "compiled": {"compile": True, "bf16": True},
    "eager": {"bf16": True},
    "eager, autocast": {},
}


def peers(run: Run) -> None:
    rounds, turn = (3, 4.0) if not run.dry else (1, 0.01)
    others = OTHERS
    if run.dry:
        others = {"eager": OTHERS["eager"]}
    elif importlib.util.find_spec("liger_kernel") is None:
        others = {how: more for how, more in OTHERS.items() if how != "Liger"}
        run.figure("Liger: left out", "liger_kernel is not installed")
    compared = 0
    for name in ("500m", "fine") if not run.dry else ("500m",):
        shape, seq_len = shape_of(run, name)
        spec = {"shape": shape, "batch": 8 if not run.dry else 2, "seq_len": seq_len, "threads": 0}
        ratios: dict[str, float] = {}
        for how, more in others.items():
            if run.left() < NEEDED and not run.dry:
                run.figure(f"{name}, {how}: left out", f"only {run.left():.0f} s were left")
                continue
            if found := _compare(run, name, how, spec, more, rounds, turn):
                label, ratios[label] = found
        compared += len(ratios)
        theirs = {label: ratio for label, ratio in ratios.items() if "transformers 5" in label}
        if name == "500m" and theirs:
            fastest = min(theirs, key=lambda label: theirs[label])
            run.figure(f"500m against the fastest of transformers 5 ({fastest}): times as fast", theirs[fastest],
                       expected=GOAL, source="goal", goal=theirs[fastest] >= GOAL, top=True)  # fmt: skip
    if not compared:
        raise RuntimeError("nothing could be compared")


def _compare(
    run: Run, name: str, how: str, spec: dict, more: dict, rounds: int, turn: float
) -> tuple[str, float] | None:
    """What they are, and how many times as fast ours is; None where it could not be compared."""
    running: dict[str, Competitor] = {}
    try:
        running["ours"] = Competitor({**spec, "kind": "ours", "optimizer": "adamw", "compile": not run.dry})
        running["theirs"] = Competitor({**spec, "kind": "peer", **more})
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(rounds):
            for who, competitor in running.items():
                times[who].append(competitor.seconds(turn))
        note = running["theirs"].note
    except SystemExit as error:  # a competitor that ended: out of memory, or does not compile
        run.figure(f"{name}, {how}: compared", str(error), expected="yes", check=False)
        return None
    finally:
        peaks = {who: competitor.stop() for who, competitor in running.items()}
    tokens = spec["batch"] * spec["seq_len"]
    ratios = [theirs / ours for theirs, ours in zip(times["theirs"], times["ours"], strict=True)]
    ratio = statistics.median(ratios)
    label = f"{note}, {how}"
    row = f"{name} against {label}"
    run.figure(f"{row}: times as fast", ratio, f"({min(ratios):.2f} to {max(ratios):.2f})", top=True)
    for who, seconds in times.items():
        run.figure(f"{row}: {who}", tokens / statistics.median(seconds), "tokens/s")
    for who, peak in peaks.items():
        if peak is not None:
            run.figure(f"{row}: {who}, peak memory", peak / 1e9, "GB")
    return label, ratio
