"""What a run starts from: checks that the data fits the config before anything heavy is built."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe.common.errors import InputError, Unreachable
from moe.common.paths import refuse_irregular
from moe.common.s3 import may_pass
from moe.common.units import short
from moe.config import Config, EvalData, TextData, TrainData
from moe.config.values import BAD_YAML, plain_yaml
from moe.data.meta import SPLITS, Meta, read_meta
from moe.data.read.fingerprint import data_fingerprint, shards_fingerprint
from moe.data.read.mixture import StreamSpec, epoch_samples
from moe.data.read.verify import verify_split
from moe.data.text.kept_tokenizer import KeptTokenizer, keep_tokenizer
from moe.data.text.tokenizer import load_tokenizer
from moe.train.downloads import download_plan

if TYPE_CHECKING:
    from moe.data.read.text_plan import TextPlan


@dataclass(frozen=True)
class Inputs:
    """What the run is made from. `vocab_size` and `eos_id` are the tokenizer's, `plan` describes the training data."""

    vocab_size: int
    eos_id: int
    fingerprint: str  # of the training data: a run resumes only with the same
    plan: list[str]
    epoch_tokens: int | None = None  # None: not known before the text is read
    text: TextPlan | None = None
    former: tuple[str, ...] = ()  # what earlier versions called the same data
    # what check_data fills in
    tokenizer: Any = None  # as transformers loads it
    kept_tokenizer: KeptTokenizer | None = None  # what the run keeps of it
    train_streams: dict[str, StreamSpec] = field(default_factory=dict)
    eval_streams: dict[str, StreamSpec] = field(default_factory=dict)


def streams_of(data: TrainData | EvalData | None) -> dict[str, StreamSpec]:
    """The folders of a section of the config by name, sorted; one without a name where there are no streams."""
    if data is None:
        return {}
    if data.local is not None:
        return {"": StreamSpec(data.local, data.remote, data.split)}
    streams: dict[str, Any] = dict(data.streams)
    return {name: StreamSpec(**asdict(stream)) for name, stream in sorted(streams.items())}


def check_data(config: Config, report: Callable[[str], None]) -> Inputs:
    """Holds all training and validation data against the config and the tokenizer.

    Raises:
        InputError: missing, incomplete or damaged data, another tokenizer, another sequence length, too few sequences.
    """
    tokenizer, kept, name = _tokenizer_of(config, report)
    wanted = kept.fingerprint
    if not kept.files:
        report(
            f"warning: tokenizer ({config.tokenizer}) changes as transformers saves it; checkpoints will not hold it"
        )
    if config.train_data.text is not None:
        inputs = _check_text(config, config.train_data.text, name, report)
    else:
        inputs = _check_streams(config, wanted, report)
    eval_streams = streams_of(config.eval_data)
    for stream, spec in eval_streams.items():
        key = f"eval_data.streams.{stream}" if stream else "eval_data"
        _check_folder(config, key, spec, wanted, samples=1, full=False, report=report)
    return replace(inputs, tokenizer=tokenizer, kept_tokenizer=kept, eval_streams=eval_streams)


def _tokenizer_of(config: Config, report: Callable[[str], None]) -> tuple[Any, KeptTokenizer, str]:
    """The tokenizer, what the run keeps of it, and the name or folder that gives it: the run's own copy, where what the
    config names is the same as before and is gone, or was made anew in the same place.

    A resumed run is held against its checkpoint and its data all the same. Raises InputError.
    """
    from moe.train.checkpointing.run_folder import local_folder

    folder = local_folder(config.save_folder, config.run_name)
    own, reason = folder / "tokenizer", None
    try:
        named = load_tokenizer(config.tokenizer)
        kept = keep_tokenizer(named)
    except InputError as error:
        if not _was_started_with(folder, config.tokenizer):
            raise
        reason = str(error)
    else:
        if not _was_started_with(folder, config.tokenizer):
            return named, kept, config.tokenizer
    of_run = load_tokenizer(str(own))
    kept_by_run = keep_tokenizer(of_run)
    if reason is None and kept_by_run.fingerprint == kept.fingerprint:
        return named, kept, config.tokenizer
    report(f"{reason or f'tokenizer ({config.tokenizer}) has changed'}; the run continues with its own, {own}")
    return of_run, kept_by_run, str(own)


def _was_started_with(folder: Path, name: str) -> bool:
    """Whether the run of this folder was last started with the tokenizer of this name, and has kept it."""
    try:
        refuse_irregular(folder / "config.yaml")
        settings = plain_yaml((folder / "config.yaml").read_bytes())
    except (OSError, *BAD_YAML):
        return False
    return (folder / "tokenizer").is_dir() and isinstance(settings, dict) and settings.get("tokenizer") == name


def _check_streams(config: Config, wanted: str, report: Callable[[str], None]) -> Inputs:
    specs = streams_of(config.train_data)
    metas = {
        name: _check_folder(
            config,
            f"train_data.streams.{name}" if name else "train_data",
            spec,
            wanted,
            samples=1 if name else config.global_train_batch_size,
            full=config.train_data.verify == "full",
            report=report,
        )
        for name, spec in specs.items()
    }
    available = {name: meta.samples[specs[name].split] for name, meta in metas.items()}
    counts = epoch_samples(specs, available, global_batch=config.global_train_batch_size)
    prints = [_of_all(specs, of) for of in (shards_fingerprint, data_fingerprint)]
    first = next(iter(metas.values()))
    return Inputs(
        vocab_size=first.vocab_size,
        eos_id=first.eos_id,
        fingerprint=prints[0],
        former=(prints[1],),
        epoch_tokens=sum(counts.values()) * config.max_seq_len,
        train_streams=specs,
        plan=[
            *_describe(specs, available, counts, config.max_seq_len),
            *download_plan(config, specs, {name: counts[name] / available[name] for name in specs}),
        ],
    )


def _check_text(config: Config, text: TextData, tokenizer: str, report: Callable[[str], None]) -> Inputs:
    from moe.data.read.text_known import read_known
    from moe.data.read.text_plan import open_text  # not at the top: shards are read without pyarrow
    from moe.train.checkpointing.run_folder import local_folder

    folder = local_folder(config.save_folder, config.run_name)
    plan = open_text(
        **asdict(text),
        tokenizer_name=tokenizer,
        seq_len=config.max_seq_len,
        seed=config.seed,
        say=report,
        outputs=(folder,),
        known=read_known(folder),
        run_folder=folder,
    )
    former = plan.former
    return Inputs(plan.vocab_size, plan.job.eos_id, plan.fingerprint, [plan.summary], text=plan, former=former)


def _of_all(specs: dict[str, StreamSpec], of: Callable[[str], str]) -> str:
    """The fingerprint of one folder, or of a mixture: each stream's, with its split and weight."""
    if "" in specs:
        return of(specs[""].local)
    return "; ".join(f"{name} {of(spec.local)} {spec.split}{spec.weight}" for name, spec in specs.items())


def _describe(
    specs: dict[str, StreamSpec], available: dict[str, int], counts: dict[str, int], seq_len: int
) -> list[str]:
    if "" in specs:
        return [f"{specs[''].local}: {short(available[''] * seq_len)} tokens to train on"]
    total = sum(counts.values())
    lines = [f"{len(specs)} streams, {short(total * seq_len)} tokens an epoch"]
    for name, spec in specs.items():
        lines.append(
            f"{name}: {counts[name] / total:.1%} of an epoch, {short(counts[name] * seq_len)} tokens, "
            f"{counts[name] / available[name]:.3g} times {spec.local}"
        )
    return lines


def _check_folder(
    config: Config,
    key: str,
    data: StreamSpec,
    wanted: str,
    *,
    samples: int,
    full: bool,
    report: Callable[[str], None],
) -> Meta:
    """The meta of one folder, after it was held against the config; `wanted` is the tokenizer's fingerprint."""
    folder = Path(data.local)
    if data.remote is not None:
        for name in ("meta.json", *(f"{split}/index.json" for split in SPLITS)):
            _fetch(key, data.remote, name, folder)
    elif folder.exists() and not folder.is_dir():
        raise InputError(f"{key}.local ({data.local}): is a file; give the folder that a conversion made (`--out`)")
    elif not folder.is_dir():
        fix = f"make it with `python convert/fineweb_to_mds.py --out {data.local}` or correct the path"
        raise InputError(f"{key}.local ({data.local}): there is no such folder; {fix}")
    meta = read_meta(folder)
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
    if data.split not in meta.samples:
        raise InputError(f"{key}.split ({data.split}): {data.local} has {', '.join(meta.samples)}; give one of these")
    full = full and data.remote is None
    if full:
        report(f"verifying the hashes of {data.local}/{data.split} ...")
    # of remote data only index.json and meta.json are here yet: remote_sizes.py
    if data.remote is None and (errors := verify_split(folder / data.split, full=full)):
        listed = "\n".join(f"  {error}" for error in errors)
        raise InputError(
            f"{key}: {len(errors)} error(s) in {folder / data.split}\n{listed}\nRestore these files, or convert again."
        )
    found = meta.samples.get(data.split, 0)
    if found < samples:
        held = f"holds {found} sequences of {meta.seq_len} tokens in {data.split}"
        fewer = f"{held}, fewer than the {samples} of one batch"
        fix = "convert more text, or lower global_train_batch_size"
        if samples == 1:
            fewer, fix = f"holds no sequence in {data.split}", "convert more text, with a larger --val-fraction"
        raise InputError(f"{key}.local ({data.local}) {fewer}; {fix}")
    return meta


def _fetch(key: str, remote: str, name: str, folder: Path) -> None:
    """Copies a small file from the remote to where the shards will be cached, once on each machine: Streaming's copy of
    a folder has one temporary name for all processes.

    Raises:
        InputError: it is not to be had. Unreachable: it may be, later.
    """
    from moe.data.read.stock import CloudDownloader

    if (folder / name).exists():
        return
    try:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with open(folder / ".fetching", "w") as lock:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / name).exists():  # another process of the machine was first
                CloudDownloader.direct_download(f"{remote.rstrip('/')}/{name}", str(folder / name))
    except Exception as error:
        what = f"{key}.remote ({remote}): {name} cannot be fetched ({error})"
        if may_pass(error):
            raise Unreachable(f"{what}; run the same command again") from None
        raise InputError(f"{what}; correct the address") from None
