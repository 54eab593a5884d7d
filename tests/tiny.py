"""A tokenizer, a dataset and a configuration small enough to train in seconds; made, not shipped."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

SHAPE = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "n_kv_heads": 2,
    "n_experts": 4,
    "top_k": 2,
    "expert_hidden": 24,
}
EVERY_OPTION = {  # of the model, beside SHAPE; with a rule of balance
    "n_layers": 3,
    "first_k_dense_replace": 1,
    "dense_hidden": 40,
    "scoring_func": "sigmoid",
    "norm_topk_prob": False,
    "routed_scaling_factor": 2.5,
    "n_shared_experts": 1,
    "partial_rotary_factor": 0.5,
    "qk_norm": "full",
}
RUN_SHAPE = {
    **SHAPE,
    "head_dim": None,
    "qk_norm": True,
    "rope_theta": 10000.0,
    "norm_eps": 1e-6,
    "tie_embeddings": True,
    "document_mask": True,
    "dropout": 0.1,
    "norm_topk_prob": True,
    "balance_loss": 0.01,
    "router_z_loss": 0.001,
    "z_loss": 0.0001,
}

TEXT = "the model reads a token and writes another one while every expert waits for its share of the work"
WORDS = re.findall(r"\w+", TEXT)


def write_text(path: Path, documents: int = 400, seed: int = 0) -> Path:
    """jsonl of documents of 20 to 120 words each."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for number in range(documents):
            text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(20, 120)))
            file.write(json.dumps({"id": f"doc-{number}", "text": text}) + "\n")
    return path


def write_tokenizer(folder: Path, text: Path, size: int = 300) -> Path:
    """A byte-level BPE with EOS `<|endoftext|>`."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    backend = ByteLevelBPETokenizer()
    texts = [json.loads(line)["text"] for line in text.read_text().splitlines()]
    backend.train_from_iterator(texts, vocab_size=size, special_tokens=["<|endoftext|>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=backend._tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)
    return folder


def tiny_config(folder: Path, **changes: object) -> dict:
    """Settings for the data that `make_data` wrote into `folder`; 40 steps of 8 x 32 tokens."""
    config = {
        "run_name": "tiny",
        "max_seq_len": 32,
        "tokenizer": str(folder / "tokenizer"),
        "model": dict(
            d_model=32, n_layers=2, n_heads=2, n_kv_heads=1, n_experts=4, top_k=2, expert_hidden=32, dropout=0.1
        ),
        "optimizer": {"name": "muon", "lr": 5e-3},
        "scheduler": {"name": "cosine_with_warmup", "t_warmup": "1024tok", "alpha_f": 0.1},
        "train_data": {"local": str(folder / "data")},
        "eval_data": {"local": str(folder / "data"), "max_batches": 2},
        "max_duration": "10240tok",
        "global_train_batch_size": 8,
        "precision": "fp32",
        "num_workers": 0,
        "save_folder": str(folder / "runs" / "${run_name}"),
        "save_interval": "10ba",
        "eval_interval": "20ba",
        "log_interval": "1ba",
        "loggers": {"tensorboard": None},
    }
    return {**config, **changes}


def write_config(path: Path, config: dict) -> Path:
    path.write_text(yaml.safe_dump(config))
    return path


def write_run(folder: Path, tokenizer_folder: Path, *, steps: tuple[int, ...] = (10,), **changes: Any) -> Path:
    """A run folder as the trainer leaves it, made without Composer: a checkpoint of each step, of other random weights
    that are large enough to matter, and logged losses. `changes` are of the model.
    """
    import torch

    from moe.data.text.kept_tokenizer import keep_tokenizer
    from moe.data.text.tokenizer import load_tokenizer, vocab_size
    from moe.model import Transformer
    from moe.train.checkpointing.checkpoints import TOKENIZER, write_checkpoint

    settings: dict[str, Any] = {**RUN_SHAPE, **changes}
    tokenizer = load_tokenizer(str(tokenizer_folder))
    size = vocab_size(tokenizer)
    config = {
        "run_name": folder.name,
        "tokenizer": str(tokenizer_folder),
        "max_seq_len": 64,
        "global_train_batch_size": 4,
        "precision": "fp32",
        "model": settings,
        "max_duration": "2560tok",
        "optimizer": {"name": "muon", "lr": 0.001},
        "train_data": {"local": str(folder / "no-data")},
    }
    kept = keep_tokenizer(tokenizer)
    more = {f"{TOKENIZER}/{name}": content for name, content in kept.files.items()}
    manifest = {"config": config, "data": "d", "eos_id": tokenizer.eos_token_id, "vocab_size": size}
    manifest["tokenizer"] = kept.fingerprint
    shape = {
        key: value for key, value in settings.items() if key not in ("balance_loss", "balance_rate", "router_z_loss")
    }
    for step in steps:
        torch.manual_seed(step)
        model = Transformer(vocab_size=size, eos_id=tokenizer.eos_token_id, **shape)
        weights = {
            f"transformer.{name}": weight.uniform_(0.5, 1.5)
            if name.endswith("norm.weight")
            else weight.uniform_(-0.3, 0.3)
            if name.endswith("bias_E")
            else weight * 8
            for name, weight in model.state_dict().items()
        }
        weights["balance.share_LE"] = torch.full((len(model.expert_layers), settings["n_experts"]), 0.25)
        state = {"state": {"model": weights, "timestamp": {}}}
        write_checkpoint(folder, step, state, {**manifest, "tokens": step * 256}, more)
    rows: list[dict] = [{"step": step, "train/loss": 6.0 - step / 10} for step in range(1, 11)]
    for step in (0, 5, 10):
        rows.append({"step": step, "metrics/eval/loss": 6.0 - step / 10, "metrics/eval/bits_per_byte": 2.5})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def divide(folder: Path, count: int = 2) -> None:
    """Makes a checkpoint's folder one of `count` ranks that shared the model: its weights in as many parts, experts
    along their rows.
    """
    from moe.common import ownership
    from moe.train.checkpointing.checkpoints import KIND, commit, load_state, make_aside, read_checkpoint, write_state
    from moe.train.checkpointing.parts import Rows, describe, joined, part_name, write_part

    found = read_checkpoint(folder)
    content = load_state(found.state_file)["state"]
    names = [name for name in content["model"] if not name.endswith(("bias_E", "share_LE"))]
    weights = {f"model.{name}": content["model"].pop(name) for name in names}
    more = {name: (folder / name).read_bytes() for name in found.manifest["files"] if name != "state.pt"}
    aside = make_aside(folder.parent, "writing", found.step)
    ownership.begin(aside, KIND)
    files, described = write_state(aside, {"state": content}, more), []
    for number in range(count):
        part = {}
        for name, weight in weights.items():
            dim = int(weight.ndim == 3)
            chunks = weight.chunk(count, dim)
            if number < len(chunks):
                part[name] = Rows(chunks[number].contiguous(), number * chunks[0].shape[dim], dim)
        described.append(describe(part, {name: [*weight.shape] for name, weight in weights.items()}, part_name(number)))
        files[part_name(number)] = write_part(aside / part_name(number), part)
    shutil.rmtree(folder)
    commit(aside, folder.parent, found.step, {**found.manifest, "tensors": joined(described)}, files)


@contextlib.contextmanager
def in_time(seconds: int = 5) -> Iterator[None]:
    """Fails where the block waits for a pipe that nobody writes into."""

    def late(*args: object) -> None:
        raise AssertionError(f"not done after {seconds} s")  # no OSError: those are caught

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
