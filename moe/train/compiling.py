"""Whether `compile` means something on this device, and whether it can."""

from __future__ import annotations

import importlib.util
import os

import torch

from moe.common.errors import InputError

COMPILED = "compile: each block is compiled where it is first used; the first steps take longer, up to minutes"


def wants_compile(setting: bool | str, *, on_gpu: bool) -> bool:
    """What `compile` means on this device: a GPU's compiler is Triton; on CPU 4% at best, for a slow start."""
    if setting == "auto":
        return on_gpu and importlib.util.find_spec("triton") is not None
    return bool(setting)


def check_compiler(setting: bool | str) -> None:
    """Raises:
    InputError: `compile` wants blocks compiled on the CPU, and Inductor would find no C++ compiler.
    """
    if torch.cuda.is_available() or not wants_compile(setting, on_gpu=False):
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):  # OSError: there is a file of that name which cannot be run
        wanted = os.environ.get("CXX", "g++")
        raise InputError(
            f"compile (true) needs a C++ compiler, and {wanted} does not run here; install g++, name another one in "
            "the variable CXX, or set compile=false"
        ) from None
