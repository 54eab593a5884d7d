"""GPUs to estimate for.

Sources: NVIDIA's data sheets of each product and, for GeForce, the GA102, Ada and Blackwell architecture whitepapers.
TFLOP/s are dense (half of what is printed "with sparsity"), bf16 with fp32 accumulation, at boost clock. Memory is what
nvidia-smi lists, a little less than the name says.
"""

from __future__ import annotations

from typing import NamedTuple

from moe.errors import InputError


class Gpu(NamedTuple):
    """memory in MiB; peaks in TFLOP/s."""

    name: str
    mib: int
    bf16: float
    fp32: float

    @property
    def memory(self) -> int:
        return self.mib << 20


GPUS = (
    Gpu("RTX 3080 10GB", 10_240, 59.5, 29.8),
    Gpu("RTX 4080 16GB", 16_376, 97.5, 48.7),
    Gpu("A10 24GB", 23_028, 125.0, 31.2),
    Gpu("L4 24GB", 23_034, 121.0, 30.3),
    Gpu("RTX 3090 24GB", 24_576, 71.2, 35.6),
    Gpu("RTX 4090 24GB", 24_564, 165.2, 82.6),
    Gpu("RTX 5090 32GB", 32_607, 209.5, 104.8),
    Gpu("A100 40GB", 40_960, 312.0, 19.5),
    Gpu("L40S 48GB", 46_068, 362.0, 91.6),
    Gpu("A100 80GB", 81_920, 312.0, 19.5),
    Gpu("H100 80GB", 81_559, 989.0, 67.0),
    Gpu("H200 141GB", 143_771, 989.0, 67.0),
    Gpu("B200 180GB", 183_359, 2250.0, 75.0),
)


def find_gpu(name: str) -> Gpu:
    """The first whose name holds `name`, without regard to case and blanks.

    Raises:
        InputError: there is none; lists those there are.
    """
    wanted = name.lower().replace(" ", "")
    found = next((gpu for gpu in GPUS if wanted in gpu.name.lower().replace(" ", "")), None)
    if found is None:
        raise InputError(f"GPU ({name}) is not known; there are {', '.join(gpu.name for gpu in GPUS)}")
    return found
