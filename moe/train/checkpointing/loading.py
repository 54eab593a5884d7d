"""Patches of Composer 0.32.1.

- It loads what was verified, from the file that was verified, as data only. Composer itself reads a path as a template
  and an address (`{run_name}`, `#`, `:` lead elsewhere) and runs whatever code a file carries.
- Ranks that share a model load their own rows (rank_state.py), and all raise what one of them met.
- What an earlier version called otherwise is loaded by its name of now.
- Under automatic microbatching it never trains a batch twice: after two steps with allocator retries in a row Composer
  goes back to the same batch although the optimizer has stepped.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import composer.trainer.trainer as composer_trainer
import composer.utils.checkpoint as composer_checkpoint
from composer import State

from moe.model.balance import with_present_names
from moe.train.checkpointing.checkpoints import Checkpoint, CheckpointError, load_state, open_state
from moe.train.checkpointing.composer_state import without_empty_scalers
from moe.train.checkpointing.contents import full_content
from moe.train.checkpointing.parts import Parts
from moe.train.checkpointing.rank_state import load_own
from moe.train.distributed.ranks import agreed

NO_PATH = "state.pt"  # Trainer's `load_path`: says that there is something to load, and is never looked up


@contextmanager
def patched_composer(checkpoint: Checkpoint | None) -> Iterator[str | None]:
    """Within it a Trainer with the value as its `load_path` loads `checkpoint`, and counts no allocator retries."""

    def load(path: str, state: State, logger: Any, *, load_weights_only: bool, **others: Any) -> None:
        del path, others
        assert checkpoint is not None
        if state.fsdp_enabled:
            agreed(lambda: _load_shares(checkpoint, state, logger, load_weights_only), here=True)
            return
        content = full_content(checkpoint)
        content["model"] = with_present_names(content["model"])
        if load_weights_only:
            state.load_model_state(content, logger, strict=True)
        else:
            state.load_state_dict(without_empty_scalers(content), logger)

    plain = composer_trainer._update_num_consecutive_thrashes, composer_checkpoint.load_checkpoint
    composer_trainer._update_num_consecutive_thrashes = lambda *args: 0  # type: ignore[assignment]
    composer_checkpoint.load_checkpoint = load  # type: ignore[assignment]
    try:
        yield None if checkpoint is None else NO_PATH
    finally:
        composer_trainer._update_num_consecutive_thrashes, composer_checkpoint.load_checkpoint = plain


def _load_shares(checkpoint: Checkpoint, state: State, logger: Any, weights_only: bool) -> None:
    """Each rank its own rows; what is not divided as Composer loads it."""
    with contextlib.ExitStack() as held:
        file = held.enter_context(open_state(checkpoint))
        mapped = Path(f"/proc/self/fd/{file.fileno()}")
        try:
            content = load_state(mapped, mmap=True)["state"]
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(mapped), str(checkpoint.state_file))) from None
        parts = None
        if checkpoint.manifest.get("tensors"):
            parts = held.enter_context(Parts(checkpoint.path, checkpoint.manifest))
        content["model"] = with_present_names(content["model"])
        load_own(state.model, None if weights_only else state.optimizers[0], content, parts)
        rest = copy.deepcopy({key: value for key, value in content.items() if key not in ("model", "optimizers")})
    if not weights_only:
        state.load_state_dict(without_empty_scalers(rest), logger)
