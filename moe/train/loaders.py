"""Config -> the loaders of a run, in the form that Composer's Trainer takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from composer.core import DataSpec, Evaluator, Event, State
from composer.utils import dist, get_device
from torch.utils.data import DataLoader

from moe.config import Config
from moe.config.derived import reads_converted
from moe.config.steps import Steps
from moe.data import TextPlan, build_eval_loader, build_text_eval_loader, build_text_loader, build_train_loader
from moe.data.meta import Vocabulary
from moe.data.read.shared_memory import refuse_little
from moe.model.documents import document_ends
from moe.train.distributed.ranks import LOCAL_RANK, MACHINES, RANK, WORLD_SIZE, on_each
from moe.train.inputs import Inputs


def build_train_spec(config: Config, inputs: Inputs, world_size: int) -> DataSpec:
    """Training batches with their position."""
    transforms = batch_transforms(config, inputs, on_gpu=torch.cuda.is_available())
    if inputs.text is not None:
        return _build_text_spec(config, inputs.text, world_size, transforms)
    loader = build_train_loader(
        inputs.train_streams,
        shuffle=config.train_data.shuffle,
        seed=config.seed,
        device_batch_size=config.global_train_batch_size // world_size,
        num_workers=config.num_workers,
        num_canonical_nodes=config.train_data.num_canonical_nodes,
        cache_limit=config.train_data.cache_limit,
        verified=True,  # by check_data
        **_contents(config, inputs),
    )
    return _train_spec(loader, transforms)


def check_shared_memory(config: Config) -> None:
    """Raises InputError on every rank where a machine's /dev/shm has too little room for what the loaders put there."""
    tokens = config.global_train_batch_size * config.max_seq_len // MACHINES
    refuse = partial(refuse_little, tokens, config.num_workers, converted=reads_converted(config))
    on_each(refuse, here=LOCAL_RANK == 0)


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

    return _train_spec(loader, share_positions if world_size > 1 else transforms)


def _train_spec(loader: DataLoader, transforms: Callable[[Any], Any]) -> DataSpec:
    """Composer counts no sequences of a batch that also holds numbers (composer_model.py: with_global_sizes)."""
    return DataSpec(
        loader,
        batch_transforms=transforms,
        get_num_samples_in_batch=lambda batch: len(batch["tokens"]),
        get_num_tokens_in_batch=_count_tokens,
    )


def build_evaluators(config: Config, inputs: Inputs, steps: Steps, microbatch: int) -> list[Evaluator]:
    """One for each validation set, labelled `eval` or `eval/NAME`. Evaluates at each `eval_interval` and at the last
    step, on the same samples whatever the number of ranks.
    """

    every = steps.every(config.eval_interval)

    def due(state: State, event: Event) -> bool:
        return event == Event.BATCH_END and every.due(int(state.timestamp.batch))

    data = config.eval_data
    if data is None:
        return []
    share: dict[str, Any] = {
        "device_batch_size": config.global_train_batch_size // WORLD_SIZE,
        "rank": RANK,
        "world_size": WORLD_SIZE,
        "max_batches": None if data.max_batches == -1 else data.max_batches,
    }
    if data.text:
        assert inputs.text is not None
        loaders = {"": build_text_eval_loader(inputs.text, document_mask=config.model.document_mask, **share)}
    else:
        contents = _contents(config, inputs)
        loaders = {name: build_eval_loader(spec, **share, **contents) for name, spec in inputs.eval_streams.items()}
    transforms = batch_transforms(config, inputs, on_gpu=torch.cuda.is_available())
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


def _count_unpadded(batch: dict[str, torch.Tensor]) -> int:
    """Tokens of the rows that are not there only to fill the last batch: those have no label at all."""
    return int((batch["labels"] != -100).any(-1).sum()) * batch["tokens"].shape[1]
