"""What a run may change between two of its parts, and what it may not.

Decisions: what decides the result or the shape of the state (model, tokenizer, data, batch, seed) is refused with both
values; all else is applied and reported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from moe.common.errors import InputError
from moe.config.former import with_present_settings
from moe.train.checkpointing.checkpoints import TOKENIZER, Checkpoint
from moe.train.checkpointing.trained_tokenizer import trained_fingerprint

OF_ONE_START = ("check", "resume_from", "start_timeout", "stop_grace", "time_limit")  # no change of the run
FREE_IN_MODEL = ("dropout", "balance_loss", "balance_rate", "router_z_loss", "z_loss")
FIXED = (
    "global_train_batch_size",
    "max_seq_len",
    "optimizer.momentum_dtype",
    "optimizer.name",
    "seed",
    "train_data.num_canonical_nodes",
    "train_data.shuffle",
    "train_data.split",
)
OWN_GROUP = ("optimizer.adamw.embedding_lr",)  # set or null decides whether the optimizer has one group more
SHAPE = (
    "d_model",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "n_experts",
    "expert_hidden",
    "qk_norm",
    "tie_embeddings",
    "n_shared_experts",
    "first_k_dense_replace",
    "dense_hidden",
    "partial_rotary_factor",
    "scoring_func",
    "norm_topk_prob",
    "routed_scaling_factor",
    "balance",
)


def compare_configs(saved: dict[str, Any], current: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What differs between a checkpoint's config and this one: (changes that are applied, changes that are refused).

    What an earlier version has saved counts as this one would have written it: no default and no name is a change.
    """
    applied: list[str] = []
    refused: list[str] = []
    for key, (was, now) in differing(with_present_settings(saved), with_present_settings(current)).items():
        section, _, name = key.partition(".")
        fixed = key in FIXED or (section == "model" and name not in FREE_IN_MODEL)
        fixed |= key in OWN_GROUP and None in (was, now)
        (refused if fixed else applied).append(f"{key}: was {was}, is {now}")
    return applied, refused


def differing(saved: dict[str, Any], current: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by their full names, as (was, is); None stands for one that is not there."""
    before, now = (dict(_leaves(json.loads(json.dumps(side)))) for side in (saved, current))  # tuples as json has them
    keys = sorted(before.keys() | now.keys())
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def check_continues(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    data_fingerprint: str,
    report: Callable[[str], None],
    tokenizer: str | None = None,
    *,
    former: tuple[str, ...] = (),
) -> None:
    """Refuses what would make the checkpoint's continuation another run, reports what has changed and is applied.

    tokenizer: its fingerprint, None where it is not known.
    former: what earlier versions called the same data; the next save writes the name of now.

    Raises:
        InputError: every setting that must not change, with both values.
    """
    if "imported_from" in checkpoint.manifest:
        raise InputError(
            f"{checkpoint.path} is an import, which holds weights alone; start a new run from it: "
            f"run_name=NEW load_path={checkpoint.path} load_weights_only=true"
        )
    applied, refused = compare_configs(checkpoint.manifest["config"], config)
    kept = checkpoint.path.parent / "config.yaml"
    kept_settings = f", as in {kept}" if refused and kept.is_file() else ""
    saved = checkpoint.manifest["data"]
    if not same_data(saved, data_fingerprint, former):
        refused.append(data_difference(checkpoint.manifest["data"], data_fingerprint))
    refused += _other_tokenizer(checkpoint, config, tokenizer)
    if refused:
        listed = "\n".join(f"  {line}" for line in refused)
        fits = not any(line.split(":")[0] in [f"model.{name}" for name in SHAPE] for line in refused)
        weights = f" from these weights: run_name=NEW load_path={checkpoint.path}" if fits else ": run_name=NEW"
        raise InputError(
            f"{checkpoint.path}: this run cannot be resumed with other settings than it was started with:\n{listed}\n"
            f"  set them back{kept_settings}, or start a new run{weights}"
        )
    for line in [line for line in applied if line.split(":")[0] not in OF_ONE_START]:
        report(f"changed since the checkpoint: {line}")


def same_data(saved: str, current: str, former: tuple[str, ...] = ()) -> bool:
    """Whether two fingerprints are those of the same training data. former: names that `current` had."""
    return _compared(saved) in map(_compared, (current, *former)) and not _other_bytes(saved, current)


def _compared(fingerprint: str) -> str:
    """Of text what stands before the list of its files, which only tells what changed (moe/data/read/text_plan.py)."""
    return fingerprint.split(" | ")[0] if fingerprint.startswith("text ") else fingerprint


def _other_bytes(saved: str, current: str) -> bool:
    """Whether text is not the same by the hash of all its bytes, which only some starts have (verify: full)."""
    was, is_ = ([part for part in text.split(" | ") if part.startswith("all bytes=")] for text in (saved, current))
    return bool(was and is_ and was != is_)


def data_difference(saved: str, current: str) -> str:
    """Both fingerprints; of a mixture only the streams that differ, of text its files, a line for each."""
    if saved.startswith("text ") and current.startswith("text "):
        (was, *old), (is_, *new) = saved.split(" | "), current.split(" | ")
        if not (any(" whole=" in file for file in old) and any(" whole=" in file for file in new)):
            old, new = ([file for file in files if " whole=" not in file] for files in (old, new))
        old, new = ([file for file in files if not file.startswith("all bytes=")] for files in (old, new))
        then, now = ([part for part in parts if part.startswith("commit=")] for parts in (old, new))
        files = [f"    was {file}" for file in old if file not in new]
        files += [f"    is  {file}" for file in new if file not in old]
        more = [f"    and {len(files) - 20} more"] if len(files) > 20 else []
        if then and now and then != now:
            more.append(f"    train_data.text.revision={then[0].removeprefix('commit=')} takes the files of then")
        return "\n".join([f"train_data: was data {was}, is {is_}", *(files[:20] + more if old else [])])
    before, now = saved.split("; "), current.split("; ")
    if len(before) == len(now) == 1:
        return f"train_data: was data {saved}, is {current}"
    lines = [f"    was {stream}" for stream in before if stream not in now]
    lines += [f"    is  {stream}" for stream in now if stream not in before]
    return "\n".join(["train_data: the streams differ (name, data, split, weight)", *lines])


def _other_tokenizer(checkpoint: Checkpoint, config: dict[str, Any], fingerprint: str | None) -> list[str]:
    """One line where the checkpoint was trained with another tokenizer; none where it is the same, or nothing tells."""
    saved = trained_fingerprint(checkpoint.manifest)
    if fingerprint is None or saved is None or saved == fingerprint:
        return []
    kept = checkpoint.path / TOKENIZER
    own = f"; its own is tokenizer={kept}" if kept.is_dir() else ""
    return [
        f"tokenizer: {config['tokenizer']} is another one than the checkpoint was trained with (fingerprint "
        f"{fingerprint[:12]}, was {saved[:12]}){own}"
    ]


def check_weights_fit(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    vocab_size: int,
    tokenizer: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Whether another run's weights fit this run's model and the `tokenizer` of this fingerprint. What fits and
    computes otherwise, as another `rope_theta`, may be meant, and is reported.

    Raises:
        InputError: every setting of the model that differs and must not, with both values.
    """
    _, differs = compare_configs(checkpoint.manifest["config"], config)
    differs = [line for line in differs if line.startswith("model.")]
    refused = [line for line in differs if line.split(":")[0] in [f"model.{name}" for name in SHAPE]]
    computes = [line for line in differs if line not in refused]
    if checkpoint.manifest["vocab_size"] != vocab_size:
        refused.append(f"vocabulary: was {checkpoint.manifest['vocab_size']}, is {vocab_size} (the tokenizer)")
    refused += _other_tokenizer(checkpoint, config, tokenizer)
    if trained_fingerprint(checkpoint.manifest) is None and not refused:
        report(f"load_path ({checkpoint.path}): holds no tokenizer; nothing says whether its ids mean the same text")
    if refused:
        listed = "\n".join(f"  {line}" for line in refused)
        raise InputError(f"load_path ({checkpoint.path}): its weights belong to another model:\n{listed}")
    for line in computes:
        report(f"changed since the checkpoint: {line}")


def _leaves(node: dict[str, Any], prefix: str = ""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
