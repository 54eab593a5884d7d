"""Several converted folders as one training set: how many sequences of each make an epoch.

- `proportion` is a share of the epoch, whose length is that of all streams together, as in Streaming and LLM Foundry.
  Streams without one share the rest by their size; where all have one, they are relative to each other.
- `repeat` (times) and `choose` (sequences) are absolute; a stream without either is read once.
- The counts are worked out here and given to Streaming as `choose`, so that they are exact, add up to complete global
  batches, and stand in the printed plan. Which sequences a part of a stream is, Streaming draws anew in each epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from moe.common.errors import InputError


@dataclass(frozen=True)
class StreamSpec:
    """One converted folder (`local`, or a cache of `remote`), its split, and at most one weight."""

    local: str
    remote: str | None
    split: str
    proportion: float | None = None
    repeat: float | None = None
    choose: int | None = None

    @property
    def weight(self) -> str:
        """The weight in words, empty without one."""
        given = {"proportion": self.proportion, "repeat": self.repeat, "choose": self.choose}
        return "".join(f" {key} {value:g}" for key, value in given.items() if value is not None)


def epoch_samples(
    specs: Mapping[str, StreamSpec], available: Mapping[str, int], *, global_batch: int
) -> dict[str, int]:
    """Sequences of each stream in one epoch, a multiple of `global_batch` together.

    available: sequences that each stream has. Raises InputError where a stream or the epoch would be empty.
    """
    total = sum(available.values())
    given = {name: spec.proportion for name, spec in specs.items() if spec.proportion is not None}
    if given:
        rest = sum(available[name] for name in specs if name not in given)
        left = 1 - sum(given.values()) if rest else 0.0
        shares = {name: given.get(name) or left * available[name] / rest for name in specs}
        wanted = {name: total * share / sum(shares.values()) for name, share in shares.items()}
    else:
        wanted = {
            name: float(spec.choose if spec.choose is not None else int((spec.repeat or 1) * available[name]))
            for name, spec in specs.items()
        }
        total = int(sum(wanted.values()))
    epoch = total - total % global_batch
    if not epoch:
        held = ", ".join(f"{spec.local}/{spec.split}: {available[name]} sequences" for name, spec in specs.items())
        raise InputError(
            f"{held}, fewer than one global batch of {global_batch}; lower global_train_batch_size or convert more text"
        )
    counts = _apportion(wanted, epoch)
    if empty := [name for name, count in counts.items() if not count]:
        raise InputError(
            f"train_data.streams.{empty[0]}: gets none of an epoch's {epoch} sequences; raise its share or leave it out"
        )
    return counts


def _apportion(wanted: Mapping[str, float], total: int) -> dict[str, int]:
    """Integers that add up to `total`, each within one of its share (largest remainders)."""
    scale = total / sum(wanted.values())
    counts = {name: int(value * scale) for name, value in wanted.items()}
    by_remainder = sorted(wanted, key=lambda name: (counts[name] - wanted[name] * scale, name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
