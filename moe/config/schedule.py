"""Rates, and how they run over the length of the run: settings that go together or do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe.config.times import Time

if TYPE_CHECKING:
    from moe.config.schema import Config, OptimizerConfig


def is_unscaled(optimizer: OptimizerConfig) -> bool:
    """Whether Muon's updates are of another scale than AdamW's, so that one rate does not serve both."""
    return optimizer.name == "muon" and optimizer.adjust_lr_fn == "original"


def check_rates(config: Config, errors: list[str]) -> None:
    optimizer = config.optimizer
    if is_unscaled(optimizer):
        adamw = optimizer.adamw
        rates = {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay, "adamw.embedding_lr": adamw.embedding_lr}
        for key, value in rates.items():
            if value == "auto":
                fix = "set a number, about 0.02" if key == "lr" else "set a number"
                errors.append(
                    f"optimizer.{key} (auto) is a rule for optimizer.adjust_lr_fn match_rms_adamw "
                    f"(is {optimizer.adjust_lr_fn}); {fix}"
                )
    if optimizer.adamw.embedding_lr not in (None, "auto") and config.model.tie_embeddings:
        errors.append(
            f"optimizer.adamw.embedding_lr ({optimizer.adamw.embedding_lr:g}) needs model.tie_embeddings false: "
            "here the embedding is the head too, and has optimizer.adamw.lr; remove it"
        )


def check_schedule(config: Config, times: dict[str, Time], errors: list[str]) -> None:
    duration = times.get("max_duration")
    parts = {path: times[path] for path in ("scheduler.t_warmup", "scheduler.t_decay") if path in times}
    if duration is None:
        return
    tokens_per_step = max(1, config.global_train_batch_size * config.max_seq_len)
    lengths = {path: part.in_unit(duration.unit, tokens_per_step) for path, part in parts.items()}
    for path, length in lengths.items():
        if length >= duration.value:
            errors.append(f"{path} ({parts[path]}) is not shorter than max_duration ({duration}); shorten it")
    if len(parts) == 2 and sum(lengths.values()) > duration.value:
        errors.append(
            f"scheduler.t_warmup and scheduler.t_decay together exceed max_duration ({duration}); shorten one"
        )
    if (config.scheduler.name == "wsd") != (config.scheduler.t_decay is not None):
        fix = (
            "set it, e.g. to a fifth of max_duration"
            if config.scheduler.name == "wsd"
            else "remove it, or use scheduler.name: wsd"
        )
        errors.append(
            f"scheduler.t_decay ({config.scheduler.t_decay}) needs scheduler.name wsd "
            f"(is {config.scheduler.name}); {fix}"
        )
