"""The data: there, sound, made with this tokenizer, and enough."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from moe.common.errors import InputError, RunFailed
from moe.common.units import short
from moe.config import Config
from moe.plan.checks.result import Report, Result
from moe.plan.estimate import find_work

if TYPE_CHECKING:
    from moe.train.inputs import Inputs


def check_run_data(config: Config, *, hashes: bool, report: Report) -> tuple[list[Result], Inputs | None]:
    """Folders, meta and, with `hashes`, every byte. Also what the model is built from; None where that is not known."""
    from moe.data.meta import read_meta
    from moe.train.inputs import check_data, streams_of
    from moe.train.remote_sizes import check_remote_sizes, remotes_of

    data = dataclasses.replace(config.train_data, verify="full" if hashes else "size")
    try:
        for spec in [*streams_of(config.train_data).values(), *streams_of(config.eval_data).values()]:
            if spec.remote is None:  # reported before the tokenizer is looked for, which may take a minute
                read_meta(spec.local)
        report(f"loading the tokenizer {config.tokenizer} ...")
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its many tries are one error
        inputs = check_data(dataclasses.replace(config, train_data=data), report)
        for remote in dict.fromkeys(remotes_of(inputs)):
            report(f"listing the shards on {remote} ...")
        unlisted = check_remote_sizes(config, inputs)
    except (InputError, RunFailed) as error:
        return [Result("data", "fail", str(error))], None
    except OSError as error:
        return [Result("data", "fail", f"{error.filename}: cannot be read: {error.strerror or error}; fix it")], None
    remotes = [spec.remote for spec in inputs.train_streams.values()]
    if not remotes:
        checked = "every file can be opened"
    elif any(remotes):
        checked = "sizes of all shards on the remote; each is verified as it arrives"
    else:
        checked = "sizes and xxh64 of all shards" if hashes else "sizes of all shards"
    text = "; ".join([*inputs.plan, *(unlisted or [checked])])
    results = [Result("data", "warn" if unlisted else "pass", text), _enough(config, inputs)]
    return results + _losses(config, inputs), inputs


def _losses(config: Config, inputs: Inputs) -> list[Result]:
    """What the conversions skipped or could not write; of text that is tokenised as it is read, what a sample says."""
    from moe.data.meta import read_meta, warnings_of
    from moe.train.inputs import streams_of

    found = [
        f"{name + ': ' if name else ''}{warning}"
        for name, spec in streams_of(config.train_data).items()
        for warning in warnings_of(read_meta(spec.local))
    ]
    if inputs.text is not None and inputs.text.warning is not None:
        found.append(inputs.text.warning.removeprefix("warning: "))
    return [Result("text", "warn", "; ".join(found))] if found else []


def _enough(config: Config, inputs: Inputs) -> Result:
    tokens = find_work(config, inputs.vocab_size).tokens
    if inputs.epoch_tokens is None:
        return Result("tokens", "pass", f"{short(tokens)} to train on; how many there are is known after an epoch")
    epochs = tokens / inputs.epoch_tokens
    text = f"{short(tokens)} to train on are {epochs:.2f} epochs of the data's {short(inputs.epoch_tokens)}"
    if epochs > 1:
        return Result(
            "tokens",
            "warn",
            f"{text}; convert more text, or lower max_duration (up to 4 epochs are nearly as good as new text, "
            "arXiv 2305.16264)",
        )
    return Result("tokens", "pass", text)
