"""Two mends to Composer 0.32.1.

- It reads checkpoints as data only: its own `torch.load` runs whatever code a file carries.
- Under automatic microbatching it never trains a batch twice: after two steps with allocator retries in a row Composer
  goes back to the same batch although the optimizer has stepped.
"""

from __future__ import annotations

from pathlib import Path

import composer.trainer.trainer as composer_trainer
import composer.utils.checkpoint as composer_checkpoint

from moe.train.checkpoints import load_state


def mend_composer() -> None:
    """From here on Composer loads with weights_only and our allowlist, and counts no allocator retries."""
    composer_trainer._update_num_consecutive_thrashes = lambda *args: 0  # type: ignore[assignment]
    composer_checkpoint._torch_load_with_validation = _load  # type: ignore[assignment]


def _load(checkpoint_filepath: Path | str, map_location: str) -> dict:
    return load_state(Path(checkpoint_filepath).resolve(), map_location)
