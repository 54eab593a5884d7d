"""The full list, in an order in which each error is reported before what it would break."""

from __future__ import annotations

from collections.abc import Iterator

from moe.common.errors import InputError
from moe.config import Config
from moe.plan.checks.callbacks import check_user_callbacks
from moe.plan.checks.data import check_run_data
from moe.plan.checks.folder import check_folder, check_resume, existing, kept_settings, resumes_in_stock_order
from moe.plan.checks.machine import (
    check_device,
    check_loader,
    check_port,
    check_shared_memory,
    check_versions,
)
from moe.plan.checks.memory import check_memory, why_not_alone
from moe.plan.checks.result import Report, Result
from moe.plan.checks.services import check_remotes, check_wandb
from moe.plan.checks.settings import check_settings
from moe.plan.checks.tasks import check_tasks
from moe.plan.checks.trial import try_step
from moe.plan.vocabulary import find_vocab_size

UNKNOWN_VOCABULARY = 50_000  # where the data has failed already: the estimates that need one are close enough


def run_checks(config: Config, *, world_size: int, fast: bool, report: Report) -> Iterator[Result]:
    """Each result as soon as it is known. world_size: ranks of the run; 0 means one for each GPU here.

    fast: no hashes, no step, no checkpoint.
    """
    from moe.optim.auto import resolve
    from moe.train.checkpointing.run_folder import local_folder

    as_given = config
    try:
        config, chosen = resolve(config, kept_settings(config))
    except InputError as error:
        yield Result("auto", "fail", str(error))
        return
    if chosen:
        yield Result("auto", "pass", ", ".join(map(str, chosen)))
    yield check_versions()
    yield check_device(config)
    launched, world_size = world_size > 0, world_size or _gpus()
    yield check_port()
    yield check_wandb(config)
    yield from check_remotes(config, report)
    found, inputs = check_run_data(config, hashes=not fast, report=report)
    yield from found
    yield from check_tasks(config, inputs, report)
    vocab_size = inputs.vocab_size if inputs is not None else _vocabulary(config)
    yield from check_settings(config, vocab_size=vocab_size, world_size=world_size)
    yield from check_user_callbacks(config)
    memory = check_memory(config, vocab_size=vocab_size, ranks=world_size, launched=launched)
    yield memory
    yield check_loader(config, world_size=world_size)
    samples = (inputs.epoch_tokens or 0) // config.max_seq_len if inputs is not None else 0
    yield check_shared_memory(config, shared_order=samples if samples and resumes_in_stock_order(config) else 0)
    folder = check_folder(config, vocab_size=vocab_size)
    yield from folder
    yield check_resume(as_given, inputs, hashes=not fast, report=report)
    if fast:
        return
    hindered = [result.name for result in (*found, *folder) if result.state == "fail"]
    if memory.state == "warn" and not (_on_gpu() or config.parallelism.fsdp2):  # the kernel would end some process
        hindered.append(memory.name)
    if inputs is None or hindered:
        yield Result("step", "warn", f"not tried: fix {' and '.join(hindered)} first")
        return
    if why := why_not_alone(config, vocab_size=vocab_size):
        yield Result("step", "warn", f"left out: {why}; the run divides it among its ranks (parallelism.fsdp2)")
        return
    place = existing(local_folder(config.save_folder, config.run_name).parent)
    yield from try_step(config, inputs, place=place, report=report)


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _vocabulary(config: Config) -> int:
    try:
        return find_vocab_size(config)[0]
    except InputError:
        return UNKNOWN_VOCABULARY
