"""Which parameter is updated how.

| parameters                          | name="muon"                | name="adamw" |
|-------------------------------------|----------------------------|--------------|
| matrices of the blocks: attention,  | Muon                       | AdamW        |
| router, experts, dense layers       |                            |              |
| embedding, head                     | AdamW                      | AdamW        |
| the same embedding, where it is not | AdamW at embedding_lr      | the same     |
| the head too and embedding_lr is    |                            |              |
| set                                 |                            |              |
| norms                               | AdamW without weight decay | the same     |

- The router under Muon too, as in GLM-4.5 (arXiv 2508.06471): its loss is that under AdamW, its experts are loaded more
  evenly (docs/learning-older.md).
- w13 is a group of its own, because each of its matrices is two (gate and up).
- By parameter name: the names are the checkpoint's contract already. A parameter without gradient requirement is left
  out.
"""

from typing import Any

from torch import Tensor, nn

from moe.config import OptimizerConfig
from moe.config.auto import number
from moe.optim.muon import Muon


def _kind(name: str, parameter: Tensor) -> str:
    if parameter.ndim < 2:
        return "norms"
    if not name.startswith("blocks."):
        return "adamw"
    return "muon_gate_up" if name.endswith(".w13") else "muon"


def build_groups(
    model: nn.Module,
    *,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float = 0.95,
    momentum_dtype: str = "fp32",
    adjust_lr_fn: str = "match_rms_adamw",
    adamw_lr: float | None = None,
    embedding_lr: float | None = None,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
) -> list[dict[str, Any]]:
    """Parameter groups of a Transformer for Muon; every group has `name`, `kind`, `lr` and `weight_decay`.

    name is "muon" or "adamw" (everything AdamW). momentum, momentum_dtype ("fp32" or "bf16") and adjust_lr_fn belong to
    the Muon groups; adamw_lr (None means lr), betas and eps to the AdamW groups. embedding_lr, where given, is that of
    an embedding that is not the head too, which has a group of its own then.
    Raises ValueError for another name.
    """
    if name not in ("muon", "adamw"):
        raise ValueError(f"optimizer.name ({name!r}) is unknown; use 'muon' or 'adamw'")
    members: dict[str, list[Tensor]] = {"muon": [], "muon_gate_up": [], "adamw": [], "norms": [], "embedding": []}
    has_head = any(parameter_name == "lm_head.weight" for parameter_name, _ in model.named_parameters())
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = _kind(parameter_name, parameter)
            if parameter_name == "embed.weight" and has_head and embedding_lr is not None:
                kind = "embedding"
            elif name == "adamw" and kind != "norms":
                kind = "adamw"
            members[kind].append(parameter)
    muon = {
        "kind": "muon",
        "lr": lr,
        "weight_decay": weight_decay,
        "momentum": momentum,
        "momentum_dtype": momentum_dtype,
        "adjust_lr_fn": adjust_lr_fn,
    }
    adamw = {
        "kind": "adamw",
        "lr": lr if adamw_lr is None else adamw_lr,
        "weight_decay": weight_decay,
        "betas": tuple(betas),
        "eps": eps,
    }
    settings = {
        "muon": muon,
        "muon_gate_up": {**muon, "split": 2},
        "adamw": adamw,
        "norms": {**adamw, "weight_decay": 0.0},
        "embedding": {**adamw, "lr": embedding_lr},
    }
    return [{"name": key, "params": params, **settings[key]} for key, params in members.items() if params]


def build_optimizer(config: OptimizerConfig, model: nn.Module) -> Muon:
    """config: without `auto`. model: a Transformer, whose parameters are on their device, or sharded, already."""
    groups = build_groups(
        model,
        name=config.name,
        lr=number(config.lr),
        weight_decay=number(config.weight_decay),
        momentum=config.momentum,
        momentum_dtype=config.momentum_dtype,
        adjust_lr_fn=config.adjust_lr_fn,
        adamw_lr=None if config.adamw.lr is None else number(config.adamw.lr),
        embedding_lr=None if config.adamw.embedding_lr is None else number(config.adamw.embedding_lr),
        betas=config.adamw.betas,
        eps=config.adamw.eps,
    )
    return Muon(groups)
