"""Settings that say `auto`: the numbers of moe/optim/rule.py, or those that the run has already.

- A run that resumes keeps its numbers: a rate that moved because `max_duration` did would be a jump that nobody asked
  for. What the rule would give now is reported beside it, to be set by hand.
- What was set by hand stays, and what follows from it follows: the decay and AdamW's rates are those of
  the rate in force.
- Rounded to three digits: the number that is reported is the one that trains, and can be typed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from moe.common.errors import InputError
from moe.common.units import short
from moe.config import Config
from moe.config.auto import AUTO
from moe.config.checks import find_errors
from moe.config.schedule import is_unscaled
from moe.config.steps import Steps
from moe.optim import rule
from moe.optim.rates import main_rate


@dataclass(frozen=True)
class Choice:
    """What `auto` stands for at one key. by_rule: what the rule gives for the settings of now."""

    key: str
    value: float | str | None
    by_rule: float | str | None
    kept: bool

    def __str__(self) -> str:
        text = f"{self.key} {_shown(self.value)}"
        if self.kept and self.value != self.by_rule and None not in (self.value, self.by_rule):
            return f"{text} (kept; the rule gives {_shown(self.by_rule)} now, set it to take it)"
        return f"{text} (kept)" if self.kept else text


def resolve(config: Config, kept: dict[str, Any] | None = None) -> tuple[Config, list[Choice]]:
    """The config with numbers in the place of `auto`, and what they are.

    kept: the config, as a manifest has it, of the checkpoint that is resumed from.
    Raises InputError where the numbers do not fit the other settings.
    """
    if kept is not None and "optimizer" not in kept:
        kept = None  # of an import, which holds weights alone
    optimizer, chosen = config.optimizer, []
    d_model, tied = config.model.d_model, config.model.tie_embeddings
    run = Steps.of(config)
    tokens_per_step, tokens = run.tokens_per_step, run.tokens
    steps = tokens / tokens_per_step

    def choose(
        key: str,
        setting: Any,
        by_rule: Callable[[], float | str | None],
        moved: Callable[[dict[str, Any]], bool] = lambda kept: False,
    ) -> Any:
        """moved: whether the rate that the number follows is not the kept one; then the number is not kept either."""
        if setting != AUTO:
            return setting
        found = by_rule()
        keeps = kept is not None and not moved(kept)
        choice = Choice(key, _get(kept, key) if keeps and kept is not None else found, found, keeps)
        chosen.append(choice)
        return choice.value

    def rate_by_rule() -> float:
        return rounded(
            rule.learning_rate(d_model=d_model, tokens=tokens, batch=tokens_per_step, optimizer=optimizer.name)
        )

    lr: Any = choose("optimizer.lr", optimizer.lr, rate_by_rule)
    unscaled = is_unscaled(optimizer)  # then lr is none for AdamW, whose rate does not follow it
    own = choose(
        "optimizer.adamw.lr",
        optimizer.adamw.lr,
        rate_by_rule if unscaled else lambda: lr,
        lambda kept: not unscaled and lr != _get(kept, "optimizer.lr"),
    )
    main = main_rate({"name": optimizer.name, "lr": lr, "adamw": {"lr": own}})

    def main_moved(kept: dict[str, Any]) -> bool:
        return main != main_rate(kept["optimizer"])

    decay = choose(
        "optimizer.weight_decay",
        optimizer.weight_decay,
        lambda: rounded(rule.weight_decay(main, steps=steps)),
        main_moved,
    )
    embedding = choose(
        "optimizer.adamw.embedding_lr",
        optimizer.adamw.embedding_lr,
        lambda: None if tied else rounded(rule.embedding_rate(main, d_model=d_model, tied=tied)),
        main_moved,
    )
    warmup = choose(
        "scheduler.t_warmup",
        config.scheduler.t_warmup,
        lambda: f"{round(rule.warmup_steps(steps, optimizer=optimizer.name))}ba",
    )
    if not chosen:
        return config, []
    adamw = replace(optimizer.adamw, lr=own, embedding_lr=embedding)
    resolved = replace(
        config,
        optimizer=replace(optimizer, lr=lr, weight_decay=decay, adamw=adamw),
        scheduler=replace(config.scheduler, t_warmup=warmup),
    )
    if errors := find_errors(resolved):
        numbers = ", ".join(map(str, chosen))
        raise InputError(f"auto ({numbers}) does not fit the other settings:\n" + "\n".join(f"  {e}" for e in errors))
    return resolved, chosen


def describe(chosen: list[Choice], steps: Steps, *, d_model: int, flops: float) -> list[str]:
    """Lines for people: the numbers, what they were computed from, and what of that lies beyond what was measured.

    flops: of the run, for the published fit beside the rule's rate.
    """
    if not chosen:
        return []
    tokens, tokens_per_step = steps.tokens, steps.tokens_per_step
    lines = [
        "auto: " + ", ".join(map(str, chosen)),
        f"by the rule for d_model {d_model}, {short(tokens)} tokens, {short(tokens_per_step)} a step "
        "(docs/learning.md)",
    ]
    if beyond := rule.outside(d_model=d_model, tokens=tokens, batch=tokens_per_step):
        lines.append(f"outside of what was measured here: {', '.join(beyond)}")
    if any(choice.key == "optimizer.lr" for choice in chosen):
        lines.append(
            f"for comparison, Moonlight's fit to {flops:.3g} FLOPs (dense models of 0.4B to 1.5B): "
            f"{rule.moonlight_rate(flops):.3g}"
        )
    return lines


def rounded(value: float) -> float:
    """To the three digits that are reported."""
    return float(f"{value:.3g}")


def _shown(value: float | str | None) -> str:
    return f"{value:g}" if isinstance(value, float) else "null" if value is None else value


def _get(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part)
    return value
