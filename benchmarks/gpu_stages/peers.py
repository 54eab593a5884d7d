"""Our step beside transformers', in turn, in processes of their own (benchmarks/step_worker.py); Liger where carried.

There is one document a sample, so that both compute the same. A ratio is of the same round. Labels are the versions
that are here. Both sides take fused AdamW and bf16.
"""

from __future__ import annotations

import importlib.util
import statistics

from step import Competitor

from gpu_stages.models import shape_of
from gpu_stages.run import Run

GOAL = 1.4


def peers(run: Run) -> None:
    rounds, turn = (3, 4.0) if not run.dry else (1, 0.01)
    for name in ("500m", "fine") if not run.dry else ("500m",):
        shape, seq_len = shape_of(run, name)
        spec = {"shape": shape, "batch": 8 if not run.dry else 2, "seq_len": seq_len, "threads": 0}
        others: dict[str, dict] = {"eager": {}, "compiled": {"compile": True}}
        if run.dry:
            others = {"eager": {}}
        if importlib.util.find_spec("liger_kernel") is not None and not run.dry:
            others["Liger"] = {"liger": True}
        for how, more in others.items():
            if run.left() < 40 and not run.dry:
                run.figure(f"{name}, {how}: left out", f"only {run.left():.0f} s were left")
                continue
            _compare(run, name, how, spec, more, rounds, turn)


def _compare(run: Run, name: str, how: str, spec: dict, more: dict, rounds: int, turn: float) -> None:
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
        run.figure(f"{name}, {how}: could not be compared", str(error))
        return
    finally:
        peaks = {who: competitor.stop() for who, competitor in running.items()}
    tokens = spec["batch"] * spec["seq_len"]
    ratios = [theirs / ours for theirs, ours in zip(times["theirs"], times["ours"], strict=True)]
    label = f"{name} against {note}, {how}"
    goal = statistics.median(ratios) >= GOAL if name == "500m" and "transformers 5" in note else None
    run.figure(f"{label}: times as fast", statistics.median(ratios), f"({min(ratios):.2f} to {max(ratios):.2f})",
               expected=GOAL, source="goal at 500m", goal=goal, top=True)  # fmt: skip
    for who, seconds in times.items():
        run.figure(f"{label}: {who}", tokens / statistics.median(seconds), "tokens/s")
    for who, peak in peaks.items():
        if peak is not None:
            run.figure(f"{label}: {who}, peak memory", peak / 1e9, "GB")
