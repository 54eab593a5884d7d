"""The export of a checkpoint that stays beside it, for programs that read what transformers reads.

RUN/hf/step-00005000-1a2b3c4d-5e6f7a8b/     made once; its name ends with the checkpoint's xxh64 and the tokenizer's
                                            fingerprint
"""

from __future__ import annotations

from pathlib import Path

import xxhash

from moe.common.units import say
from moe.data.text.tokenizer import tokenizer_fingerprint
from moe.train.checkpointing.checkpoints import STATE, Checkpoint
from moe.train.checkpointing.trained_tokenizer import checkpoint_tokenizer
from moe.use.export.to_hf import export

EXPORTS = "hf"


def exported(checkpoint: Checkpoint, tokenizer_name: str | None = None) -> Path:
    """The checkpoint as a Hugging Face folder beside it; made where it is not there yet.

    tokenizer_name: another tokenizer than the checkpoint's own.
    """
    lines: list[str] = []
    ids = tokenizer_fingerprint(checkpoint_tokenizer(checkpoint, tokenizer_name, lines.append))
    files = checkpoint.manifest["files"]
    digest = files[STATE]["xxh64"]
    if checkpoint.manifest.get("tensors"):  # which are not in there
        digest = xxhash.xxh64_hexdigest("".join(files[name]["xxh64"] for name in sorted(files)))
    folder = checkpoint.path.parent / EXPORTS / f"{checkpoint.path.name}-{digest[:8]}-{ids[:8]}"
    if not folder.is_dir():
        export(str(checkpoint.path), out=folder, tokenizer_name=tokenizer_name, say=say)
        return folder
    for line in lines:
        say(line)
    return folder
