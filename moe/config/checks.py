"""What must hold between settings. Each error: path (value), what is wrong; the fix."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
from typing import TYPE_CHECKING, Any

from moe.common.paths import ADDRESS
from moe.config.balance import BALANCE_RULES, WITH_RATE
from moe.config.bounds import brief, check_dimensions, check_ranges, get
from moe.config.callbacks import check_callbacks
from moe.config.schedule import check_rates, check_schedule
from moe.config.shape import SHAPE, shape_errors
from moe.config.times import Time, parse_seconds, parse_time

if TYPE_CHECKING:
    from moe.config.observe import EvalTasks
    from moe.config.schema import Config, TrainStream

TIMES = ("max_duration", "save_interval", "eval_interval", "log_interval", "keep_every", "scheduler.t_decay")
WEIGHTS = {"proportion": 1_000_000, "repeat": 10_000, "choose": 2**31 - 1}  # of a stream in a mixture: the most
RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
MOST_LANES = 1024  # each holds a window of text in memory


def find_errors(config: Config) -> list[str]:
    """Every error between the settings of `config`, none where all is well."""
    errors: list[str] = []
    _check_characters("", dataclasses.asdict(config), errors)
    times = _parse_times(config, errors)
    _check_model(config, errors)
    _check_ranges(config, errors)
    check_rates(config, errors)
    check_schedule(config, times, errors)
    _check_data(config, errors)
    _check_run(config, errors)
    check_callbacks(config.callbacks, errors)
    return errors


def check_ranks(config: Config, world_size: int) -> list[str]:
    """Errors that depend on the number of ranks."""
    text = config.train_data.text
    if text is not None and text.lanes % world_size:
        higher = -(-text.lanes // world_size) * world_size
        return [
            f"train_data.text.lanes ({text.lanes}) is not divisible by {world_size} ranks; use {higher} "
            "in a new run, or another number of ranks in one that has started"
        ]
    if config.global_train_batch_size % world_size:
        lower = config.global_train_batch_size // world_size * world_size or world_size
        return [
            f"global_train_batch_size ({config.global_train_batch_size}) is not divisible by {world_size} ranks; "
            f"use {lower}"
        ]
    replicas = config.parallelism.replicas
    if replicas > 1 and world_size > 1 and (world_size % replicas or world_size == replicas):
        fits = [str(count) for count in range(1, world_size // 2 + 1) if world_size % count == 0]
        return [
            f"parallelism.replicas ({replicas}) must divide {world_size} ranks into groups of at least 2; use "
            f"{' or '.join(fits)}"
        ]
    return []


def _check_characters(path: str, value: Any, errors: list[str]) -> None:
    """NUL, and halves of a character, which yaml and a shell can give: no file's name and no text holds them."""
    if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        errors.append(f"{path} ({value!a}) holds a character that is not valid UTF-8; retype it")
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        _check_characters(f"{path}.{key}" if path else str(key), item, errors)


def _parse_times(config: Config, errors: list[str]) -> dict[str, Time]:
    times = {}
    for path in TIMES if config.eval_tasks is None else (*TIMES, "eval_tasks.interval"):
        text = get(config, path)
        if text is None:
            continue
        try:
            times[path] = parse_time(text)
        except ValueError as error:
            errors.append(f"{path} ({brief(text)}) {error}")
    try:
        if config.scheduler.t_warmup != "auto":
            warmup = parse_time(config.scheduler.t_warmup, zero=True)
            if warmup.value:
                times["scheduler.t_warmup"] = warmup
    except ValueError as error:
        errors.append(f"scheduler.t_warmup ({brief(config.scheduler.t_warmup)}) {error}")
    for path in ("time_limit", "start_timeout", "stall_timeout", "stop_grace"):
        text = get(config, path)
        try:
            if text is not None and (path, text) != ("stall_timeout", "auto"):
                parse_seconds(text)
        except ValueError as error:
            errors.append(f"{path} ({brief(text)}) {error}")
    return times


def _check_model(config: Config, errors: list[str]) -> None:
    model = config.model
    if not check_dimensions(config, errors):
        return
    errors += shape_errors(**{name: getattr(model, name) for name in SHAPE})
    if model.balance_rate is not None and not BALANCE_RULES[model.balance].rates:
        rate = f"model.balance_rate ({model.balance_rate:g})"
        errors.append(f"{rate} needs model.balance {WITH_RATE} (is {model.balance}); remove it")
    if model.dense_hidden is not None and not model.first_k_dense_replace:
        errors.append(f"model.dense_hidden ({model.dense_hidden}) needs model.first_k_dense_replace above 0; remove it")


def _check_ranges(config: Config, errors: list[str]) -> None:
    check_ranges(config, errors)
    if config.save_num_checkpoints_to_keep == 0:
        errors.append("save_num_checkpoints_to_keep (0) keeps nothing to resume from; use at least 1, or -1 for all")
    if config.parallelism.replicas > 1 and not config.parallelism.fsdp2:
        errors.append(
            f"parallelism.replicas ({config.parallelism.replicas}) needs parallelism.fsdp2: true, which divides each "
            "replica; without it each rank is one already"
        )
    if config.compile not in ("auto", True, False):
        errors.append(f"compile ({config.compile}) must be auto, true or false")


def _check_data(config: Config, errors: list[str]) -> None:
    for key, data in (("train_data", config.train_data), ("eval_data", config.eval_data)):
        if data is None:
            continue
        given = [name for name in ("local", "streams", "text") if getattr(data, name)]
        if len(given) != 1:
            errors.append(
                f"{key}: has {' and '.join(given) or 'no data'}; "
                "give one of local (a folder), streams (several) and text (tokenised as it is read)"
            )
        if data.local is None and data.remote is not None:
            errors.append(f"{key}.remote ({data.remote}) needs {key}.local; each stream has a remote of its own")
        folders: dict[tuple[str, str], str] = {}
        for name, stream in data.streams.items():
            other = folders.setdefault((stream.local, stream.split), name)
            if other != name:
                errors.append(
                    f"{key}.streams.{name}.local ({stream.local}) is also that of {other}; "
                    "leave one out, or give it a larger share with repeat or proportion"
                )
            if re.fullmatch(r"[A-Za-z0-9_-]+", name) is None:
                errors.append(f"{key}.streams.{name}: a stream's name must be letters, digits, '_' and '-'")
    _check_weights(config.train_data.streams, errors)
    stripes, text = config.train_data.num_canonical_nodes, config.train_data.text
    if stripes < 1 or config.global_train_batch_size % stripes:
        errors.append(
            f"train_data.num_canonical_nodes ({stripes}) must be at least 1 and divide global_train_batch_size "
            f"({config.global_train_batch_size}); use 1, or the number of machines"
        )
    if text is not None and stripes != 1:
        errors.append(
            f"train_data.num_canonical_nodes ({stripes}) needs converted data; text is divided into "
            "train_data.text.lanes: remove it"
        )
    if text is not None and not 0 <= text.val_fraction < 1:
        errors.append(f"train_data.text.val_fraction ({text.val_fraction}) must be at least 0 and below 1, as 0.005")
    if text is not None and not (1 <= text.lanes <= MOST_LANES and 0 <= text.val_seed < 2**63):
        errors.append(
            f"train_data.text: lanes ({text.lanes}) must be at least 1 and at most {MOST_LANES}, "
            f"val_seed ({text.val_seed}) at least 0"
        )
    if config.eval_data is not None and config.eval_data.text and (text is None or text.val_fraction == 0):
        errors.append("eval_data.text needs train_data.text and a val_fraction above 0; give eval_data.local instead")


def _check_weights(streams: dict[str, TrainStream], errors: list[str]) -> None:
    absolute = []
    for name, stream in streams.items():
        path = f"train_data.streams.{name}"
        given = {key: getattr(stream, key) for key in WEIGHTS if getattr(stream, key) is not None}
        errors += [
            f"{path}.{key} ({value}) must be above 0 and at most {WEIGHTS[key]:,}"
            for key, value in given.items()
            if not 0 < value <= WEIGHTS[key]
        ]
        if len(given) > 1:
            errors.append(f"{path}: gives {' and '.join(given)}; choose one")
        absolute += [f"{path}.{key}" for key in given if key != "proportion"]
    proportions = [s.proportion for s in streams.values() if s.proportion is not None]
    if proportions and absolute:
        errors.append(f"{absolute[0]} does not go with the proportion of another stream; give all streams the same")
    if proportions and len(proportions) < len(streams) and sum(proportions) >= 1:
        without = next(name for name, stream in streams.items() if stream.proportion is None)
        errors.append(
            f"train_data.streams: proportions add up to {sum(proportions):g} and leave nothing for {without}, "
            "which has none; lower them, or give every stream one"
        )


def _check_run(config: Config, errors: list[str]) -> None:
    if re.fullmatch(RUN_NAME, config.run_name) is None:
        errors.append(
            f"run_name ({config.run_name}) must be letters, digits, '.', '_' and '-' "
            "(quote it in yaml if it looks like a number)"
        )
    if not config.save_folder.strip():
        fix = "set save_folder"
        errors.append(f"save_folder is empty{' with autoresume: true' if config.autoresume else ''}; {fix}")
    address = "://" in config.save_folder or ADDRESS.match(config.save_folder)
    if address and re.fullmatch(r"s3://[^/\s]+(/\S*)?", config.save_folder) is None:
        errors.append(f"save_folder ({config.save_folder}) must be a folder, or s3://bucket/prefix")
    limit, data = config.train_data.cache_limit, config.train_data
    folders: list[Any] = [data] if data.local is not None else [*data.streams.values()]
    alone = [f for f in folders if f.remote is None or os.path.realpath(f.remote) == os.path.realpath(str(f.local))]
    if limit is not None and re.fullmatch(r"[0-9]+(\.[0-9]+)?\s*(b|kb|mb|gb|tb)", limit.lower()) is None:
        errors.append(f"train_data.cache_limit ({limit}) is not a size; write it as 500mb or 100gb")
    elif limit is not None and alone:
        errors.append(
            f"train_data.cache_limit ({limit}) would delete shards that have no other copy: "
            f"the remote of {alone[0].local} is {alone[0].remote}; set remote, or remove cache_limit"
        )
    if config.eval_tasks is not None:
        _check_tasks(config.eval_tasks, errors)
    if config.sample_prompts and config.eval_data is None:
        errors.append(
            "sample_prompts are continued at evaluations and eval_data is null; set eval_data, or remove them"
        )
    if config.alert_command is not None:
        _check_program("alert_command", config.alert_command, errors)
    if config.resume_from is not None and re.fullmatch(r"step:\d+", config.resume_from) is None:
        errors.append(f"resume_from ({config.resume_from}) must name a step, as step:5000")
    if config.resume_from is not None and config.load_path is not None:
        errors.append("resume_from goes back in this run, load_path starts from another; set only one")


def _check_tasks(tasks: EvalTasks, errors: list[str]) -> None:
    if not tasks.names:
        errors.append("eval_tasks.names is empty; name tasks of lm-eval, e.g. [hellaswag, arc_easy], or set null")
    for name in dict.fromkeys(tasks.names):
        if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) is None or tasks.names.count(name) > 1:
            errors.append(f"eval_tasks.names ({brief(name)}) must be a task of lm-eval, named once, e.g. arc_easy")
    if tasks.limit is not None and not 1 <= tasks.limit <= 10**9:
        errors.append(f"eval_tasks.limit ({brief(tasks.limit)}) must be at least 1, or null for all questions")
    if tasks.fewshot is not None and not 0 <= tasks.fewshot <= 100:
        errors.append(f"eval_tasks.fewshot ({brief(tasks.fewshot)}) must be at least 0 and at most 100")


def _check_program(path: str, command: str, errors: list[str]) -> None:
    try:
        words = shlex.split(command)
    except ValueError as error:
        errors.append(f"{path} ({command}) cannot be read: {error}; quote it as in a shell")
        return
    if not words or shutil.which(words[0]) is None:
        errors.append(f"{path} ({command}): there is no program {words[0] if words else ''!r}; give one, or null")
