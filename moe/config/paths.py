"""Settings that are paths: `~` becomes the home folder, and an address where a folder is needed is an error."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from typing import Any

from moe.common.errors import InputError
from moe.common.paths import data_address, expanded, local_path, path_or_address
from moe.config.schema import Config


def with_paths(config: Config, errors: list[str]) -> Config:
    """`config` with every path as this machine knows it; errors are added to `errors`."""

    def made(function: Callable[[str, str], Any], value: Any, name: str) -> Any:
        if not value:  # reported elsewhere, where it may not be empty
            return value
        try:
            return str(function(value, name))
        except InputError as error:
            errors.append(str(error))
            return value

    def data(section: Any, name: str) -> Any:
        if section is None:
            return None
        changes: dict[str, Any] = {}
        if hasattr(section, "local"):
            changes["local"] = made(local_path, section.local, f"{name}.local")
            changes["remote"] = made(_remote, section.remote, f"{name}.remote")
        if hasattr(section, "dataset"):
            changes["dataset"] = made(local_path, section.dataset, f"{name}.dataset")
        if streams := getattr(section, "streams", None):
            changes["streams"] = {key: data(stream, f"{name}.streams.{key}") for key, stream in streams.items()}
        if dataclasses.is_dataclass(text := getattr(section, "text", None)):
            changes["text"] = data(text, f"{name}.text")
        return dataclasses.replace(section, **changes)

    eval_tasks = config.eval_tasks
    if eval_tasks is not None:
        path = made(local_path, eval_tasks.include_path, "eval_tasks.include_path")
        eval_tasks = dataclasses.replace(eval_tasks, include_path=path)
    save_folder = config.save_folder
    if save_folder.startswith("~"):  # addresses of other kinds are reported by the checks
        save_folder = made(path_or_address, save_folder, "save_folder")
    return dataclasses.replace(
        config,
        save_folder=save_folder,
        load_path=made(local_path, config.load_path, "load_path"),
        tokenizer=made(local_path, config.tokenizer, "tokenizer") if _is_odd(config.tokenizer) else config.tokenizer,
        alert_command=_command(config.alert_command),
        train_data=data(config.train_data, "train_data"),
        eval_data=data(config.eval_data, "eval_data"),
        eval_tasks=eval_tasks,
    )


def _is_odd(name: str) -> bool:
    """Neither a hub's name nor a plain path: those stay as they were written, `./tokenizer` among them."""
    return name.startswith("~") or ":/" in name


def _remote(value: str, name: str) -> str:
    return data_address(value, name) if ":/" in value else expanded(value, name)


def _command(command: str | None) -> str | None:
    """A shell would put the home folder in its words; no shell sees this command."""
    if command is None or "~" not in command:
        return command
    try:
        words = shlex.split(command)
        return shlex.join([expanded(word, "alert_command") if word.startswith("~/") else word for word in words])
    except ValueError:  # reported by the checks; also what cannot be expanded
        return command
