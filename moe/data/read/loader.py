"""Batches of converted folders, for training and for evaluation.

- Training order is a function of (seed, epoch, global batch), `num_canonical_nodes` and the window (order.py), and an
  epoch is cut to complete global batches, so no sequence is repeated to fill one. Ranks, nodes and workers only divide
  the work.
- Batches and the order of evaluation are those of batches.py.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from moe.common.errors import InputError
from moe.data.read.batches import Collate, eval_batches, start_worker
from moe.data.read.dataset import TokenDataset
from moe.data.read.mixture import StreamSpec, epoch_samples
from moe.data.read.shared_prefix import one_prefix, with_a_free_number
from moe.data.read.stock import DEFAULT_TIMEOUT, StreamingDataLoader, World
from moe.data.read.stream import TokenStream
from moe.data.read.verify import verify_split
from moe.data.read.waiting import WaitingLoader

SHUFFLE_BLOCK = 1 << 18  # sequences, of py1e, for runs that were begun with it; Streaming's own least value


class TrainLoader(WaitingLoader, StreamingDataLoader):
    """Streaming's, whose waiting is measured."""


def open_stream(spec: StreamSpec, *, verified: bool = False) -> tuple[TokenStream, int]:
    """The split as Streaming sees it, and its number of sequences. Fetches index.json from `remote` where it is not
    there yet. Its names become paths below `local`, and those of further downloads.

    Raises InputError naming the shards that are missing or of the wrong size, where the data is to be read from
    `local` alone.
    """
    folder = os.path.join(spec.local, spec.split)
    if spec.remote is None and not verified:
        errors = verify_split(folder)
        if errors:
            more = f"\n  and {len(errors) - 5} more" if len(errors) > 5 else ""
            raise InputError(f"{folder} cannot be read; restore or convert again:\n  " + "\n  ".join(errors[:5]) + more)
    stream = TokenStream(
        local=spec.local,
        remote=spec.remote,
        split=spec.split,
        download_retry=2,
        download_timeout=DEFAULT_TIMEOUT,
        validate_hash="xxh64" if spec.remote is not None else None,
    )
    try:
        samples = sum(len(shard) for shard in stream.get_shards(World.detect(), False))
    except InputError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{spec.remote}/{spec.split}/index.json cannot be fetched ({error}); check the remote and the network"
        ) from error
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder}/index.json: not an MDS index ({reason}); restore it or convert again") from None
    if not samples:
        raise InputError(
            f"{folder} holds no sequences; convert more text, or with a larger --val-fraction where this is val"
        )
    return stream, samples


def open_dataset(**settings: Any) -> TokenDataset:
    """A TokenDataset. Each try has streams of its own, because Streaming writes their weights into them and takes no
    stream that has them.
    """

    def attempt() -> TokenDataset:
        with one_prefix():
            return TokenDataset(**{**settings, "streams": [copy.copy(stream) for stream in settings["streams"]]})

    return with_a_free_number(attempt)


def build_train_loader(
    specs: Mapping[str, StreamSpec],
    *,
    seq_len: int,
    eos_id: int,
    vocab_size: int,
    document_mask: bool,
    device_batch_size: int,
    seed: int,
    num_workers: int,
    shuffle: bool = True,
    num_canonical_nodes: int = 1,
    cache_limit: int | str | None = None,
    multiprocessing_context: str | None = None,
    verified: bool = False,
) -> TrainLoader:
    """Training batches of `device_batch_size` rows for this rank. `state_dict`/`load_state_dict` hold the position.

    specs: one folder, or the streams of a mixture by name; their order does not matter.
    num_canonical_nodes: stripes of the order, a divisor of the global batch; more than 1 lets several nodes fetch
    different shards from `remote`. verified: the sizes of all shards were, a moment ago: of 30,000 it takes a second.
    Raises InputError for data that cannot be used, or fewer sequences than one global batch.
    """
    global_batch = device_batch_size * World.detect().num_ranks
    if global_batch % num_canonical_nodes:
        raise InputError(
            f"num_canonical_nodes ({num_canonical_nodes}) does not divide the global batch ({global_batch}); use 1"
        )
    opened = {name: open_stream(spec, verified=verified) for name, spec in sorted(specs.items())}
    counts = epoch_samples(specs, {name: samples for name, (_, samples) in opened.items()}, global_batch=global_batch)
    for name, (stream, _) in opened.items():
        stream.choose = counts[name]
    dataset = open_dataset(
        seq_len=seq_len,
        vocab_size=vocab_size,
        streams=[stream for stream, _ in opened.values()],
        batch_size=device_batch_size,
        shuffle=shuffle,
        shuffle_algo="py1e",
        shuffle_seed=seed,
        shuffle_block_size=SHUFFLE_BLOCK,
        num_canonical_nodes=num_canonical_nodes,
        cache_limit=cache_limit,
    )
    return TrainLoader(
        dataset,
        batch_size=device_batch_size,
        num_workers=num_workers,
        collate_fn=Collate(seq_len=seq_len, eos_id=eos_id, document_mask=document_mask),
        drop_last=True,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_worker,
        persistent_workers=False,
        multiprocessing_context=multiprocessing_context if num_workers else None,
    )


def build_eval_loader(
    spec: StreamSpec,
    *,
    seq_len: int,
    eos_id: int,
    vocab_size: int,
    document_mask: bool,
    device_batch_size: int,
    rank: int,
    world_size: int,
    max_batches: int | None,
) -> DataLoader:
    """Evaluation batches of this rank, the same at every call; at most `max_batches`, counted in global batches."""
    stream, _ = open_stream(spec)
    dataset = open_dataset(
        seq_len=seq_len,
        vocab_size=vocab_size,
        streams=[stream],
        batch_size=device_batch_size,
        shuffle=False,
        num_canonical_nodes=1,
    )
    return eval_batches(
        dataset.get_item,
        dataset.num_samples,
        Collate(seq_len=seq_len, eos_id=eos_id, document_mask=document_mask),
        device_batch_size=device_batch_size,
        rank=rank,
        world_size=world_size,
        max_batches=max_batches,
    )
