"""Learning rate as a factor of its peak.

- Pure functions of the position: nothing to save, nothing to restore.
- `done` is the position at the END of the step that is being taken, so step 1 has a rate above zero and the last step
  lands exactly on alpha_f.
- done, total, warmup and decay share one unit (tokens or batches), whichever the run counts in.
"""

import math
from collections.abc import Callable


def _warmup(done: float, warmup: float) -> float:
    return min(1.0, done / warmup) if warmup > 0 else 1.0


def _progress(done: float, start: float, end: float) -> float:
    """Share of [start, end] that is done, within 0 and 1."""
    return min(1.0, max(0.0, (done - start) / (end - start))) if end > start else float(done >= end)


def cosine_with_warmup(done: float, *, total: float, warmup: float, alpha_f: float) -> float:
    """Linear to 1 over warmup, then half a cosine down to alpha_f at total (arXiv 1608.03983)."""
    if done < warmup:
        return _warmup(done, warmup)
    return alpha_f + (1 - alpha_f) * 0.5 * (1 + math.cos(math.pi * _progress(done, warmup, total)))


def wsd(done: float, *, total: float, warmup: float, decay: float, alpha_f: float) -> float:
    """Linear to 1 over warmup, 1 until total - decay, then linear to alpha_f at total (arXiv 2404.06395)."""
    if done < warmup:
        return _warmup(done, warmup)
    return alpha_f + (1 - alpha_f) * (1 - _progress(done, max(warmup, total - decay), total))


def linear_decay_with_warmup(done: float, *, total: float, warmup: float, alpha_f: float) -> float:
    """Linear to 1 over warmup, then linear to alpha_f at total."""
    if done < warmup:
        return _warmup(done, warmup)
    return alpha_f + (1 - alpha_f) * (1 - _progress(done, warmup, total))


def constant_with_warmup(done: float, *, total: float, warmup: float) -> float:
    """Linear to 1 over warmup, then 1. `total` is taken so that every schedule is called alike."""
    return _warmup(done, warmup)


SCHEDULERS: dict[str, Callable[..., float]] = {
    "cosine_with_warmup": cosine_with_warmup,
    "wsd": wsd,
    "constant_with_warmup": constant_with_warmup,
    "linear_decay_with_warmup": linear_decay_with_warmup,
}
