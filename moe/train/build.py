"""Config -> objects: what a run is made of. Choices are plain dicts; no object is built in two places."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from composer.core import DataSpec, Evaluator, Event, State
from composer.utils import dist, get_device
from torch.utils.data import DataLoader

from moe.common.errors import InputError
from moe.config import Config, Every, ModelConfig
from moe.data import TextPlan, build_eval_loader, build_text_eval_loader, build_text_loader, build_train_loader
from moe.data.meta import Vocabulary
from moe.data.text.tokenizer import load_tokenizer, token_bytes
from moe.model import Transformer
from moe.model.balance import RULES
from moe.model.documents import document_ends
from moe.model.flops import count_parameters, flops_per_token, model_shape
from moe.optim.groups import build_groups
from moe.optim.muon import Muon
from moe.optim.rates import schedule
from moe.train.composer_model import MoEModel
from moe.train.inputs import streams_of

CPU_TOKENS_PER_MICROBATCH = 4096  # fits the cache and a small machine's memory; larger is no faster there
LOSS_SETTINGS = ("balance_loss", "balance_rate", "router_z_loss")  # of ModelConfig, for MoEModel, not for Transformer


def build_transformer(config: ModelConfig, *, vocab_size: int, eos_id: int, seed: int, **kwargs: Any) -> Transformer:
    """The model with its initial weights, the same on every rank."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k not in LOSS_SETTINGS}
    torch.manual_seed(seed)
    return Transformer(vocab_size=vocab_size, eos_id=eos_id, **settings, **kwargs)


def build_model(config: Config, meta: Vocabulary, tokenizer: str | None = None) -> MoEModel:
    shape = model_shape(config.model, meta.vocab_size)
    transformer = build_transformer(
        config.model,
        vocab_size=meta.vocab_size,
        eos_id=meta.eos_id,
        seed=config.seed,
        activation_checkpointing=config.activation_checkpointing,
    )
    if wants_compile(config.compile, on_gpu=torch.cuda.is_available()):
        check_compiler(config.compile)
        transformer.compile_blocks()
    return MoEModel(
        transformer,
        balance=RULES[config.model.balance](
            n_layers=config.model.n_layers,
            n_experts=config.model.n_experts,
            weight=config.model.balance_loss or 0.0,
            rate=config.model.balance_rate,
        ),
        router_z_loss=config.model.router_z_loss,
        flops_per_token=flops_per_token(**shape, seq_len=config.max_seq_len),
        token_bytes=token_bytes(load_tokenizer(tokenizer or config.tokenizer)),
    )


def wants_compile(setting: bool | str, *, on_gpu: bool) -> bool:
    """What `compile` means on this device: a GPU's compiler is Triton; on CPU 4% at best, for a slow start."""
    if setting == "auto":
        return on_gpu and importlib.util.find_spec("triton") is not None
    return bool(setting)


def check_compiler(setting: bool | str) -> None:
    """Raises:
    InputError: `compile` wants blocks compiled on the CPU, and Inductor would find no C++ compiler.
    """
    if torch.cuda.is_available() or not wants_compile(setting, on_gpu=False):
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):  # OSError: there is a file of that name which cannot be run
        wanted = os.environ.get("CXX", "g++")
        raise InputError(
            f"compile (true) needs a C++ compiler, and {wanted} does not run here; install g++, name another one in "
            "the variable CXX, or set compile=false"
        ) from None


def build_optimizer(config: Config, model: MoEModel) -> tuple[Muon, list[dict[str, Any]]]:
    """The optimizer, and its groups as the config wants them (a checkpoint brings back those it was saved with)."""
    settings = config.optimizer
    groups = build_groups(
        model.transformer,
        name=settings.name,
        lr=settings.lr,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        momentum_dtype=settings.momentum_dtype,
        adjust_lr_fn=settings.adjust_lr_fn,
        adamw_lr=settings.adamw.lr,
        betas=settings.adamw.betas,
        eps=settings.adamw.eps,
    )
    wanted = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    return Muon(groups), wanted


def build_schedule(config: Config) -> partial[float]:
    """Factor of the base learning rate as a function of `done`, in the unit of `max_duration`."""
    return schedule(dataclasses.asdict(config))


def microbatch_size(config: Config, world_size: int, on_gpu: bool) -> int | str:
    """Sequences per forward pass: as set; `auto` is found by a trial on GPU, and computed from max_seq_len on CPU."""
    rank_batch = config.global_train_batch_size // world_size
    size = config.device_train_microbatch_size
    if size == "auto":
        return "auto" if on_gpu else max(1, min(rank_batch, CPU_TOKENS_PER_MICROBATCH // config.max_seq_len))
    return min(int(size), rank_batch)


def build_train_spec(config: Config, meta: Vocabulary, world_size: int, text: TextPlan | None = None) -> DataSpec:
    """Training batches with their position. `text` where the config has `train_data.text`."""
    transforms = batch_transforms(config, meta, on_gpu=torch.cuda.is_available())
    if text is not None:
        return _build_text_spec(config, text, world_size, transforms)
    loader = build_train_loader(
        streams_of(config.train_data),
        shuffle=config.train_data.shuffle,
        seed=config.seed,
        device_batch_size=config.global_train_batch_size // world_size,
        num_workers=config.num_workers,
        cache_limit=config.train_data.cache_limit,
        **_contents(config, meta),
    )
    return DataSpec(loader, batch_transforms=transforms, **COUNTING)


def batch_transforms(config: Config, meta: Vocabulary, *, on_gpu: bool) -> Callable[[Any], Any]:
    """What is done with a batch before it leaves for the device: for a GPU, its documents are counted."""

    def add_document_ends(batch: Any) -> Any:
        return {**batch, "document_ends": document_ends(batch["tokens"], meta.eos_id)}

    return add_document_ends if on_gpu and config.model.document_mask else lambda batch: batch


def _build_text_spec(config: Config, text: TextPlan, world_size: int, transforms: Callable[[Any], Any]) -> DataSpec:
    loader, rows = build_text_loader(
        text.job,
        device_batch_size=config.global_train_batch_size // world_size,
        num_workers=config.num_workers,
        document_mask=config.model.document_mask,
    )

    def add_over_ranks(positions: torch.Tensor) -> torch.Tensor:
        summed = get_device(None).tensor_to_device(positions)
        dist.all_reduce(summed, reduce_operation="SUM")
        return summed

    def share_positions(batch: Any) -> Any:
        rows.share(add_over_ranks)  # with every batch: a rank that saves may not have to wait for another
        return transforms(batch)

    return DataSpec(
        loader,
        batch_transforms=share_positions if world_size > 1 else transforms,
        **COUNTING,
    )


def build_evaluators(
    config: Config,
    meta: Vocabulary,
    *,
    rank: int,
    world_size: int,
    every: Every,
    microbatch: int,
    text: TextPlan | None = None,
) -> list[Evaluator]:
    """One for each validation set, labelled `eval` or `eval/NAME`. Evaluates at each `eval_interval` and at the last
    step, on the same samples whatever the number of ranks.
    """

    def due(state: State, event: Event) -> bool:
        return event == Event.BATCH_END and every.due(int(state.timestamp.batch))

    data = config.eval_data
    if data is None:
        return []
    share: dict[str, Any] = {
        "device_batch_size": config.global_train_batch_size // world_size,
        "rank": rank,
        "world_size": world_size,
        "max_batches": None if data.max_batches == -1 else data.max_batches,
    }
    if data.text:
        assert text is not None
        loaders = {"": build_text_eval_loader(text, document_mask=config.model.document_mask, **share)}
    else:
        contents = _contents(config, meta)
        loaders = {name: build_eval_loader(spec, **share, **contents) for name, spec in streams_of(data).items()}
    transforms = batch_transforms(config, meta, on_gpu=torch.cuda.is_available())
    return [
        Evaluator(
            label=f"eval/{name}" if name else "eval",
            dataloader=DataSpec(_Batches(loader), batch_transforms=transforms, get_num_tokens_in_batch=_count_unpadded),
            eval_interval=due,
            device_eval_microbatch_size=microbatch,
        )
        for name, loader in loaders.items()
    ]


class _Batches:
    """A loader that already divides its rows among the ranks; Composer would refuse it for want of a sampler."""

    def __init__(self, loader: DataLoader):
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def _contents(config: Config, meta: Vocabulary) -> dict[str, Any]:
    return {
        "seq_len": config.max_seq_len,
        "eos_id": meta.eos_id,
        "vocab_size": meta.vocab_size,
        "document_mask": config.model.document_mask,
    }


def _count_tokens(batch: dict[str, torch.Tensor]) -> int:
    return batch["tokens"].numel()


def _count_samples(batch: dict[str, Any]) -> int:
    return len(batch["tokens"])


# Composer's own count of samples refuses a batch that also holds numbers (composer_model.py: with_global_sizes)
COUNTING: dict[str, Any] = {"get_num_samples_in_batch": _count_samples, "get_num_tokens_in_batch": _count_tokens}


def _count_unpadded(batch: dict[str, torch.Tensor]) -> int:
    """Tokens of the rows that are not there only to fill the last batch: those have no label at all."""
    return int((batch["labels"] != -100).any(-1).sum()) * batch["tokens"].shape[1]


__all__ = [
    "build_evaluators",
    "build_model",
    "build_optimizer",
    "build_schedule",
    "build_train_spec",
    "build_transformer",
    "count_parameters",
    "microbatch_size",
    "model_shape",
]
