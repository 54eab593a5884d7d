"""A Hugging Face folder as a checkpoint to start from: `load_path` of a new run.

    OUT/step-00000000/state.pt manifest.json      as the trainer writes them, with the weights alone

- Weights become fp32, as training keeps them, in files beside the result until they are saved: the memory needed does
  not grow with the model.
- An embedding may hold more rows than the tokenizer has ids (padding for a kernel). No text names them, so they are
  cut, and that is told.
- The same proof as for an export: transformers on the folder against our model of the checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor

from moe.data.text.tokenizer import load_tokenizer, vocab_size
from moe.errors import InputError
from moe.export.folders import written_aside
from moe.export.names import hf_parts
from moe.export.proof import prove
from moe.export.settings import from_config
from moe.inference import PREFIX, build_skeleton
from moe.train.checkpoints import SAVED_MARK, folder_name, step_folders, write_checkpoint

TEMPORARY = "tensors"
PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]
IGNORED_NAMES = ("rotary_emb.inv_freq",)  # older files hold the table of rotary embeddings


def import_folder(source: str, *, out: Path, overwrite: bool = False, say: Callable[[str], None] = print) -> Path:
    """Writes the checkpoint of step 0 in `out` and returns its folder.

    Raises:
        InputError: no such folder or hub name, a model that is not of this family, or `out` is there already.
        RunFailed: transformers' logits are not ours, or the disk is full; `out` is then as it was.
    """
    folder = _folder(source)
    content = _read_json(folder / "config.json")
    settings = from_config(content, f"--from-hf ({source})")
    tokenizer = load_tokenizer(str(folder))
    ids = vocab_size(tokenizer)
    if ids > content["vocab_size"]:
        raise InputError(
            f"--from-hf ({source}): its tokenizer has ids up to {ids - 1}, its vocab_size is {content['vocab_size']}"
        )
    if ids < content["vocab_size"]:
        say(f"the embedding has {content['vocab_size']:,} rows, the tokenizer {ids:,} ids; the rest is cut")
    model = build_skeleton(settings, vocab_size=ids, eos_id=tokenizer.eos_token_id)
    max_seq_len = content.get("max_position_embeddings", 2048)
    manifest = {
        "config": {"run_name": out.name, "model": settings, "tokenizer": source, "max_seq_len": max_seq_len},
        "data": "",
        "eos_id": tokenizer.eos_token_id,
        "vocab_size": ids,
        "tokens": 0,
        "imported_from": source,
    }
    with written_aside(out, overwrite=overwrite, replaceable=_only_imported) as aside:
        (aside / TEMPORARY).mkdir()
        weights = read_weights(folder, model.state_dict(), dense=settings["n_experts"] == 1, scratch=aside / TEMPORARY)
        state: dict[str, Tensor] = {PREFIX + name: weight for name, weight in weights.items()}
        shape = (settings["n_layers"], settings["n_experts"])
        state["expert_share_LE"] = torch.full(shape, 1.0 / settings["n_experts"])
        write_checkpoint(aside, 0, {"state": {"model": state}}, manifest)
        say("comparing logits with transformers' ...")
        model.load_state_dict(weights, assign=True)
        say(f"proven: largest difference of a logit {prove(folder, model.eval()):.1e}")
        del weights, state
        shutil.rmtree(aside / TEMPORARY)
    say(f"{out / folder_name(0)} is written; a run that starts from it needs, beside load_path={out}:\n")
    say(yaml.safe_dump({"tokenizer": source, "model": settings}, sort_keys=False))
    return out / folder_name(0)


def _only_imported(out: Path) -> bool:
    """Whether a run folder holds nothing but an import: a trained one is never replaced."""
    names = {path.name for path in out.iterdir()}
    return names <= {folder_name(0), SAVED_MARK} and len(step_folders(out)) == 1


def _folder(source: str) -> Path:
    """The folder of that name, or what the hub has under it."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=PATTERNS))
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"--from-hf ({source}): is no folder, and the hub does not give it ({cause})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"--from-hf: {path} cannot be read ({error})") from None


def read_weights(folder: Path, wanted: dict[str, Tensor], *, dense: bool, scratch: Path) -> dict[str, Tensor]:
    """Our parameters from a folder's safetensors, fp32, each in a file of its own in `scratch`.

    wanted: our names with the shapes they must have.

    Raises:
        InputError: names that are missing, that this model has no place for, or whose shape is another.
    """
    with ExitStack() as stack:
        try:
            files = [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
        except SafetensorError as error:
            raise InputError(f"--from-hf ({folder}): its weights cannot be read ({error})") from None
        place = {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no dict
        needed = {n: s for name, shape in wanted.items() for n, s in hf_parts(name, shape, dense=dense).items()}
        tied = "lm_head.weight" not in needed
        extra = [name for name in place if name not in needed and not name.endswith(IGNORED_NAMES)]
        extra = [name for name in extra if not (tied and name == "lm_head.weight")]
        faults = [f"{name}: is missing" for name in needed if name not in place]
        faults += [f"{name}: has no place in this model" for name in extra]
        for name, part in needed.items():
            found = list(place[name].get_slice(name).get_shape()) if name in place else list(part.shape)
            rows_may_differ = name in ("model.embed_tokens.weight", "lm_head.weight")
            fits = found[0] >= part.shape[0] if rows_may_differ else found[0] == part.shape[0]
            if not fits or found[1:] != list(part.shape[1:]):
                faults.append(f"{name}: has shape {found}, needs {list(part.shape)}")
        if faults:
            more = f"\n  and {len(faults) - 10} more" if len(faults) > 10 else ""
            listed = "\n".join(f"  {fault}" for fault in faults[:10])
            raise InputError(f"--from-hf ({folder}): is no model of this family; its weights differ:\n{listed}{more}")
        weights = {}
        for name, shape in wanted.items():
            weights[name] = _on_disk(scratch / name, shape.shape)
            for theirs, part in hf_parts(name, weights[name], dense=dense).items():
                part.copy_(place[theirs].get_slice(theirs)[: part.shape[0]])
        return weights


def _on_disk(path: Path, shape: torch.Size) -> Tensor:
    """Zeros that live in a file."""
    size = math.prod(shape)
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(shape)
