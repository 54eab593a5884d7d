"""Makes Composer read checkpoints as data only: its `torch.load` runs whatever code a file carries."""

from __future__ import annotations

from pathlib import Path

import composer.utils.checkpoint as composer_checkpoint

from moe.train.checkpoints import load_state


def use_safe_loading() -> None:
    """From here on Composer loads with weights_only and our allowlist; a file with anything else is refused by name."""
    composer_checkpoint._torch_load_with_validation = _load  # type: ignore[assignment]


def _load(checkpoint_filepath: Path | str, map_location: str) -> dict:
    return load_state(Path(checkpoint_filepath).resolve(), map_location)
