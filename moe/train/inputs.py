"""What a run starts from: checks that the data fits the config before anything heavy is built, and tells the plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from moe.config import Config, parse_time
from moe.data.meta import Meta, read_meta
from moe.data.tokenizer import load_tokenizer, tokenizer_fingerprint
from moe.data.verify import verify_split
from moe.errors import InputError
from moe.units import short

if TYPE_CHECKING:
    from moe.model.flops import ParameterCount
    from moe.train.run_folder import RunFolder


def check_data(config: Config, report: Callable[[str], None]) -> Meta:
    """The training data's meta, after it and the validation data were held against the config.

    Raises:
        InputError: missing, incomplete or damaged data, another tokenizer, another sequence length, too few samples.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    wanted = tokenizer_fingerprint(tokenizer)
    parts = [("train_data", config.train_data, config.global_train_batch_size)]
    if config.eval_data is not None:
        parts.append(("eval_data", config.eval_data, 1))  # type: ignore[arg-type]
    metas = []
    for key, data, samples in parts:
        folder = Path(data.local)
        if data.remote is not None:
            _fetch_meta(key, data.remote, folder)
        elif not folder.is_dir():
            raise InputError(
                f"{key}.local ({data.local}): there is no such folder; make it with "
                f"`python convert/fineweb_to_mds.py --out {data.local}` or correct the path"
            )
        meta = read_meta(folder)
        metas.append(meta)
        if meta.seq_len != config.max_seq_len:
            raise InputError(
                f"max_seq_len ({config.max_seq_len}) is not the sequence length of {key}.local ({data.local}), "
                f"which is {meta.seq_len}; set max_seq_len={meta.seq_len}, "
                f"or convert the text again with --seq-len {config.max_seq_len}"
            )
        if meta.tokenizer_fingerprint != wanted:
            raise InputError(
                f"tokenizer ({config.tokenizer}) is not the one that {key}.local ({data.local}) was made with "
                f"({meta.tokenizer}); set tokenizer to that, or convert the text again"
            )
        full = key == "train_data" and data.remote is None and config.train_data.verify == "full"
        if full:
            report(f"verifying the hashes of {data.local}/{data.split} ...")
        # of remote data only index.json and meta.json are here yet; each shard is verified as it arrives
        if data.remote is None and (faults := verify_split(folder / data.split, full=full)):
            listed = "\n".join(f"  {fault}" for fault in faults)
            raise InputError(f"{key}: {len(faults)} fault(s) in {folder / data.split}\n{listed}")
        found = meta.samples.get(data.split, 0)
        if found < samples:
            raise InputError(
                f"{key}.local ({data.local}) holds {found} samples of {meta.seq_len} tokens in {data.split}, "
                f"fewer than the {samples} of one batch; convert more text, or lower global_train_batch_size"
            )
    return metas[0]


def _fetch_meta(key: str, remote: str, folder: Path) -> None:
    """Copies meta.json from the remote to where the shards will be cached."""
    from streaming.base.storage import CloudDownloader

    if (folder / "meta.json").exists():
        return
    try:
        CloudDownloader.direct_download(f"{remote.rstrip('/')}/meta.json", str(folder / "meta.json"))
    except Exception as error:
        raise InputError(
            f"{key}.remote ({remote}): meta.json cannot be fetched ({error}); correct the address"
        ) from None


def print_plan(
    config: Config,
    meta: Meta,
    folder: RunFolder,
    *,
    count: ParameterCount,
    microbatch: int | str,
    world_size: int,
    say: Callable[[str], None],
) -> None:
    """Says what the run is about to do: parameters, steps, data, device, folder, fresh or resumed."""
    import torch

    tokens_per_step = config.global_train_batch_size * config.max_seq_len
    steps = parse_time(config.max_duration).to_steps(tokens_per_step)
    data_tokens = meta.samples[config.train_data.split] * meta.seq_len
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    lines = {
        "model": f"{count.total:,} parameters, {count.active:,} active per token "
        f"({config.model.n_experts} experts, top {config.model.top_k})",
        "steps": f"{steps:,} of {config.global_train_batch_size} x {config.max_seq_len:,} = {tokens_per_step:,} "
        f"tokens; {short(steps * tokens_per_step)} tokens in all",
        "data": f"{config.train_data.local}: {short(data_tokens)} tokens to train on "
        f"({steps * tokens_per_step / data_tokens:.2f} epochs)"
        + (f", {config.eval_data.split} for evaluation" if config.eval_data else ", no evaluation"),
        "device": f"{world_size} x {gpu}, {config.precision}, microbatch {microbatch}",
        "folder": str(folder.path),
        "start": f"resumed from step {folder.checkpoint.step:,} ({short(folder.checkpoint.tokens)} tokens), "
        f"{folder.checkpoint.path.name}"
        if folder.checkpoint
        else f"fresh, from {config.load_path}"
        if config.load_path
        else "fresh",
    }
    say(f"\n{config.run_name}")
    for name, text in lines.items():
        say(f"  {name:<8}{text}")
    say("")
