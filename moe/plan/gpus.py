"""GPUs to estimate for.

Sources: NVIDIA's data sheets of each product and, for GeForce, the GA102, Ada and Blackwell architecture whitepapers.
Memory is what nvidia-smi lists, a little less than the name says. The bf16 peak is that of the MFU (moe.model.flops).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from moe.common.errors import InputError
from moe.model.flops import PEAK_TFLOPS


class Gpu(NamedTuple):
    """memory in MiB; peaks in TFLOP/s. name: the card and its size."""

    name: str
    mib: int
    fp32: float
    given: float | None = None  # bf16's peak, of a card that is not in the table

    @property
    def bf16(self) -> float:
        return self.given or PEAK_TFLOPS[self.name.rpartition(" ")[0]]

    @property
    def memory(self) -> int:
        return self.mib << 20


MOST_TFLOPS = 1_000_000
GPUS = (
    Gpu("RTX 3080 10GB", 10_240, 29.8),
    Gpu("RTX 4080 16GB", 16_376, 48.7),
    Gpu("A10 24GB", 23_028, 31.2),
    Gpu("L4 24GB", 23_034, 30.3),
    Gpu("RTX 3090 24GB", 24_576, 35.6),
    Gpu("RTX 4090 24GB", 24_564, 82.6),
    Gpu("RTX 5090 32GB", 32_607, 104.8),
    Gpu("A100 40GB", 40_960, 19.5),
    Gpu("L40S 48GB", 46_068, 91.6),
    Gpu("A100 80GB", 81_920, 19.5),
    Gpu("H100 80GB", 81_559, 67.0),
    Gpu("H200 141GB", 143_771, 67.0),
    Gpu("B200 180GB", 183_359, 75.0),
)


def own_gpu(name: str, memory: str, tflops: float) -> Gpu:
    """A card as its owner describes it. tflops: of the precision that the run uses.

    Raises:
        InputError: memory is no size, as 48GB, or tflops no number above 0.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d+)?) ?(GB|GiB|G)?", memory.strip(), re.IGNORECASE)
    if found is None or float(found[1]) <= 0:
        raise InputError(f"--gpu-memory ({memory}) is not a size; write 48GB, or 45GiB as nvidia-smi counts")
    if not 0 < tflops <= MOST_TFLOPS:
        raise InputError(f"--gpu-tflops ({tflops}) must be above 0 and at most {MOST_TFLOPS:,}")
    if not name.strip():
        raise InputError("--gpu names the card that --gpu-memory and --gpu-tflops describe; give it a name")
    unit = 1 << 30 if (found[2] or "").lower() == "gib" else 10**9
    return Gpu(name, int(float(found[1]) * unit) >> 20, tflops, given=tflops)


def chosen_gpu(name: str, memory: str | None, tflops: float | None) -> Gpu:
    """A card of the table or, with `memory` and `tflops`, one of its owner's.

    Raises:
        InputError: as `own_gpu` and `find_gpu`, or one of the two is missing.
    """
    if memory is not None and tflops is not None:
        return own_gpu(name, memory, tflops)
    if memory is not None or tflops is not None:
        raise InputError(f"--gpu-memory ({memory}) and --gpu-tflops ({tflops}) describe a card together; give both")
    return find_gpu(name)


def find_gpu(name: str, gpus: tuple[Gpu, ...] = GPUS) -> Gpu:
    """The first whose name holds `name`, without regard to case and blanks.

    Raises:
        InputError: there is none; lists those there are.
    """
    wanted = name.lower().replace(" ", "")
    found = next((gpu for gpu in gpus if wanted and wanted in gpu.name.lower().replace(" ", "")), None)
    if found is None:
        raise InputError(
            f"GPU ({name}) is not known; there are {', '.join(gpu.name for gpu in gpus)}. For another card give "
            f"--gpu '{name}' --gpu-memory 48GB --gpu-tflops 180, from its data sheet"
        )
    return found
