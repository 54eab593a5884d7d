"""Our step beside transformers', in turn, in processes of their own (benchmarks/step_worker.py); Liger where carried.

- There is one document a sample, so that both compute the same. A ratio is of the same round, by token.
- Both take the microbatch of a real run; what does not fit on their side is taken half as large, and reported.
- Both sides take fused AdamW. Ours trains fp32 weights under bf16 autocast. Theirs has bf16 weights, which is the
  faster way: their grouped experts compute in the dtype of the weights. Once they run under autocast, as their
  Trainer's `bf16: true` has them. The goal is against the fastest of them.
- Ours is started once for all that it meets in a shape. What may never end, their compiled model, comes last and is
  ended when its share of the time is over.
"""

from __future__ import annotations

import importlib.util
import statistics
from typing import Any

from competitor import Competitor, TooSlow

from gpu_stages.models import shape_of
from gpu_stages.run import Run

GOAL = 1.4
BATCH = 32  # `auto` finds it at 500m; with 8 both wait for the host
NEEDED = 60  # seconds of a comparison: a start, a compilation, the turns
TURNS = 20  # of them, what comes after the compilation
OTHERS: dict[str, dict[str, Any]] = {
    "Liger": {"liger": True, "bf16": True},
    "eager": {"bf16": True},
    "eager, autocast": {},
    "compiled": {"compile": True, "bf16": True},
}
ORDER: tuple[tuple[str, tuple[str, ...]], ...] = (  # of what the goal asks for: time may end
    ("500m", ("Liger", "eager")),
    ("fine", ("Liger", "eager")),
    ("500m", ("eager, autocast", "compiled")),
)


def peers(run: Run) -> None:
    order = ORDER if not run.dry else (("500m", ("eager",)),)
    if not run.dry and importlib.util.find_spec("liger_kernel") is None:
        order = tuple((name, tuple(how for how in hows if how != "Liger")) for name, hows in order)
        run.figure("Liger: left out", "liger_kernel is not installed")
    found: dict[str, dict[str, tuple[str, float]]] = {}
    for name, hows in order:
        found.setdefault(name, {}).update(_shape(run, name, hows))
    if not any(found.values()):
        raise RuntimeError("nothing could be compared")
    theirs = {how: ratio for how, (note, ratio) in found["500m"].items() if "transformers 5" in note}
    if theirs:
        fastest = min(theirs, key=lambda how: theirs[how])
        run.figure(f"500m against the fastest of transformers 5 ({fastest}): times as fast", theirs[fastest],
                   expected=GOAL, source="goal", goal=theirs[fastest] >= GOAL, top=True)  # fmt: skip


def _shape(run: Run, name: str, hows: tuple[str, ...]) -> dict[str, tuple[str, float]]:
    """What it was compared with, and how many times as fast ours is; by how that ran."""
    shape, seq_len = shape_of(run, name)
    spec = {"shape": shape, "batch": BATCH if not run.dry else 2, "seq_len": seq_len, "threads": 0}
    found: dict[str, tuple[str, float]] = {}
    ours = None
    try:
        for how in hows:
            if run.left() < NEEDED * (1 if ours else 2) and not run.dry:  # ours starts and compiles as well
                run.figure(f"{name}, {how}: left out", f"only {run.left():.0f} s were left")
                continue
            try:
                ours = ours or Competitor(
                    {**spec, "kind": "ours", "optimizer": "adamw", "compile": not run.dry}, limit=_share(run)
                )
                found[how] = _compare(run, name, how, spec, ours)
            except TooSlow as error:
                run.figure(f"{name}, {how}: compared", f"no: {error}")
            except SystemExit as error:  # a competitor that ended: out of memory, or does not compile
                run.figure(f"{name}, {how}: compared", str(error), expected="yes", check=False)
            if ours and not ours.alive():
                ours = None
    finally:
        peak = ours.stop() if ours else None
    if peak is not None:
        run.figure(f"{name}: ours, peak memory, microbatch {spec['batch']}", peak / 1e9, "GB")
    return found


def _share(run: Run) -> float:
    """Seconds for an answer, so that there is time for what comes after it."""
    return max(10.0, run.left() - TURNS)


def _compare(run: Run, name: str, how: str, spec: dict[str, Any], ours: Competitor) -> tuple[str, float]:
    rounds, turn = (3, 2.0) if not run.dry else (1, 0.01)
    theirs, batch = _peer(run, name, how, spec)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    try:
        for _ in range(rounds):
            times["ours"].append(ours.seconds(turn) / spec["batch"])
            times["theirs"].append(theirs.seconds(turn) / batch)
    finally:
        peak = theirs.stop()
    ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
    ratio = statistics.median(ratios)
    row = f"{name}, {how}"
    run.figure(f"{row}: what it is", theirs.note)
    run.figure(f"{row}: times as fast", ratio, f"({min(ratios):.2f} to {max(ratios):.2f})", top=True)
    for who, size in (("ours", spec["batch"]), ("theirs", batch)):
        rate = spec["seq_len"] / statistics.median(times[who])
        run.figure(f"{row}: {who}, microbatch {size}", rate, "tokens/s")
    if peak is not None:
        run.figure(f"{row}: theirs, peak memory", peak / 1e9, "GB")
    return theirs.note, ratio


def _peer(run: Run, name: str, how: str, spec: dict[str, Any]) -> tuple[Competitor, int]:
    """Theirs, and its microbatch: half of ours where that does not fit beside it."""
    peer = {**spec, **OTHERS[how], "kind": "peer"}
    try:
        return Competitor(peer, limit=_share(run)), spec["batch"]
    except TooSlow:
        raise
    except SystemExit as error:
        if "out of memory" not in str(error):
            raise
    half = spec["batch"] // 2
    run.figure(f"{name}, {how}: microbatch", half, expected=spec["batch"], source="does not fit beside ours")
    return Competitor({**peer, "batch": half}, limit=_share(run)), half
