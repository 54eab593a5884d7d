"""The learning rate as a function of settings and position, and what a changed setting does to it."""

from __future__ import annotations

from functools import partial
from typing import Any

from moe.config.times import parse_time
from moe.optim.schedules import SCHEDULERS


def schedule(config: dict[str, Any]) -> partial[float]:
    """Factor of the base learning rate as a function of `done`, in the unit of `max_duration`.

    Args:
        config: as `dataclasses.asdict` gives it, or a manifest keeps it.
    """
    scheduler, total = config["scheduler"], parse_time(config["max_duration"])
    tokens_per_step = config["global_train_batch_size"] * config["max_seq_len"]
    settings: dict[str, Any] = {
        "total": total.value,
        "warmup": parse_time(scheduler["t_warmup"], zero=True).in_unit(total.unit, tokens_per_step),
    }
    if scheduler["name"] != "constant_with_warmup":
        settings["alpha_f"] = scheduler["alpha_f"]
    if scheduler["t_decay"] is not None:
        settings["decay"] = parse_time(scheduler["t_decay"]).in_unit(total.unit, tokens_per_step)
    return partial(SCHEDULERS[scheduler["name"]], **settings)


def rates_at(config: dict[str, Any], step: int) -> dict[str, float]:
    """The peak rates of `config`, each times the schedule's factor in `step` (the first is 1)."""
    total = parse_time(config["max_duration"])
    done = step if total.unit == "ba" else step * config["global_train_batch_size"] * config["max_seq_len"]
    factor = schedule(config)(min(done, total.value))
    lr = config["optimizer"]["lr"]
    own = config["optimizer"]["adamw"]["lr"] if config["optimizer"]["name"] == "muon" else None
    return {"learning rate": lr * factor, "AdamW's learning rate": (lr if own is None else own) * factor}


def rate_change(old: dict[str, Any], new: dict[str, Any], step: int) -> str | None:
    """How the rate moves where a run that has trained `step` steps under `old` continues under `new`: "learning rate
    1.00e-04 -> 7.50e-04 at step N"; None where it does not, or where `old` is too old to tell.
    """
    try:
        before, after = rates_at(old, step + 1), rates_at(new, step + 1)
    except (KeyError, TypeError, ValueError):
        return None
    moved = {name: f"{before[name]:.2e} -> {after[name]:.2e}" for name in before}
    moved = {name: text for name, text in moved.items() if len(set(text.split(" -> "))) > 1}
    if len(set(moved.values())) == 1:  # one rate for all groups
        moved = dict([next(iter(moved.items()))])
    return ", ".join(f"{name} {text}" for name, text in moved.items()) + f" at step {step + 1:,}" if moved else None
