"""What must hold between settings. Each fault: path (value), what is wrong; the mend."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from moe.config.times import Time, parse_time

if TYPE_CHECKING:
    from moe.config.schema import Config

TIMES = ("max_duration", "save_interval", "eval_interval", "log_interval", "keep_every", "scheduler.t_decay")


def find_faults(config: Config) -> list[str]:
    """Every fault between the settings of `config`, none where all is well."""
    faults: list[str] = []
    times = _parse_times(config, faults)
    _check_model(config, faults)
    _check_ranges(config, faults)
    _check_schedule(config, times, faults)
    _check_run(config, faults)
    return faults


def check_ranks(config: Config, world_size: int) -> list[str]:
    """Faults that depend on the number of ranks."""
    if config.global_train_batch_size % world_size:
        lower = config.global_train_batch_size // world_size * world_size or world_size
        return [
            f"global_train_batch_size ({config.global_train_batch_size}) is not divisible by {world_size} ranks; "
            f"use {lower}"
        ]
    return []


def _get(config: object, path: str):
    for key in path.split("."):
        config = getattr(config, key)
    return config


def _parse_times(config: Config, faults: list[str]) -> dict[str, Time]:
    times = {}
    for path in TIMES:
        text = _get(config, path)
        if text is None:
            continue
        try:
            times[path] = parse_time(text)
        except ValueError as error:
            faults.append(f"{path} ({text}) {error}")
    try:
        warmup = parse_time(config.scheduler.t_warmup, zero=True)
        if warmup.value:
            times["scheduler.t_warmup"] = warmup
    except ValueError as error:
        faults.append(f"scheduler.t_warmup ({config.scheduler.t_warmup}) {error}")
    return times


def _check_model(config: Config, faults: list[str]) -> None:
    model = config.model
    for name in ("d_model", "n_layers", "n_heads", "n_kv_heads", "n_experts", "top_k", "expert_hidden"):
        if getattr(model, name) < 1:
            faults.append(f"model.{name} ({getattr(model, name)}) must be at least 1")
            return
    if model.top_k > model.n_experts:
        faults.append(f"model.top_k ({model.top_k}) exceeds model.n_experts ({model.n_experts}); lower top_k")
    if model.n_heads % model.n_kv_heads:
        faults.append(
            f"model.n_heads ({model.n_heads}) is not divisible by model.n_kv_heads ({model.n_kv_heads}); "
            "use a divisor of n_heads"
        )
    if model.head_dim is None and model.d_model % model.n_heads:
        faults.append(
            f"model.d_model ({model.d_model}) is not divisible by model.n_heads ({model.n_heads}); "
            "change one, or set model.head_dim"
        )
    head_dim = model.d_model // model.n_heads if model.head_dim is None else model.head_dim
    if head_dim < 2 or head_dim % 2:
        faults.append(f"model.head_dim ({head_dim}) must be an even number from 2 for rotary embeddings")


def _check_ranges(config: Config, faults: list[str]) -> None:
    for path, low, high in (
        ("model.dropout", 0, 0.999),
        ("model.balance_loss", 0, None),
        ("model.router_z_loss", 0, None),
        ("model.z_loss", 0, None),
        ("optimizer.weight_decay", 0, None),
        ("optimizer.momentum", 0, 0.9999),
        ("scheduler.alpha_f", 0, 1),
        ("num_workers", 0, None),
        ("global_train_batch_size", 1, None),
        ("max_seq_len", 2, None),
        ("save_num_checkpoints_to_keep", -1, None),
        ("max_skipped_steps", 1, None),
        ("seed", 0, 2**31 - 1),
    ):
        value = _get(config, path)
        if not low <= value <= (math.inf if high is None else high) or value == math.inf:
            faults.append(
                f"{path} ({value}) must be {'at least ' + str(low) if high is None else f'between {low} and {high}'}"
            )
    for path in (
        "optimizer.lr",
        "optimizer.adamw.lr",
        "optimizer.adamw.eps",
        "gradient_clip_norm",
        "model.rope_theta",
        "model.norm_eps",
    ):
        value = _get(config, path)
        if value is not None and not 0 < value < math.inf:
            faults.append(f"{path} ({value}) must be above 0")
    if not all(0 <= beta < 1 for beta in config.optimizer.adamw.betas):
        faults.append(f"optimizer.adamw.betas ({list(config.optimizer.adamw.betas)}) must lie in [0, 1)")
    if config.save_num_checkpoints_to_keep == 0:
        faults.append("save_num_checkpoints_to_keep (0) keeps nothing to resume from; use at least 1, or -1 for all")
    microbatch = config.device_train_microbatch_size
    if microbatch != "auto" and not (isinstance(microbatch, int) and microbatch >= 1):
        faults.append(f"device_train_microbatch_size ({microbatch}) must be a whole number of sequences or auto")
    if config.eval_data and config.eval_data.max_batches != -1 and config.eval_data.max_batches < 1:
        faults.append(
            f"eval_data.max_batches ({config.eval_data.max_batches}) must be at least 1, or -1 for the whole split"
        )


def _check_schedule(config: Config, times: dict[str, Time], faults: list[str]) -> None:
    duration = times.get("max_duration")
    parts = {path: times[path] for path in ("scheduler.t_warmup", "scheduler.t_decay") if path in times}
    if duration is None:
        return
    for path, part in parts.items():
        if part.unit != duration.unit:
            faults.append(
                f"{path} ({part}) is not in the unit of max_duration ({duration}); write both in {duration.unit}"
            )
        elif part.value >= duration.value:
            faults.append(f"{path} ({part}) is not shorter than max_duration ({duration}); shorten it")
    if (
        len(parts) == 2
        and all(p.unit == duration.unit for p in parts.values())
        and sum(p.value for p in parts.values()) > duration.value
    ):
        faults.append(
            f"scheduler.t_warmup and scheduler.t_decay together exceed max_duration ({duration}); shorten one"
        )
    if (config.scheduler.name == "wsd") != (config.scheduler.t_decay is not None):
        mend = (
            "set it, e.g. to a fifth of max_duration"
            if config.scheduler.name == "wsd"
            else "remove it, or use scheduler.name: wsd"
        )
        faults.append(
            f"scheduler.t_decay ({config.scheduler.t_decay}) goes with scheduler.name wsd "
            f"(is {config.scheduler.name}); {mend}"
        )


def _check_run(config: Config, faults: list[str]) -> None:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", config.run_name) is None:
        faults.append(
            f"run_name ({config.run_name}) must be letters, digits, '.', '_' and '-' "
            "(quote it in yaml if it looks like a number)"
        )
    if not config.save_folder.strip():
        mend = "set save_folder" if config.autoresume else "a run needs a folder for its checkpoints"
        faults.append(f"save_folder is empty{' with autoresume: true' if config.autoresume else ''}; {mend}")
    if "://" in config.save_folder:
        faults.append(f"save_folder ({config.save_folder}) must be a folder on this machine or a mounted disk")
    if config.resume_from is not None and re.fullmatch(r"step:\d+", config.resume_from) is None:
        faults.append(f"resume_from ({config.resume_from}) must name a step, as step:5000")
    if config.resume_from is not None and config.load_path is not None:
        faults.append("resume_from goes back in this run, load_path starts from another; set only one")
