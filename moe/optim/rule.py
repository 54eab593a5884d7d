"""The rule for rates: learning rate, warmup and weight decay from width, length of the run and batch.

    T tokens of the run, B tokens of a step, S = T / B steps, d = d_model

    lr             0.82 d^(-5/6) T^(-1/3) B^(1/2), at most 0.03
    embedding lr   lr max(1, sqrt(d / 118)) where it is no head too; lr where it is
    weight decay   0.1 below 2,000 steps; from 5,000 on 1 / (0.2 lr S), within 0.05 and 0.25; a ramp between
    warmup         min(0.1 S, max(0.01 S, 100 steps))
    AdamW alone    0.65 lr, warmup min(0.4 S, max(0.01 S, 400 steps))

- Where it comes from: a fit to 13 points. Three are this project's own optima (docs/learning-older.md); the others are
  published: Moonlight's fits at 0.4B and 1.5B (arXiv 2502.16982), a law of the Marin project for its MoE models
  (github.com/marin-community/marin, issues 5951 and 7856), a sweep at 4.7B, and the rates of large public runs. The
  free fit gives d^-0.827, T^-0.333 and B^0.46; the exponents are the simple fractions near them. Without one of the
  points, the others miss it by a factor of 1.36 (root mean square). Some of the published ones were noted from memory:
  what speaks for the rule are the 53 runs that judged it, in seven cells that had no part in it (docs/learning.md): its
  rate is within 0.02 nats of the best in six, and 0.024 above in the seventh (512 tokens a step; half of it is best).
- Depth and experts are no part of it.
- Weight decay: the weights' memory, 1 / (lr decay) steps, is a fifth of the run. So the best public runs of Muon were
  tuned (github.com/KellerJordan/modded-nanogpt, records/track_3_optimization). Short runs forget their start anyway.
- AdamW's factor and its long warmup are from sweeps of 384 and 1,536 steps here: the same rate with a short warmup
  lies at a cliff.
- What was measured here, and what is from elsewhere, is marked by MEASURED.
- Imports no torch. Pure functions: a run's numbers follow from its settings alone.
"""

from __future__ import annotations

import math

from moe.common.units import short

LR, LR_D, LR_T, LR_B, MOST_LR = 0.82, -5 / 6, -1 / 3, 1 / 2, 0.03
ADAMW_SHARE = 0.65
UNSCALED = 20.0  # `adjust_lr_fn: original` wants about 0.02 where match_rms_adamw wants about 0.001
EMBEDDING_WIDTH = 118  # from which on the embedding's rate is above the matrices'
PLAIN_DECAY, LEAST_DECAY, MOST_DECAY, MEMORY = 0.1, 0.05, 0.25, 0.2  # MEMORY: share of the run
FEW_STEPS, MANY_STEPS = 2000, 5000
WARMUP, ADAMW_WARMUP, LEAST_WARMUP = 100, 400, 0.01  # steps, steps, share of the run
MOST_WARMUP = {"muon": 0.1, "adamw": 0.4}  # share of the run
# Least and most that runs of this project's own had, docs/learning.md.
MEASURED: dict[str, tuple[float, float]] = {"d_model": (64, 256), "tokens": (0.39e6, 12.6e6), "batch": (512, 8192)}


def learning_rate(*, d_model: int, tokens: float, batch: float, optimizer: str = "muon") -> float:
    """Peak rate of Muon's groups under `adjust_lr_fn: match_rms_adamw` and AdamW's beside them, or of AdamW alone.

    tokens: of the run. batch: tokens of a step. optimizer: "muon" or "adamw".
    """
    rate = min(MOST_LR, LR * d_model**LR_D * tokens**LR_T * batch**LR_B)
    return rate * (ADAMW_SHARE if optimizer == "adamw" else 1.0)


def embedding_rate(lr: float, *, d_model: int, tied: bool) -> float:
    """Of an embedding that is no head too, `sqrt(d / 118)` times the matrices' rate `lr` where that is more.

    Marin's law for its Adam groups over that for its matrices (its issue 7856, in the units of Muon here) and arXiv
    2506.15025 agree in the root of the width.
    """
    return lr if tied else lr * max(1.0, math.sqrt(d_model / EMBEDDING_WIDTH))


def weight_decay(lr: float, *, steps: float) -> float:
    """Decoupled weight decay of a run of so many steps at this peak rate."""
    long = min(MOST_DECAY, max(LEAST_DECAY, 1 / (MEMORY * lr * steps)))
    share = min(1.0, max(0.0, (steps - FEW_STEPS) / (MANY_STEPS - FEW_STEPS)))
    return PLAIN_DECAY + share * (long - PLAIN_DECAY)


def warmup_steps(steps: float, *, optimizer: str = "muon") -> float:
    """Steps of linear warmup; not rounded."""
    plain = ADAMW_WARMUP if optimizer == "adamw" else WARMUP
    return min(MOST_WARMUP[optimizer] * steps, max(LEAST_WARMUP * steps, plain))


def moonlight_rate(flops: float) -> float:
    """Moonlight's fit to the FLOPs of a run (arXiv 2502.16982): of dense models of 0.4B to 1.5B, trained for as many
    tokens as their size wants. For comparison.
    """
    return 0.01273 * flops**-0.0575


def outside(*, d_model: int, tokens: float, batch: float) -> list[str]:
    """What of a run lies outside of what was measured here: "d_model 768 (64 to 128)"; empty where nothing does."""
    found = {"d_model": d_model, "tokens": tokens, "batch": batch}
    return [
        f"{name} {short(found[name])} ({short(least)} to {short(most)})"
        for name, (least, most) in MEASURED.items()
        if not least <= found[name] <= most
    ]
