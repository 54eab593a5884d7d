"""A Hugging Face folder as a checkpoint to start from: `load_path` of a new run.

    OUT/step-00000000/      as ranks that share a model write it, with the weights alone (step_zero.py)

- Weights become fp32, as training keeps them, one parameter after the other: the memory needed does not grow with the
  number of layers.
- An embedding may hold more rows than the tokenizer has ids (padding for a kernel). No text names them, so they are
  cut, and that is reported.
- A dense model may become a Mixture of Experts on the way (upcycle.py).
- The same verification as for an export: transformers on the folder against our model of the checkpoint, of as many
  layers as memory should hold (first_layers.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from moe.common.errors import InputError
from moe.common.typed_json import parse_json
from moe.common.units import short, show
from moe.data.hub_client import carefully
from moe.data.text.kept_tokenizer import keep_tokenizer
from moe.data.text.tokenizer import is_hub_name, load_tokenizer, vocab_size
from moe.model.families.table import complete
from moe.train.checkpointing.checkpoints import MANIFEST, TOKENIZER, folder_name, step_folders
from moe.use.export import first_layers
from moe.use.export.folders import written_aside
from moe.use.export.hf_weights import HubWeights, check_sizes, not_read, opened
from moe.use.export.settings import from_config
from moe.use.export.step_zero import read_back, write_step_zero
from moe.use.export.upcycle import Recipe, Upcycled, upcycled_settings
from moe.use.export.verify import CannotLoad, verify_import, verify_logits, verify_weights
from moe.use.inference import build_skeleton

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]


def import_folder(
    source: str,
    *,
    out: Path,
    recipe: Recipe | None = None,
    overwrite: bool = False,
    say: Callable[[str], None] = show,
) -> Path:
    """Writes the checkpoint of step 0 in `out` and returns its folder. recipe: what is made of a dense model, see
    upcycle.py.

    Raises:
        InputError: no such folder or hub name, a model that is not of this family, `out` is there already, or no space.
        RunFailed: transformers' logits are not ours. Whatever is raised, `out` is as it was.
    """
    folder = _folder(source)
    content = _read_json(folder / "config.json")
    settings, family = from_config(content, f"--from-hf ({source})")
    with opened(folder) as place:
        check_sizes(place, content, complete(settings), family, f"--from-hf ({source})")
    if other := not_read(folder):
        say(f"not read, as transformers does not: {', '.join(other)}")
    tokenizer = load_tokenizer(str(folder))
    kept, ids = keep_tokenizer(tokenizer), vocab_size(tokenizer)
    if ids > content["vocab_size"]:
        raise InputError(
            f"--from-hf ({source}): its tokenizer has ids up to {ids - 1}, its vocab_size is {content['vocab_size']}"
        )
    if ids < content["vocab_size"]:
        say(f"the embedding has {content['vocab_size']:,} rows, the tokenizer {ids:,} ids; the rest is cut")
    sizes = {"vocab_size": ids, "eos_id": tokenizer.eos_token_id}
    read = build_skeleton(settings, **sizes)
    model = read
    if recipe is not None:
        settings = upcycled_settings(settings, recipe, source)
        model = build_skeleton(settings, **sizes)
    max_seq_len = content.get("max_position_embeddings", 2048)
    manifest = {
        "config": {"run_name": out.name, "model": settings, "tokenizer": source, "max_seq_len": max_seq_len},
        "data": "",
        **sizes,
        "tokens": 0,
        "tokenizer": kept.fingerprint,
        "imported_from": source,
    }
    with written_aside(out, overwrite=overwrite, kind="import") as aside, opened(folder) as place:
        weights: Mapping[str, Tensor] = HubWeights(place, read.state_dict(), family, f"--from-hf ({folder})")
        if recipe is not None:
            weights = Upcycled(weights, model.state_dict(), recipe)
        shape = (len(model.expert_layers), settings["n_experts"])
        share = {"balance.share_LE": torch.full(shape, 1.0 / settings["n_experts"])}
        more = {f"{TOKENIZER}/{name}": content for name, content in kept.files.items()}
        write_step_zero(aside, weights, dict(model.named_parameters()), share, manifest, more)
        say("reading it back, comparing logits with transformers' ...")
        with read_back(aside / folder_name(0)) as written:
            verify_import(written, place, family) if recipe is None else verify_weights(written, weights)
            layers = first_layers.layers_that_fit(model.state_dict(), complete(settings))
            first = build_skeleton({**settings, "n_layers": layers}, **sizes)
            first.load_state_dict({name: written[name] for name in first.state_dict()}, assign=True)
        with tempfile.TemporaryDirectory(dir=aside) as scratch:
            compared, which = folder, ""
            if layers < settings["n_layers"]:
                compared = Path(scratch) / folder.resolve().name
                first_layers.write_first_layers(folder, place, content, layers, compared)
                which = f", of the first {layers} of {settings['n_layers']} layers ({short(first_layers.MOST)}B)"
            try:
                difference = verify_logits(compared, first.eval())
            except CannotLoad as error:  # the folder is the user's here
                raise InputError(f"--from-hf ({source}): {error}") from error
        say(f"verified: max logit difference {difference:.1e} of the largest logit{which}")
    say(f"{out / folder_name(0)} is written; a run that starts from it needs, beside load_path={out}:\n")
    say(yaml.safe_dump({"tokenizer": source, "model": settings}, sort_keys=False))
    return out / folder_name(0)


def _folder(source: str) -> Path:
    """The folder of that name, or what the hub has under it."""
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            ours = step_folders(Path(source)) or (Path(source) / MANIFEST).is_file()
            own = f"; to continue a run of this trainer: load_path={source}" if ours else ""
            raise InputError(f"--from-hf ({source}): holds no config.json, so it is not a Hugging Face folder{own}")
        return Path(source)
    if not is_hub_name(source):
        raise InputError(f"--from-hf ({source}): there is no such folder")
    from huggingface_hub import snapshot_download

    try:
        return Path(carefully(source, lambda: snapshot_download(source, allow_patterns=PATTERNS)))
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"--from-hf ({source}): is not a folder, and the hub does not give it ({cause})") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return parse_json(path.read_bytes(), dict)
    except (OSError, ValueError) as error:
        raise InputError(f"--from-hf: {path} cannot be read ({error})") from None
