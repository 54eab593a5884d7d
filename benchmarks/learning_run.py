"""One training run of benchmarks/learning.py: what it is, and its training.

- No Composer: the model, the optimizer and the schedules are this project's, the loop around them is a page. A start
  takes 2 s instead of 11.
- Everything that decides the result stands in `Run` or below as a constant: the same run gives the same losses on the
  same machine with one thread.
- The seed decides the initial weights and the order of the sequences. A run on a share of the tokens sees the first
  part of that order, with a full schedule of its own. A longer one than the data reads them again, each epoch in
  another order.
- Validation is the same tokens for every run, a part of them on the way and all at the end; the token after an EOS is
  no target of it, whatever was trained.
- A result names the commit of the code that made it, and the library that was loaded before all others, if one was:
  MKL gives AMD's CPUs kernels of half the speed, and one line of C takes that back (docs/learning.md). Losses differ in
  rounding.
"""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_parts import Balance, init_by_fan_in, muon_flops
from torch import Tensor

from moe.data.meta import read_meta
from moe.data.read.verify import read_samples
from moe.model import Transformer
from moe.model.flops import count_parameters, flops_per_token
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.optim.schedules import SCHEDULERS

VOCAB_SIZE, SEQ_LEN = 2048, 256
BATCH = 8  # sequences a step: 2,048 tokens
STEPS = 384  # 786,432 tokens at share 1
HEAD_DIM = 32
MICROBATCH = 2  # sequences, where expert shares are those of a microbatch
EVALUATIONS = 6
EVAL_SAMPLES = 160  # of the evaluations on the way, spread evenly over the validation split
ALPHA_F, CLIP, BALANCE_LOSS, ROUTER_Z_LOSS, Z_LOSS = 0.1, 1.0, 0.01, 0.001, 1e-4  # the yamls' own values
LINEAR_ALPHA_F = 0.05
SCHEDULES = {"cosine": ("cosine_with_warmup", ALPHA_F), "linear": ("linear_decay_with_warmup", LINEAR_ALPHA_F)}


@dataclass(frozen=True, kw_only=True)
class Run:
    """share: of STEPS with BATCH sequences. batch: sequences a step. warmup: share of the run. balance: whose expert
    shares weigh the balance loss; `lagged` (the previous step's, ours), `microbatch`, or `running` (mean over the
    step's microbatches so far); `quantile`: no loss, but sigmoid scores and a bias by the rule of that name.
    expert_hidden is that of one expert. adamw_ratio: under Muon, the rate of what AdamW updates over Muon's own.
    router: what updates the router in a run with Muon; `muon` is the trainer's own choice. start: initial weights;
    another word than `random` names those that the caller of `train` gives. schedule: `cosine` down to ALPHA_F, or
    `linear` down to LINEAR_ALPHA_F. init: `fixed` is the trainer's own, `fan_in` that of `init_by_fan_in`. n_kv_heads:
    0 is half of the heads.
    """

    optimizer: str
    lr: float
    seed: int = 0
    share: float = 1.0
    warmup: float = 0.1
    beta2: float = 0.95
    weight_decay: float = 0.1
    adamw_ratio: float = 1.0
    router: str = "adamw"
    d_model: int = 64
    n_experts: int = 8
    top_k: int = 2
    expert_hidden: int = 128
    document_mask: bool = True
    qk_norm: bool = True
    balance: str = "lagged"
    n_layers: int = 4
    batch: int = BATCH
    start: str = "random"
    schedule: str = "cosine"
    init: str = "fixed"
    n_kv_heads: int = 0
    n_shared_experts: int = 0

    @cached_property
    def name(self) -> str:
        """What it is, in a file's name: optimizer, rate, seed, and whatever differs from the defaults."""
        parts = [self.optimizer, f"lr{self.lr:g}"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("optimizer", "lr", "seed") and value != field.default:
                parts.append(f"{field.name}{value:g}" if isinstance(value, float) else f"{field.name}{value}")
        return "-".join([*parts, f"seed{self.seed}"])

    @property
    def steps(self) -> int:
        return round(self.share * STEPS * BATCH / self.batch)

    @property
    def tokens(self) -> int:
        return self.steps * self.batch * SEQ_LEN

    def shape(self, vocab_size: int) -> dict[str, Any]:
        heads = self.d_model // HEAD_DIM
        return {
            "vocab_size": vocab_size,
            "d_model": self.d_model,
            "n_layers": self.n_layers,
            "n_heads": heads,
            "n_kv_heads": self.n_kv_heads or max(1, heads // 2),
            "n_experts": self.n_experts,
            "top_k": self.top_k,
            "expert_hidden": self.expert_hidden,
            "qk_norm": self.qk_norm,
            "n_shared_experts": self.n_shared_experts,
        }


@dataclass(frozen=True)
class Data:
    """Rows of tokens [n, SEQ_LEN]."""

    train: np.ndarray
    val: np.ndarray
    vocab_size: int
    eos_id: int

    def labels(self, rows: np.ndarray, *, after_eos: bool) -> tuple[Tensor, Tensor]:
        tokens = torch.from_numpy(rows.astype(np.int64))
        labels = tokens.clone()
        if not after_eos:
            labels[:, 1:][tokens[:, :-1] == self.eos_id] = -100
        return tokens, labels


def open_data(folder: Path) -> Data:
    meta = read_meta(folder)
    splits = {split: read_samples(folder / split, 0, meta.samples[split]) for split in ("train", "val")}
    return Data(splits["train"], splits["val"], meta.vocab_size, meta.eos_id)


def commit() -> str:
    """Of the code that runs, marked by a + where it holds changes that are in none; "" outside of a checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "moe", "benchmarks")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")


def data_order(n_rows: int, wanted: int, seed: int) -> np.ndarray:
    """Which rows are read, one after another: int [wanted], epoch by epoch, each in an order of its own."""
    random = np.random.default_rng(seed)
    epochs = [random.permutation(n_rows) for _ in range(math.ceil(wanted / n_rows))]
    return np.concatenate(epochs)[:wanted]


def optimizer_groups(model: Transformer, run: Run) -> list[dict[str, Any]]:
    groups = build_groups(
        model,
        name=run.optimizer,
        lr=run.lr,
        weight_decay=run.weight_decay,
        adamw_lr=run.lr * run.adamw_ratio,
        betas=(0.9, run.beta2),
    )
    if run.optimizer == "muon" and run.router == "adamw":
        by_name = {group["name"]: group for group in groups}
        routers = {id(moe.router.weight) for moe in model.expert_layers}
        by_name["adamw"]["params"] += [p for p in by_name["muon"]["params"] if id(p) in routers]
        by_name["muon"]["params"] = [p for p in by_name["muon"]["params"] if id(p) not in routers]
    return groups


@torch.no_grad()
def evaluate(model: Transformer, data: Data, most: int | None = None) -> float:
    """Mean negative log likelihood in nats; with `most`, of so many sequences, spread evenly."""
    chosen = np.linspace(0, len(data.val) - 1, min(most or len(data.val), len(data.val))).astype(int)
    rows, nll, targets = data.val[chosen], 0.0, 0
    for start in range(0, len(rows), BATCH):
        parts = model(*data.labels(rows[start : start + BATCH], after_eos=False))
        nll, targets = nll + float(parts.nll), targets + int(parts.targets)
    return nll / targets


def build(run: Run, data: Data) -> Transformer:
    """The model of a run, with the weights of its seed."""
    settings: dict[str, Any] = {"eos_id": data.eos_id, "document_mask": run.document_mask, "z_loss": Z_LOSS}
    if run.balance == "quantile":
        settings |= {"scoring_func": "sigmoid", "balance": "quantile"}
    model = Transformer(**run.shape(data.vocab_size), **settings, seed=run.seed)
    if run.init == "fan_in":
        init_by_fan_in(model)
    return model


def train(run: Run, data: Data, order: np.ndarray | None = None, model: Transformer | None = None) -> dict[str, Any]:
    """Trains from the start and returns what is kept of it: settings, sizes, curve, final loss, expert loads.

    order: rows of `data.train` as they are read, where it is not that of the seed. model: of the run's shape, to be
    trained further in place, where it is not `build(run, data)`.
    """
    torch.set_num_threads(1)
    shape, made_by = run.shape(data.vocab_size), commit()
    model = build(run, data) if model is None else model
    optimizer = Muon(optimizer_groups(model, run))
    schedule, alpha_f = SCHEDULES[run.schedule]
    base_rates = [group["lr"] for group in optimizer.param_groups]
    order = data_order(len(data.train), run.steps * run.batch, run.seed) if order is None else order
    balance = Balance(run.balance, model)
    microbatch = min(run.batch, BATCH if run.balance in ("lagged", "quantile") else MICROBATCH)
    evaluate_at = {round(run.steps * i / EVALUATIONS) for i in range(1, EVALUATIONS + 1)}
    curve: list[list[float]] = []
    late_counts_LE = torch.zeros(run.n_layers, run.n_experts)
    began = time.process_time()
    for step in range(1, run.steps + 1):
        rows = data.train[order[(step - 1) * run.batch : step * run.batch]]
        tokens, labels = data.labels(rows, after_eos=not run.document_mask)
        targets = int((labels[:, 1:] != -100).sum())
        for start in range(0, run.batch, microbatch):
            part = slice(start, start + microbatch)
            parts = model(tokens[part], labels[part])
            router = BALANCE_LOSS * balance.loss(parts) + ROUTER_Z_LOSS * parts.routers.z.sum()
            (parts.loss / targets + router / tokens.numel()).backward()
        counts_LE = balance.end_step()
        late_counts_LE += counts_LE * (step > run.steps * (1 - 1 / EVALUATIONS))
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        factor = SCHEDULERS[schedule](step, total=run.steps, warmup=run.warmup * run.steps, alpha_f=alpha_f)
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
        optimizer.zero_grad()
        if step in evaluate_at:
            curve.append([step * run.batch * SEQ_LEN, round(evaluate(model, data, EVAL_SAMPLES), 7)])
    load_LE = late_counts_LE / late_counts_LE.mean(-1, keepdim=True)
    count = count_parameters(**shape)
    final = round(evaluate(model, data), 7)
    return {
        **dataclasses.asdict(run),
        "commit": made_by,
        "steps": run.steps,
        "tokens": run.tokens,
        "tokens_per_step": run.batch * SEQ_LEN,
        "parameters": count.total,
        "active": count.active,
        "flops": flops_per_token(**shape, seq_len=SEQ_LEN) * run.tokens,
        "optimizer_flops": muon_flops(optimizer) * run.steps,
        "curve": curve,
        "final": final if math.isfinite(final) else None,
        "expert_load": [round(float(load_LE.min()), 3), round(float(load_LE.max()), 3)],
        "cpu_seconds": round(time.process_time() - began, 1),
        "torch": torch.__version__,
        "preload": Path(os.environ.get("LD_PRELOAD", "")).name,
    }
