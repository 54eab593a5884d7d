"""Axes: round numbers for ticks, and values as people read them."""

from __future__ import annotations

import math

from moe.common.units import short

SMALLEST, LARGEST = 1e-140, 1e140  # between which quotients are numbers too


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) between `low` and `high`, about so many."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    if not SMALLEST < rough < LARGEST:  # nothing that a power of ten could divide
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [n * step for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between two positive numbers; their 2- and 5-fold too where those are few."""
    low, high = max(low, SMALLEST), min(high, LARGEST)
    if not low < high:
        return []
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    factors = (1,) if math.log10(high / low) > 3 else (1, 2, 5)
    return [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]


def number(value: float) -> str:
    """Four digits that count, large ones with their letter: 0.0004321, 6.000, 1.23M."""
    if abs(value) >= 1e4:
        return ("-" if value < 0 else "") + short(abs(value))
    return f"{value:#.4g}".rstrip(".") if abs(value) >= 0.01 else f"{value:.4g}"


def tick(value: float) -> str:
    """As `number`, of a round value: 0.0005 is 5e-4."""
    if value and abs(value) < 1e-3:
        mantissa, power = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(power)}"
    return f"{value:g}" if abs(value) < 1e4 else number(value)
