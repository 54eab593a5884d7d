"""The settings of a run that follow from its tokens, its data and its GPUs.

- Batch: that of the yaml it begins with times (tokens / its tokens)^0.383, the exponent of nanochat's rule
  (github.com/karpathy/nanochat, scripts/base_train.py); rounded to a number of sequences that the GPUs divide and,
  where that is near, most other numbers of GPUs.
- Rate, warmup and weight decay: moe/optim/rule.py, of which docs/learning.md says what is measured.
- Saves and evaluations: every 500 steps, in a short run at least twice; from 10,000 steps on a tenth of the run each is
  kept for ever. All evaluations together, that before the first step with them, read at most a tenth of the run's
  tokens; below 20 steps there is none before the first. A yaml's own number of tokens keeps its own `max_batches`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from moe.common.errors import InputError
from moe.common.units import printable, short
from moe.config import Config, parse_time
from moe.config.auto import AUTO
from moe.data.meta import read_meta
from moe.optim.auto import resolve
from moe.plan.counts import at_least

BATCH_GROWTH, NEAR = 0.383, 0.1  # NEAR: of the batch wanted, as a share
INTERVALS, MANY_STEPS = (1, 5, 10, 50, 100, 500), 10_000
LEAST_STEPS = 10
MOST_EVALUATED = 0.1  # of the run's tokens


def with_data(config: Config, folder: Path) -> Config:
    """The same on converted data in `folder`; its sequences and tokenizer, where it is there already.

    Raises:
        InputError: it is a file, or holds something else.
    """
    if printable(str(folder)) != str(folder):
        raise InputError(f"--data ({printable(str(folder))}): a yaml cannot hold its name; choose another")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--data ({folder}) is a file; give the folder that `moe convert` wrote")
    assert config.eval_data is not None
    config = replace(
        config,
        train_data=replace(config.train_data, local=str(folder)),
        eval_data=replace(config.eval_data, local=str(folder)),
    )
    if not (folder / "meta.json").exists():
        return config
    meta = read_meta(folder)
    batch = max(1, round(config.global_train_batch_size * config.max_seq_len / meta.seq_len))
    return replace(config, max_seq_len=meta.seq_len, tokenizer=meta.tokenizer, global_train_batch_size=batch)


def batch_by_law(like: Config, tokens: int) -> float:
    """Sequences of a step of a run of `tokens` that begins with `like`."""
    own = parse_time(like.max_duration).to_tokens(like.global_train_batch_size * like.max_seq_len)
    return like.global_train_batch_size * (tokens / own) ** BATCH_GROWTH


def for_tokens(like: Config, tokens: int | None, n_gpus: int) -> Config:
    """`like` for another number of tokens: batch, rates and intervals follow. Its own number, on GPUs that divide its
    batch, leaves all as it is.
    """
    own_tokens = parse_time(like.max_duration).to_tokens(like.global_train_batch_size * like.max_seq_len)
    same = tokens in (None, own_tokens) and like.global_train_batch_size % n_gpus == 0
    tokens = tokens or own_tokens

    def batch_for(tokens: int) -> int:
        return _rounded_batch(batch_by_law(like, tokens), n_gpus)

    batch = like.global_train_batch_size if same else batch_for(tokens)
    tokens_per_step = batch * like.max_seq_len
    steps = -(-tokens // tokens_per_step)
    if steps < LEAST_STEPS:
        enough = LEAST_STEPS * tokens_per_step
        while (more := LEAST_STEPS * batch_for(enough) * like.max_seq_len) > enough:  # with the tokens the batch grows
            enough = more
        raise InputError(
            f"--tokens ({short(tokens)}) makes {steps} step{'s' * (steps > 1)} of {batch} x {like.max_seq_len} tokens; "
            f"give at least {at_least(enough)}"
        )
    most = max(1, int(MOST_EVALUATED * tokens / tokens_per_step))  # batches
    first = like.eval_first and most > 1
    evaluate, times = next(
        (i, n + first) for i in INTERVALS if (n := -(-steps // i)) + first <= most and i >= _interval(steps)
    )
    assert like.eval_data is not None
    wanted = like.eval_data.max_batches * like.global_train_batch_size * like.max_seq_len
    read = like.eval_data.max_batches if same else min(-(-wanted // tokens_per_step), most // times)
    config = replace(
        like,
        max_duration=f"{tokens}tok",
        global_train_batch_size=batch,
        eval_data=replace(like.eval_data, max_batches=read),
        save_interval=f"{_interval(steps)}ba",
        eval_interval=f"{evaluate}ba",
        eval_first=first,
        keep_every=f"{tokens // 10}tok" if steps >= MANY_STEPS else None,
    )
    return config if same else with_rates(config)


def with_rates(config: Config) -> Config:
    """Rates, decay and warmup by the rule."""
    optimizer, tied = config.optimizer, config.model.tie_embeddings
    adamw = replace(
        optimizer.adamw,
        lr=None if optimizer.adamw.lr is None else AUTO,
        embedding_lr=None if tied else AUTO,
    )
    config, _ = resolve(
        replace(
            config,
            optimizer=replace(optimizer, lr=AUTO, weight_decay=AUTO, adamw=adamw),
            scheduler=replace(config.scheduler, t_warmup=AUTO),
        )
    )
    tokens_per_step = config.global_train_batch_size * config.max_seq_len
    warmup = parse_time(config.scheduler.t_warmup, zero=True).to_tokens(tokens_per_step)
    return replace(config, scheduler=replace(config.scheduler, t_warmup=f"{warmup}tok"))


def _rounded_batch(sequences: float, n_gpus: int) -> int:
    """The nearest number of sequences that `n_gpus` and the largest power of two up to 64 divide, within NEAR."""
    for unit in (64, 32, 16, 8, 4, 2, 1):
        unit = math.lcm(unit, n_gpus)
        batch = max(unit, round(sequences / unit) * unit)
        if abs(batch / sequences - 1) <= NEAR:
            break
    return batch


def _interval(steps: int) -> int:
    """The largest that goes into the run twice."""
    return max(interval for interval in INTERVALS if interval <= max(1, steps // 2))
