"""The model card: what the run's own files say about data, tokens, recipe, curves and validation loss.

- Nothing is asked for and nothing guessed: what is not in the manifest, metrics.jsonl or the data's meta.json is left
  out. The licence is the publisher's to add.
- A setting that was changed during the run is reported with the steps for which each of its values was in force.
- The card is for others: of a path of this machine only the last part stands in it.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, TypedDict

from moe.common.typed_json import parse_json
from moe.common.units import short
from moe.config.former import model_settings
from moe.data.meta import Meta
from moe.data.read.fingerprint import meta_of
from moe.model.flops import count_parameters
from moe.train.checkpointing.checkpoints import Checkpoint
from moe.use.export.card_tasks import tasks_section

CURVES = "curves.png"
SHAPE = (
    "d_model",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "n_experts",
    "top_k",
    "expert_hidden",
    "head_dim",
    "n_shared_experts",
    "first_k_dense_replace",
    "dense_hidden",
    "qk_norm",
    "tie_embeddings",
)
COMPUTED = ("partial_rotary_factor", "scoring_func", "norm_topk_prob", "routed_scaling_factor")
RECIPE = (
    "max_duration",
    "global_train_batch_size",
    "max_seq_len",
    "optimizer",
    "scheduler",
    "gradient_clip_norm",
    "precision",
    "seed",
)
MUON_ALONE = ("momentum", "momentum_dtype", "adjust_lr_fn")  # of `optimizer`
NOT_FOR_OTHERS = ("alert_command", "load_path", "loggers", "save_folder", "tokenizer", "versions")  # beside the recipe
RECIPE_OF_MODEL = ("document_mask", "dropout", "balance", "balance_rate", "balance_loss", "router_z_loss", "z_loss")


def write_card(folder: Path, checkpoint: Checkpoint) -> None:
    """README.md and, where the run logged losses, curves.png."""
    config = checkpoint.manifest["config"]
    rows = read_rows(checkpoint.path.parent / "metrics.jsonl", checkpoint.step)
    pictured = draw_curves(folder / CURVES, rows, config)
    metas = _metas(config.get("train_data", {}), checkpoint.manifest["data"])
    sections = [_front(metas), _head(checkpoint), _data(checkpoint, metas)]
    if "max_duration" in config:
        sections += [_recipe(checkpoint), *_other_changes(checkpoint)]
    if evaluations := _evaluations(rows):
        sections.append(evaluations)
    sections += tasks_section(rows, config)
    if pictured:
        sections.append(f"## Curves\n\n![Training and validation loss over tokens]({CURVES})")
    sections.append(_use(config.get("run_name", "model")))
    (folder / "README.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


class Row(TypedDict):
    step: int


def read_rows(path: Path, last_step: int) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl up to `last_step`; none where there is no such file."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = parse_json(line, Row)
        except ValueError:  # a last line that a kill left half written
            continue
        if row["step"] <= last_step:
            rows.append(row)
    return rows


def _series(rows: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(row["step"], row[key]) for row in rows if isinstance(row.get(key), float)]


def _evaluators(rows: list[dict[str, Any]]) -> list[str]:
    """Names of what was evaluated, as they stand in metrics/NAME/loss."""
    keys = {key for row in rows for key in row if key.startswith("metrics/") and key.endswith("/loss")}
    return sorted(key.removeprefix("metrics/").removesuffix("/loss") for key in keys)


def draw_curves(path: Path, rows: list[dict[str, Any]], config: dict[str, Any]) -> bool:
    """Training and validation loss over tokens; False, and no file, where none was logged."""
    lines = [("training", _series(rows, "train/loss"), "-")]
    lines += [(f"validation, {name}", _series(rows, f"metrics/{name}/loss"), "o-") for name in _evaluators(rows)]
    lines = [line for line in lines if line[1]]
    if not lines:
        return False
    from matplotlib.figure import Figure

    tokens_per_step = config["global_train_batch_size"] * config["max_seq_len"]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, points, style in lines:
        axes.plot([step * tokens_per_step for step, _ in points], [loss for _, loss in points], style, label=label)
    axes.set(xlabel="tokens", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    return True


def _metas(train_data: dict[str, Any], trained_on: str) -> list[Meta]:
    """The descriptions of the training data, as far as these are still where the run read them."""
    streams = list((train_data.get("streams") or {"": train_data}).values())
    found = [meta_of(stream["local"], trained_on) for stream in streams if stream.get("local")]
    return [meta for meta in found if meta is not None]


def _front(metas: list[Meta]) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "tags:", "- pretrained"]
    hub = sorted({meta.dataset for meta in metas if meta.revision is not None})  # only data from the hub has one
    lines += ["datasets:", *(f"- {name}" for name in hub)] if hub else []
    return "\n".join([*lines, "---"])


def _head(checkpoint: Checkpoint) -> str:
    config, manifest = checkpoint.manifest["config"], checkpoint.manifest
    model = model_settings(config["model"])
    shape = {key: model[key] for key in SHAPE}
    count = count_parameters(vocab_size=manifest["vocab_size"], **shape)
    kind = "A dense" if shape["n_experts"] == 1 else "A Mixture-of-Experts"
    experts = "" if shape["n_experts"] == 1 else f" ({shape['n_experts']} experts in each layer, top {shape['top_k']})"
    active = "" if shape["n_experts"] == 1 else f", {count.active:,} of them active for each token{experts}"
    return (
        f"# {config.get('run_name', 'model')}\n\n"
        f"{kind} language model of {count.total:,} parameters{active}, after step {checkpoint.step:,}: "
        f"{short(checkpoint.tokens)} tokens of pretraining. A base model: it continues text and was not taught to "
        "follow instructions.\n\n"
        + _table({**shape, **{key: model[key] for key in COMPUTED}, "vocabulary": manifest["vocab_size"]})
    )


def _data(checkpoint: Checkpoint, metas: list[Meta]) -> str:
    lines = [f"## Data\n\nTokenizer: `{without_place(checkpoint.manifest['config']['tokenizer'])}`."]
    if text := checkpoint.manifest["config"].get("train_data", {}).get("text"):
        lines.append(f"`{without_place(text['dataset'])}`, tokenised as it was read.")
    for meta in metas:
        name = (
            (meta.dataset if meta.revision else without_place(meta.dataset))
            + (f", {meta.config}" if meta.config else "")
            + f", {meta.split}"
        )
        documents, tokens = meta.documents.get("train", 0), meta.tokens.get("train", 0)
        revision = f", revision `{meta.revision}`" if meta.revision else ""
        lines.append(
            f"`{name}`{revision}: {documents:,} documents, {tokens:,} tokens to train on, packed into sequences of "
            f"{meta.seq_len}; a share of {meta.val_fraction:g} of the documents was held out for validation."
        )
    return "\n\n".join(lines)


def _recipe(checkpoint: Checkpoint) -> str:
    config = checkpoint.manifest["config"]
    flat = {"tokens seen": f"{checkpoint.tokens:,}"}
    for key in RECIPE:
        flat |= _flat(key, config.get(key))
    if flat.get("optimizer.name") == "adamw":
        flat = {key: value for key, value in flat.items() if key.removeprefix("optimizer.") not in MUON_ALONE}
    flat |= {f"model.{key}": config["model"].get(key) for key in RECIPE_OF_MODEL}
    for key in [key for key in _changed(checkpoint) if not key.startswith("versions.")]:
        if _in_recipe(key):
            flat[key] = _by_steps(checkpoint, key)
    found = checkpoint.manifest.get("versions", {})
    of_steps = {
        name: _by_steps(checkpoint, key) for name in found if (key := f"versions.{name}") in _changed(checkpoint)
    }
    versions = ", ".join(f"{name} {of_steps.get(name, version)}" for name, version in found.items())
    return f"## Recipe\n\n{_table(flat)}\n\nTrained with {versions}."


def _changed(checkpoint: Checkpoint) -> dict[str, list[dict[str, Any]]]:
    """The changes of each setting that had some on the way to the checkpoint, oldest first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for change in checkpoint.manifest.get("changes") or []:
        if change["step"] < checkpoint.step:  # a later one has trained no step of it
            found.setdefault(change["key"], []).append(change)
    return found


def _in_recipe(key: str) -> bool:
    section, _, name = key.partition(".")
    return section in RECIPE or (section == "model" and name in RECIPE_OF_MODEL)


def _by_steps(checkpoint: Checkpoint, key: str) -> str:
    """`0.004 (steps 1 to 10), 0.001 (from step 11)`."""
    changes = _changed(checkpoint)[key]
    parts, first = [], 1
    for change in changes:
        if change["step"] >= first:  # else no step was trained with it
            parts.append(f"{_value(change['was'])} (steps {first:,} to {change['step']:,})")
        first = change["step"] + 1
    return ", ".join([*parts, f"{_value(changes[-1]['now'])} (from step {first:,})"])


def _other_changes(checkpoint: Checkpoint) -> list[str]:
    """What was changed in mid-run beside the recipe and beside what is of one machine or person."""
    rows = []
    for key in _changed(checkpoint):
        if not _in_recipe(key) and key.split(".")[0] not in NOT_FOR_OTHERS:
            rows.append(f"| {key} | {_by_steps(checkpoint, key)} |")
    if not rows:
        return []
    return ["## Changed during the run\n\n" + "\n".join(["| setting | values |", "|---|---|", *rows])]


def _value(value: Any) -> str:
    return without_place(value) if isinstance(value, str) else json.dumps(value)


def without_place(text: str) -> str:
    """A name as it is; of a path of this machine its last part. Datasets that were given together stand one by one."""
    return _last_part(text) if Path(text).exists() else " ".join(_last_part(part) for part in text.split(" "))


def _last_part(text: str) -> str:
    parts = re.split(r"[\\/]", text.rstrip("\\/"))
    own = len(parts) > 2 or parts[0] in ("", "~", ".", "..") or Path(text).exists()  # the hub's names are OWNER/NAME
    return parts[-1] if own else text


def _flat(key: str, value: Any) -> dict[str, Any]:
    """Settings under their full names, as `optimizer.adamw.lr`."""
    if not isinstance(value, dict):
        return {key: value}
    return {name: part for inner in value for name, part in _flat(f"{key}.{inner}", value[inner]).items()}


def _evaluations(rows: list[dict[str, Any]]) -> str:
    lines = []
    for name in _evaluators(rows):
        step, loss = (_series(rows, f"metrics/{name}/loss") or [(0, math.nan)])[-1]
        if math.isnan(loss):
            continue
        bits = dict(_series(rows, f"metrics/{name}/bits_per_byte")).get(step)
        bits_cell = "" if bits is None else f"{bits:.4f}"
        lines.append(f"| {name} | {step:,} | {loss:.4f} | {math.exp(min(loss, 700)):.4g} | {bits_cell} |")
    if not lines:
        return ""
    head = "| data | step | loss (nats per token) | perplexity | bits per byte |\n|---|---|---|---|---|"
    return "## Validation\n\n" + "\n".join([head, *lines])


def _use(run_name: str) -> str:
    return f"""## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "{run_name}"  # where this folder lies, or its hub name
tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
tokens = tokenizer("Once upon a time", return_tensors="pt", add_special_tokens=False)
print(tokenizer.decode(model.generate(**tokens, max_new_tokens=50)[0]))
```"""


def _table(values: dict[str, Any]) -> str:
    """Rows of name and value; what is not set has none."""
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    rows = [f"| {key} | {value} |" for key, value in shown.items() if value != "null"]
    return "\n".join(["| | |", "|---|---|", *rows])
