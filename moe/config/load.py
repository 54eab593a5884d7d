"""yaml + key=value overrides -> Config, or one ConfigError that lists every error with its path, value and fix.

OmegaConf raises only the first error and a frozen config takes no update, so the input is flattened to leaves and
merged leaf by leaf, each error collected. Interpolations such as ${run_name} are resolved at the end.

Text is what was typed: yaml reads 1.10, 007, on and 2024-05-01 as numbers, a truth value and a date, and a setting that
is text gets their letters, not what they were read as. `null` stays null. On the command line a setting that is text
gets all that was typed, where yaml sees a comment or a key too; it may stand in quotes. A number that yaml reads
otherwise than Python (0100 is 64, 1:00 is 60) is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from moe.common.errors import InputError
from moe.common.paths import local_path
from moe.config.checks import find_errors
from moe.config.derived import with_derived
from moe.config.foreign import hint_for
from moe.config.paths import with_paths
from moe.config.schema import Config
from moe.config.values import is_one_value, is_text, is_union, parse_yaml, read_as


class ConfigError(InputError):
    """All errors of a configuration, one line each."""

    def __init__(self, source: str, errors: list[str]):
        self.errors = errors
        super().__init__(
            f"{source}: {len(errors)} error{'s' if len(errors) > 1 else ''}\n"
            + "\n".join(f"  {error}" for error in errors)
        )


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Reads `path`, applies `key=value` overrides in order, checks everything.

    Raises:
        ConfigError: every error of the file, of the overrides and between settings.
    """
    tree = _read_yaml(local_path(path, "the config"))
    errors: list[str] = []
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            errors.append(f"{override}: is not an override; write key=value, e.g. optimizer.lr=5e-4")
            continue
        try:
            keys = key.strip().split(".")
            _set(tree, keys, _parse_override(keys, text))
        except (yaml.YAMLError, TypeError) as error:
            errors.append(f"{key}: {text!r} cannot be set: {str(error).splitlines()[0]}")
    return _build(tree, errors, str(path))


def to_yaml(config: Config) -> str:
    """The complete configuration, defaults included, as yaml that `load_config` reads back."""
    return yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str):  # what is to be read as it stands, not as the name of another setting
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _parse_override(keys: list[str], text: str) -> Any:
    """The value of `key=text`. Raises YAMLError where yaml would drop a part of it."""
    path = tuple(keys)
    typed = text.strip()
    if not typed:
        raise yaml.YAMLError(f"it is empty; write {'.'.join(keys)}=null for none")
    if _is_setting(path) and is_text(_hint_at(path)) and typed.lower() not in ("~", "null"):
        if typed[0] not in "\"'[{":
            return text
        if typed[0] in "\"'" and not is_one_value(text):
            return text
    value = parse_yaml(text)
    if not is_one_value(text):
        raise yaml.YAMLError("all from ' #' on would be dropped as a comment; remove it, or put it in quotes")
    return value


def _read_yaml(path: Path) -> dict:
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(str(path), [f"there is no such file; {_yamls_in(path.parent)}"]) from None
    except IsADirectoryError:
        raise ConfigError(str(path), [f"is a folder; {_yamls_in(path)}"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read: {error}"]) from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ConfigError(str(path), [f"is not valid yaml: {reason}"]) from None
    if not isinstance(tree, dict):
        raise ConfigError(str(path), ["holds no settings; write key: value lines"])
    return tree


def _yamls_in(folder: Path) -> str:
    near = sorted(str(path) for path in folder.glob("*.yaml")) if folder.is_dir() else []
    return "there are: " + ", ".join(near) if near else "`moe yaml` lists those to begin with, and writes one"


def _set(tree: dict, keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        child = tree.get(key)
        if not isinstance(child, dict):
            child = tree[key] = {}
        tree = child
    tree[keys[-1]] = value


def _leaves(node: Any, path: tuple[str, ...] = ()):
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, (*path, str(key)))
    else:
        yield path, node


def _build(tree: dict, errors: list[str], source: str) -> Config:
    config: Any = OmegaConf.structured(Config)
    wrong: set[str] = set()
    for path, value in _leaves(tree):
        dotted = ".".join(path)
        if name := next((key for i, key in enumerate(path) if "." in key and _fields_at(path[:i]) is None), None):
            section = dotted.partition(f".{name}")[0]
            wrong.add(section)
            errors.append(f"{section}.{name}: a name must be letters, digits, '_' and '-'")
            continue
        try:
            value = read_as(value, _hint_at(path) if _is_setting(path) else None)
        except ValueError as error:
            wrong.add(dotted)
            errors.append(f"{dotted}: {error}")
            continue
        if _holds_missing(value) and (value != MISSING or _is_setting(path)):
            wrong.add(dotted)
            errors.append(f"{dotted}: {MISSING!r} stands for no value; give one, or leave it out")
            continue
        try:
            config = OmegaConf.merge(config, _nested(path, value))
        except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list where a section belongs
            wrong.add(dotted)
            errors.append(_explain(path, value, error))
    result = None
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        errors += [
            f"{key}: is missing; add it (docs/configuration.md has its meaning)" for key in _fold(missing, tree, wrong)
        ]
        result = with_paths(OmegaConf.to_object(_filled(config)), errors)  # type: ignore[arg-type]
        unknown = {*missing, *wrong}
        errors += [reason for reason in find_errors(result) if not _is_about(reason, unknown)]  # type: ignore[arg-type]
    except OmegaConfBaseException as error:
        errors.append(" ".join(str(error).split()))
    if errors:
        raise ConfigError(source, list(dict.fromkeys(errors)))
    assert isinstance(result, Config)
    return with_derived(result)


def _holds_missing(value: Any) -> bool:
    """Whether OmegaConf's mark of a missing value stands anywhere in it."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value == MISSING or any(map(_holds_missing, items))


def _nested(path: tuple[str, ...], value: Any) -> Any:
    for key in reversed(path):
        value = {key: value}
    return value


WANTED: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
STAND_INS: dict[Any, Any] = {str: "1ba", int: 1}  # of any other number 1.0


def _filled(config: Any) -> Any:
    """`config` with something in the place of what is missing, so that all else can be checked."""
    while missing := OmegaConf.missing_keys(config):
        for key in missing:
            path = tuple(key.split("."))
            hint = _hint_at(path)
            value: Any = STAND_INS.get(hint, 1.0)
            if dataclasses.is_dataclass(hint) or get_origin(hint) is list:
                value = [] if get_origin(hint) is list else {}
            config = OmegaConf.merge(config, _nested(path, value))
    return config


def _is_about(error: str, unknown: set[str]) -> bool:
    """Whether an error between settings has to do with one that is missing or wrong, which is reported already."""
    head = re.split(r"[: (]", error, maxsplit=1)[0]
    return any(key.startswith(f"{head}.") or re.search(rf"(?<![\w.]){re.escape(key)}(?!\w)", error) for key in unknown)


def _fold(missing: list[str], tree: dict, wrong: set[str]) -> list[str]:
    """A section that is not there at all is one error, not one for each of its keys; a wrong value is not missing."""
    reported = [
        key for key in missing if not any(f"{key}.".startswith(f"{w}.") or w.startswith(f"{key}.") for w in wrong)
    ]
    return list(dict.fromkeys(key if key.split(".")[0] in tree else key.split(".")[0] for key in reported))


def _is_setting(path: tuple[str, ...]) -> bool:
    known = _fields_at(path[:-1]) if path else []
    return known is None or path[-1] in known


def _hint_at(path: tuple[str, ...]) -> Any:
    """The type of the setting at `path`."""
    hint: Any = Config
    for key in path:
        if get_origin(hint) is dict:
            hint = get_args(hint)[1]
        else:
            section = next(kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind))
            hint = get_type_hints(section)[key]
    return hint


def _fields_at(path: tuple[str, ...]) -> list[str] | None:
    """Names of the settings that may stand in the section `path`; none where there is no such section, None where any
    name may stand (`train_data.streams`).
    """
    section: Any = Config
    named: Any = None
    for key in path:
        if named is not None:
            section, named = named, None
            continue
        hint = get_type_hints(section).get(key)
        found = next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)
        if found is None:
            return []
        if get_origin(hint) is dict:
            named = found
        else:
            section = found
    return None if named is not None else [f.name for f in dataclasses.fields(section)]


def _explain(path: tuple[str, ...], value: Any, error: Exception) -> str:
    """`path: value, what is wrong, the fix` from what OmegaConf says."""
    dotted = ".".join(path)
    for depth, key in enumerate(path):
        if depth and _is_setting(path[:depth]) and get_origin(_hint_at(path[:depth])) is list:
            return f"{'.'.join(path[:depth])}: is a section (found {key!r} in it); write a list, as [...]"
        known = _fields_at(path[:depth])
        if known is None:
            continue
        if not known:
            return f"{'.'.join(path[:depth])}: takes one value, not a section (found {key!r} in it)"
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            fix = f"did you mean {'.'.join((*path[:depth], near[0]))}?" if near else f"known here: {', '.join(known)}"
            return f"{'.'.join(path[: depth + 1])}: unknown key; {hint_for(path, depth) or fix}"
    if (known := _fields_at(path)) != []:
        return f"{dotted}: is {value!r}; this is a section, with {', '.join(known or ['names of your own'])}"
    if get_origin(_hint_at(path)) is list and not isinstance(value, list):
        return f"{dotted}: is {'null' if value is None else value!r}; write a list, as [...]; [] is an empty one"
    found = "null" if value is None else repr(value)
    reason = str(error).splitlines()[0]
    return f"{dotted}: is {found}; {_wanted(_hint_at(path)) or reason[0].lower() + reason[1:]}"


def _wanted(hint: Any) -> str | None:
    """What to write for a setting of type `hint`."""
    if get_origin(hint) is tuple:
        return f"write a list of {len(get_args(hint))} numbers"
    kinds = [part for part in get_args(hint) if part is not NoneType] if is_union(hint) else [hint]
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    words = [WANTED[kind] for kind in kinds if kind in WANTED]
    if words and str in kinds and len(kinds) > 1:
        return "write a value that docs/configuration.md lists"
    return f"write {' or '.join(words + choices)}" if words or choices else None
