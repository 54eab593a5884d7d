"""The machine: packages, device, shared memory, loaders, ports."""

from __future__ import annotations

import errno
import importlib.metadata
import os
import shutil
import socket
import sys

from moe.common.environment import number
from moe.common.errors import InputError
from moe.common.units import size
from moe.config import Config
from moe.config.derived import reads_converted
from moe.plan.checks.result import Result

SHOWN = ("torch", "mosaicml", "mosaicml-streaming", "transformers")
MOST_PER_CORE = 2  # loader processes; beyond, they take turns


def check_versions() -> Result:
    """Python and the installed packages against what setup.py asks for."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        python = importlib.metadata.metadata("moe-trainer")["Requires-Python"] or ""
        asked = [Requirement(text) for text in importlib.metadata.requires("moe-trainer") or []]
    except importlib.metadata.PackageNotFoundError:
        python, asked = "", []
    version = ".".join(map(str, sys.version_info[:3]))
    if not SpecifierSet(python).contains(version, prereleases=True):
        return Result("versions", "fail", f"Python {version}, and {python} is asked for; make an environment of one")
    errors = []
    for package in [package for package in asked if package.marker is None or package.marker.evaluate({"extra": ""})]:
        try:
            found = importlib.metadata.version(package.name)
        except importlib.metadata.PackageNotFoundError:
            errors.append(f"{package} is not installed")
            continue
        if not package.specifier.contains(found, prereleases=True):
            errors.append(f"{package} is asked for and {found} is installed")
    if errors:
        return Result("versions", "fail", "; ".join(errors) + "; run `make setup` again")
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in SHOWN)
    return Result("versions", "pass", f"Python {sys.version.split()[0]}, {shown}")


def check_device(config: Config) -> Result:
    """Whether there is a GPU, whether it computes in the config's precision, and a compiler where one is needed."""
    import torch

    from moe.train.compiling import check_compiler

    if not torch.cuda.is_available():
        if config.precision == "amp_fp16":
            return Result("device", "fail", "precision (amp_fp16) needs a GPU and there is none; use fp32 or amp_bf16")
        if torch.version.cuda is not None and os.path.exists("/proc/driver/nvidia/version"):
            return Result(
                "device",
                "fail",
                f"there is an NVIDIA driver and torch {torch.__version__} cannot use it; "
                "update the driver, or install a torch for it (docs/installation.md)",
            )
        try:
            check_compiler(config.compile)
        except InputError as error:
            return Result("device", "fail", str(error))
        threads = torch.get_num_threads()
        text = f"CPU, {threads} thread{'s' * (threads != 1)}"
        if config.precision == "amp_bf16":
            return Result(
                "device", "warn", f"{text}: no GPU, so it trains in fp32, and slowly; precision=fp32 is plain"
            )
        return Result("device", "pass", f"{text}, {config.precision}")
    name, number = torch.cuda.get_device_name(), torch.cuda.device_count()
    if config.precision == "amp_bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return Result(
            "device", "warn", f"{number} x {name} has no bf16: it trains in fp32; precision=amp_fp16 is faster"
        )
    return Result("device", "pass", f"{number} x {name}, {config.precision}")


def check_shared_memory(config: Config, *, shared_order: int = 0) -> Result:
    """/dev/shm: batches on their way from the loader's workers.

    shared_order: sequences of an epoch whose order is an array that processes share; 0 for the order of new runs.
    """
    from moe.data.read.shared_memory import SHM, more_room, needed_bytes
    from moe.train.distributed.ranks import MACHINES

    tokens = config.global_train_batch_size * config.max_seq_len // MACHINES
    needed = needed_bytes(tokens, config.num_workers, converted=reads_converted(config))
    of_order = 2 * 8 * shared_order if config.num_workers else 0
    needed += of_order
    try:
        free = shutil.disk_usage(SHM).free
    except OSError:
        return Result("shared memory", "warn", f"{SHM} is not there; converted data and loader processes need it")
    text = f"{SHM} has {size(free)} free, about {size(needed)} are needed"
    if of_order:
        text += f", {size(of_order)} of them for the order that this run began with (py1e; a new run takes none)"
    if free < needed:
        return Result("shared memory", "fail", f"{text}; {more_room(config.num_workers)}")
    return Result("shared memory", "pass", text)


def check_loader(config: Config, *, world_size: int) -> Result:
    """The loader processes of this machine's ranks against its CPU cores."""
    import torch

    cores = len(os.sched_getaffinity(0))
    ranks = max(1, min(world_size, torch.cuda.device_count()))  # of this machine
    processes = config.num_workers * ranks
    each = f"num_workers ({config.num_workers})" + (f" x {ranks} ranks" if ranks > 1 else "")
    text = f"{each}: {processes} loader process{'es' * (processes != 1)} on {cores} CPU cores"
    if processes > MOST_PER_CORE * cores:
        return Result(
            "loader",
            "warn",
            f"{text}; more than the cores only take turns and memory: num_workers={max(1, cores // ranks)} is enough",
        )
    return Result("loader", "pass", text if processes else f"{each}: training reads its data itself")


def check_port() -> Result:
    """The port on which the ranks of several GPUs meet, where one is set."""
    port = number("MASTER_PORT", 0)
    if not port:
        return Result("port", "pass", "MASTER_PORT is not set; the launcher takes a free one")
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
    except OSError as error:
        why = "is taken by another process" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        return Result("port", "fail", f"MASTER_PORT ({port}) {why}; choose another, or leave it out")
    return Result("port", "pass", f"MASTER_PORT {port} is free")
