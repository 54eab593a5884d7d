"""Each number's own bounds. The upper ones lie far beyond any run: what exceeds them is a slip, as lr=6e4 for 6e-4.

A number that is not finite lies in no bounds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moe.config.schema import Config

DIMENSIONS = {  # of the model, each at least 1: the most
    "d_model": 1_000_000,
    "n_layers": 10_000,
    "n_heads": 1_000_000,
    "n_kv_heads": 1_000_000,
    "n_experts": 1_000_000,
    "top_k": 1_000_000,
    "expert_hidden": 1_000_000,
}
CLOSED: dict[str, tuple[float, float]] = {  # at least, at most
    "model.n_shared_experts": (0, 1000),
    "model.first_k_dense_replace": (0, 10_000),
    "model.dense_hidden": (1, 1_000_000),
    "model.dropout": (0, 0.999),
    "model.balance_loss": (0, 1000),
    "model.router_z_loss": (0, 1000),
    "model.z_loss": (0, 1000),
    "parallelism.replicas": (1, 1_000_000),
    "optimizer.weight_decay": (0, 10),
    "optimizer.momentum": (0, 0.9999),
    "scheduler.alpha_f": (0, 1),
    "num_workers": (0, 256),
    "global_train_batch_size": (1, 10_000_000),
    "max_seq_len": (2, 100_000_000),
    "save_num_checkpoints_to_keep": (-1, 10**9),
    "max_skipped_steps": (1, 10**9),
    "max_failed_saves": (1, 10**9),
    "seed": (0, 2**31 - 1),
}
ABOVE_ZERO: dict[str, float] = {  # at most
    "optimizer.lr": 10,
    "optimizer.adamw.lr": 10,
    "optimizer.adamw.embedding_lr": 10,
    "optimizer.adamw.eps": 1,
    "gradient_clip_norm": 1e12,
    "model.rope_theta": 1e12,
    "model.routed_scaling_factor": 1000,
    "model.balance_rate": 1,
    "model.norm_eps": 1,
    "model.partial_rotary_factor": 1,
}


def brief(value: Any) -> str:
    """A value for a message: what is longer than a line is cut."""
    text = str(value)
    return text if len(text) <= 60 else f"{text[:20]}... ({len(text):,} characters)"


def check_dimensions(config: Config, errors: list[str]) -> bool:
    """Whether every dimension of the model is within its bounds."""
    before = len(errors)
    for name, most in DIMENSIONS.items():
        value = getattr(config.model, name)
        if value < 1:
            errors.append(f"model.{name} ({brief(value)}) must be at least 1")
        elif value > most:
            errors.append(f"model.{name} ({brief(value)}) must be at most {most:,}")
    return len(errors) == before


def check_ranges(config: Config, errors: list[str]) -> None:
    for path, (low, high) in CLOSED.items():
        value = get(config, path)
        if value not in (None, "auto") and not low <= value <= high:
            errors.append(f"{path} ({brief(value)}) must be at least {low} and at most {high:,}")
    for path, high in ABOVE_ZERO.items():
        value = get(config, path)
        if value not in (None, "auto") and not 0 < value <= high:
            errors.append(f"{path} ({brief(value)}) must be above 0 and at most {high:,.0f}")
    if not all(0 <= beta < 1 for beta in config.optimizer.adamw.betas):
        errors.append(f"optimizer.adamw.betas ({list(config.optimizer.adamw.betas)}) must lie in [0, 1)")
    most = int(CLOSED["global_train_batch_size"][1])
    microbatch = config.device_train_microbatch_size
    if microbatch != "auto" and not (isinstance(microbatch, int) and 1 <= microbatch <= most):
        errors.append(
            f"device_train_microbatch_size ({brief(microbatch)}) must be an integer number of sequences "
            f"(at most {most:,}) or auto"
        )
    batches = config.eval_data.max_batches if config.eval_data else -1
    if batches != -1 and not 1 <= batches <= 10**9:
        errors.append(
            f"eval_data.max_batches ({brief(batches)}) must be at least 1 and at most {10**9:,}, "
            "or -1 for all of the split"
        )


def get(config: object, path: str) -> Any:
    """`get(config, "optimizer.lr")` -> config.optimizer.lr."""
    for key in path.split("."):
        config = getattr(config, key)
    return config
