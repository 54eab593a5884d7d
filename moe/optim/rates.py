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


def main_rate(optimizer: dict[str, Any]) -> Any:
    """The peak rate of the matrices: under AdamW alone `adamw.lr` where that is set, as `lr` trains nothing then.

    optimizer: the section, as `dataclasses.asdict` gives it, or a manifest keeps it.
    """
    return optimizer["lr"] if main_rate_key(optimizer) == "optimizer.lr" else optimizer["adamw"]["lr"]


def main_rate_key(optimizer: dict[str, Any]) -> str:
    """The key that sets it, by its full name. optimizer: as in `main_rate`."""
    own = optimizer.get("name") == "adamw" and optimizer["adamw"]["lr"] is not None
    return "optimizer.adamw.lr" if own else "optimizer.lr"


def adamw_rate(optimizer: dict[str, Any]) -> Any:
    """The peak rate of AdamW's groups. optimizer: as in `main_rate`."""
    return optimizer["lr"] if optimizer["adamw"]["lr"] is None else optimizer["adamw"]["lr"]


def rates_at(config: dict[str, Any], step: int) -> dict[str, float]:
    """The peak rates of `config`, each times the schedule's factor in `step` (the first is 1)."""
    total = parse_time(config["max_duration"])
    done = step if total.unit == "ba" else step * config["global_train_batch_size"] * config["max_seq_len"]
    factor = schedule(config)(min(done, total.value))
    optimizer = config["optimizer"]
    own = adamw_rate(optimizer)
    rates = {
        "learning rate": main_rate(optimizer),
        "AdamW's learning rate": own,
        "the embedding's learning rate": optimizer["adamw"].get("embedding_lr") or own,
    }
    return {name: rate * factor for name, rate in rates.items()}


def rate_change(old: dict[str, Any], new: dict[str, Any], step: int) -> str | None:
    """How the rate moves where a run that has trained `step` steps under `old` continues under `new`: "learning rate
    1.00e-04 -> 7.50e-04 at step N"; None where it does not, or where `old` is too old to tell.
    """
    try:
        before, after = rates_at(old, step + 1), rates_at(new, step + 1)
    except (KeyError, TypeError, ValueError):
        return None
    moved: dict[str, str] = {}  # groups that move alike are named once, by the first
    for name in before:
        was, now = f"{before[name]:.2e}", f"{after[name]:.2e}"
        if was != now:
            moved.setdefault(f"{was} -> {now}", name)
    return ", ".join(f"{name} {text}" for text, name in moved.items()) + f" at step {step + 1:,}" if moved else None
