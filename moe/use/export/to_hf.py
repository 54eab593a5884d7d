"""A checkpoint as a Hugging Face folder, verified by transformers before it gets its name.

    config.json generation_config.json  tokenizer.json tokenizer_config.json ...
    model.safetensors, or over 5 GB model-00001-of-00003.safetensors ... and model.safetensors.index.json
    README.md curves.png                the model card, from the run's manifest, configuration and metrics

- A tied head is written all the same, beside `tie_word_embeddings: true`.
- Weights are written as they are, fp32, one shard at a time from the mapped checkpoint: the memory needed does not grow
  with the model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from moe.common.errors import RunFailed
from moe.common.units import short, show
from moe.data.text.kept_tokenizer import save_tokenizer
from moe.model.families.family import Family
from moe.model.families.table import complete, family_of
from moe.train.checkpointing.checkpoints import Checkpoint
from moe.train.checkpointing.contents import on_disk
from moe.train.checkpointing.trained_tokenizer import checkpoint_tokenizer
from moe.use.export.card import write_card
from moe.use.export.folders import written_aside
from moe.use.export.hf_weights import INDEX, check_finite, is_finite
from moe.use.export.names import hf_parts, with_zeros
from moe.use.export.settings import to_config
from moe.use.export.verify import verify_logits, verify_tensors, verify_tokenizer
from moe.use.inference import build_skeleton, find_checkpoint, load_weights

SHARD_BYTES = 5 * 10**9
SAMPLING = {
    "do_sample": True,
    "temperature": 0.8,
    "top_p": 0.95,
}  # the defaults of `moe generate`, which knows no top-k


def export(
    path: str,
    *,
    out: Path,
    step: int | None = None,
    tokenizer_name: str | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = show,
    shard_bytes: int = SHARD_BYTES,
) -> Checkpoint:
    """Writes the checkpoint at `path` (that of `step`, or a run folder's newest) to `out`; returns the checkpoint.

    tokenizer_name: another tokenizer than the checkpoint's own, a folder or hub name.

    Raises:
        InputError: no such checkpoint, weights that are not finite, a model that has no counterpart, another tokenizer,
            `out` is there already, or no space.
        RunFailed: transformers' logits or ids are not ours. Whatever is raised, `out` is as it was.
    """
    checkpoint = find_checkpoint(path, step)
    manifest = checkpoint.manifest
    settings = complete(manifest["config"]["model"])
    family = family_of(settings)
    tokenizer = checkpoint_tokenizer(checkpoint, tokenizer_name, say)
    # what is made from nothing begins as a document does: after an EOS. No other mark of a beginning was trained.
    special = {"bos_token_id": manifest["eos_id"], "eos_token_id": manifest["eos_id"]}
    max_seq_len = manifest["config"]["max_seq_len"]
    config = to_config(settings, family, vocab_size=manifest["vocab_size"], max_seq_len=max_seq_len, special=special)
    with written_aside(out, overwrite=overwrite, kind="export") as folder:
        model = build_skeleton(settings, vocab_size=manifest["vocab_size"], eos_id=manifest["eos_id"])
        found = load_weights(checkpoint, folder)
        weights = {name: found[name] for name in model.state_dict() if name in found} | found  # in one order
        check_finite([name for name, weight in weights.items() if not is_finite(weight)], str(checkpoint.path))
        complete_weights = with_zeros(weights, settings, family)
        parts = hf_tensors(complete_weights if family.dense else _with_head(complete_weights, folder), family)
        write_weights(folder, parts, shard_bytes=shard_bytes, say=say)
        _write_json(folder / "config.json", config)
        # top_k: all, as transformers takes 50 where there is none, and SGLang no 0
        sampling = {"pad_token_id": manifest["eos_id"], **SAMPLING, "top_k": manifest["vocab_size"]}
        _write_json(folder / "generation_config.json", {**special, **sampling})
        write_tokenizer(folder, tokenizer, max_seq_len)
        write_card(folder, checkpoint)
        say("reading it back, loading it with transformers and comparing ids and logits ...")
        verify_tensors(folder, parts)
        verify_tokenizer(folder, tokenizer)
        model.load_state_dict(weights, assign=True)
        difference = verify_logits(folder, model.eval())
        say(f"verified: max logit difference {difference:.1e} of the largest logit")
    say(f"step {checkpoint.step:,} of {checkpoint.path.parent} is in {out}")
    return checkpoint


def _with_head(weights: dict[str, Tensor], scratch: Path) -> dict[str, Tensor]:
    """The weights with a head that is tied written out: SGLang's Qwen3-MoE ties none, and without it would answer from
    a head of random numbers; llama.cpp's OLMoE does not load without it.
    """
    if "lm_head.weight" in weights:
        return weights
    again = on_disk(
        weights["embed.weight"].split(1024), scratch
    )  # a mapping of its own: safetensors writes no tensor twice
    return {**weights, "lm_head.weight": again}


def write_tokenizer(folder: Path, tokenizer: Any, max_seq_len: int) -> None:
    """The tokenizer's files, as transformers 4 and 5 both read them, and so that a text becomes by default the ids that
    it had in training: nothing put before or behind it, nothing cut.
    """
    tokenizer.model_max_length = max_seq_len
    inputs = ["input_ids", "attention_mask"]  # else token types too, which `generate` refuses
    save_tokenizer(tokenizer, folder, model_input_names=inputs, add_bos_token=False, add_eos_token=False)
    path = folder / "tokenizer.json"
    if path.is_file():
        spec = json.loads(path.read_text(encoding="utf-8"))
        if not _only_offsets(spec["post_processor"]):
            spec["post_processor"] = None
        spec["truncation"] = spec["padding"] = None
        path.write_text(json.dumps(spec, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _only_offsets(processor: dict[str, Any] | None) -> bool:
    """Whether a tokenizer.json's post-processor adds no tokens."""
    return processor is None or processor["type"] == "ByteLevel"


def hf_tensors(weights: dict[str, Tensor], family: Family) -> dict[str, Tensor]:
    """All tensors of the folder, by their names there; views of `weights`."""
    return {name: part for ours, weight in weights.items() for name, part in hf_parts(ours, weight, family).items()}


def write_weights(folder: Path, parts: dict[str, Tensor], *, shard_bytes: int, say: Callable[[str], None]) -> None:
    """safetensors of at most `shard_bytes` each (more for a tensor that is larger), and their index where several."""
    shards = list(_shards(parts, shard_bytes))
    place: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        size = sum(part.nbytes for part in shard.values())
        say(f"{name}: {len(shard):,} tensors, {short(size)}B")
        try:
            save_file(shard, folder / name, metadata={"format": "pt"})
        except SafetensorError as error:  # what an OSError has become inside
            raise RunFailed(f"{name} cannot be written ({error}); nothing was kept") from error
        (folder / name).chmod(0o644)  # safetensors makes it for the owner alone
        place |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(part.nbytes for part in parts.values())
        _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": place})


def _shards(parts: dict[str, Tensor], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, part in parts.items():
        if shard and size + part.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = part.to(torch.float32)
        size += part.nbytes
    yield shard


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
