"""Muon and AdamW in one optimizer, because Composer takes one.

- A group's `kind` says which of the two updates it: {"params": [...], "kind": "muon", ...}.
- Muon (Moonlight, arXiv 2502.16982): Nesterov momentum, orthogonalised, scaled, decoupled weight decay. With
  `adjust_lr_fn: match_rms_adamw` the scale is 0.2 sqrt(max(rows, cols)): the update's RMS is then AdamW's, so one
  learning rate and one weight decay serve both. `original` is sqrt(max(1, rows / cols)) and wants a learning rate of
  about 0.02. Names and formulas are those of torch.optim.Muon, which takes no batches of matrices.
- Matrices of one shape go through the iteration as one batch. A tensor of experts is a batch already and goes alone:
  stacking it over layers would copy most of the model. `split: 2` means that each matrix is two, stacked by rows
  (gate and up).
- The iteration runs in bf16 on CUDA, in fp32 on CPU, where bf16 is slower.
- A parameter without gradient is skipped, its state untouched. So is an expert of which all of the gradient is zero: no
  token of the global step reached it, or none that the loss asks about. Orthogonalised, its old momentum would be a
  full step, at every step, for ever. This is seen in the gradient, which is the global batch's on whichever rank holds
  the expert: nothing is sent, and nothing waits for the device.
- Of a sharded parameter (DTensor) each rank updates its own part. Where experts are split by expert they are complete
  there, and nothing is sent for them. Of matrices that are split by rows, and of experts of which each rank has a part
  (moe/model/split.py), those of one shape are dealt out for the iteration, so that none is orthogonalised twice: two
  all-to-alls. Whether such an expert has a gradient the ranks ask each other, once for all of a group's.
- The norm of an update is measured where it is made, and only when asked for: comparing weights before and after would
  need a copy of the model.
- Loading keeps the dtypes of the saved state, and puts all of it where the parameter is. torch casts state to the
  parameter's dtype, and bf16 momentum would come back as fp32; the count of steps it leaves where it was saved.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.optim.adamw import adamw

from moe.optim.newton_schulz import orthogonalize
from moe.optim.norms import local

Norms = dict[Tensor, tuple[float | Tensor, Tensor]] | None
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

ADJUST_LR: dict[str, Callable[[int, int], float]] = {
    "match_rms_adamw": lambda rows, cols: 0.2 * math.sqrt(max(rows, cols)),
    "original": lambda rows, cols: math.sqrt(max(1.0, rows / cols)),
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "muon": {
        "weight_decay": 0.1,
        "momentum": 0.95,
        "momentum_dtype": "fp32",
        "adjust_lr_fn": "match_rms_adamw",
        "split": 1,
    },
    "adamw": {"weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8},
}


def _matrices(tensor: Tensor, split: int) -> Tensor:
    """View of a matrix or a batch of matrices as [N, R, C]."""
    rows, cols = tensor.shape[-2:]
    return tensor.view(-1, rows // split, cols)


def _orthogonal(x_NRC: Tensor) -> Tensor:
    return orthogonalize(x_NRC.bfloat16() if x_NRC.is_cuda else x_NRC)


def _orthogonal_parts(parts: list[Tensor], like: DTensor, split: int) -> tuple[Tensor, ...]:
    """`_orthogonal` of matrices, or batches of them, of which each rank has a part, sharded as `like` is: this rank's
    part of each.
    """
    n_rows, n_cols = like.shape[-2:]
    inside = _split_dim(like) + 3 - like.ndim  # of the stack of matrices
    stack = torch.cat([part.reshape(math.prod(part.shape[:-2]), *part.shape[-2:]) for part in parts])
    shape, stride = torch.Size((len(stack), n_rows, n_cols)), (n_rows * n_cols, n_cols, 1)
    mesh = like.device_mesh
    if mesh.ndim == 2:  # HSDP: each replica holds all rows and does this work alone
        mesh = mesh["shard"]

    def move(x_NRC: Tensor, before: int, after: int) -> Tensor:
        placed = DTensor.from_local(x_NRC.contiguous(), mesh, [Shard(before)], shape=shape, stride=stride)
        return placed.redistribute(placements=[Shard(after)]).to_local()

    x_NRC = move(stack, inside, 0)
    del stack
    x_NRC = _orthogonal(_matrices(x_NRC, split)).reshape(x_NRC.shape)
    return move(x_NRC, 0, inside).chunk(len(parts))


def _is_apart(p: Tensor) -> bool:
    """Whether each rank has a part of every matrix, none of them complete."""
    return isinstance(p, DTensor) and (p.ndim == 2 or _split_dim(p) > 0)


def _split_dim(p: DTensor) -> int:
    shard = p.placements[-1]  # of two dimensions the first is HSDP's replicas
    assert isinstance(shard, Shard)
    return shard.dim


def _batches(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Those that go through the iteration together: of experts of which each rank has a part as few layers' as give
    every rank some.
    """
    found: dict[Any, list[Tensor]] = {}
    for p in params:
        found.setdefault(p.shape if p.ndim == 2 or _is_apart(p) else p, []).append(p)
    for batch in found.values():
        size = len(batch)
        if batch[0].ndim == 3 and isinstance(batch[0], DTensor):
            size = -(-batch[0].device_mesh.size(-1) // len(batch[0]))
        yield from (batch[first : first + size] for first in range(0, len(batch), size))


def _norm(part: Tensor, like: Tensor) -> Tensor:
    """L2 norm of this rank's part of a tensor as `like`."""
    return torch.linalg.vector_norm(part, dtype=torch.promote_types(like.dtype, torch.float32))


def _muon_update(
    params: list[Tensor], state: dict[Tensor, dict[str, Any]], group: dict[str, Any], norms: Norms
) -> None:
    fed = _fed_experts([p for p in params if p.ndim == 3])
    for batch in _batches(params):
        rows, cols = batch[0].shape[-2:]
        parts = [_momentum_step(p, state[p], group, fed.get(p)) for p in batch]
        if isinstance(batch[0], DTensor) and _is_apart(batch[0]):
            updates = _orthogonal_parts(parts, batch[0], group["split"])
        else:
            stacks = [_matrices(part, group["split"]) for part in parts]
            sizes = [stack.shape[0] for stack in stacks]
            updates = _orthogonal(stacks[0] if len(stacks) == 1 else torch.cat(stacks)).split(sizes)
            del stacks
        scale = group["lr"] * ADJUST_LR[group["adjust_lr_fn"]](rows // group["split"], cols)
        for p, update in zip(batch, updates, strict=True):
            part = local(p)
            update, decay = update.reshape(part.shape), 1 - group["lr"] * group["weight_decay"]
            if p not in fed:
                part.mul_(decay).add_(update, alpha=-scale)
            else:
                torch.where(fed[p], (part * decay).add_(update, alpha=-scale), part, out=part)
            if norms is not None:
                norms[p] = scale, _norm(update.where(fed[p], 0) if p in fed else update, p)
        del parts, part, updates, update  # or they would be there beside the next batch's


def _fed_experts(params: list[Tensor]) -> dict[Tensor, Tensor]:
    """Whether each expert of those [E, R, C], or of those that this rank has, has a gradient that is not all zero: bool
    [E, 1, 1].
    """
    found = {p: local(p.grad).any((1, 2), keepdim=True) for p in params if p.grad is not None}
    apart = [p for p in found if _is_apart(p)]
    if apart:
        assert isinstance(apart[0], DTensor)
        fed = torch.cat([found[p] for p in apart]).int()
        dist.all_reduce(fed, dist.ReduceOp.MAX, group=apart[0].device_mesh.get_group(-1))
        found |= zip(apart, fed.bool().split([len(p) for p in apart]), strict=True)
    return found


def _momentum_step(p: Tensor, state: dict[str, Any], group: dict[str, Any], fed_E11: Tensor | None) -> Tensor:
    """Moves the momentum on by p's gradient, of experts only where fed_E11 says so, and returns what Nesterov makes of
    both, in at least fp32; of a sharded p this rank's part.
    """
    exact = torch.promote_types(p.dtype, torch.float32)
    kept = exact if group["momentum_dtype"] == "fp32" else DTYPES[group["momentum_dtype"]]
    if "momentum" not in state:
        state["momentum"] = torch.zeros_like(p, dtype=kept)
    assert p.grad is not None
    grad, own = local(p.grad).to(exact), local(state["momentum"])
    momentum = own.to(exact)  # the state itself in fp32, a copy in bf16
    if fed_E11 is None:
        momentum.lerp_(grad, 1 - group["momentum"])
    else:  # as it was means its bits: lerp by 0 would make 0 of -0
        torch.where(fed_E11, momentum.lerp(grad, 1 - group["momentum"]), momentum, out=momentum)
    if momentum is not own:
        own.copy_(momentum)
    return grad.lerp(momentum, group["momentum"])


def _adamw_update(
    params: list[Tensor], state: dict[Tensor, dict[str, Any]], group: dict[str, Any], norms: Norms
) -> None:
    """AdamW (arXiv 1711.05101): torch's fused kernel, which goes over the tensors once."""
    for p in params:
        if not state[p]:
            step = torch.zeros((), device=p.device)  # there the kernel reads it
            state[p].update(step=step, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    parts = [local(p) for p in params]
    grads = [local(p.grad) for p in params if p.grad is not None]
    means, squares, steps = ([local(state[p][key]) for p in params] for key in ("exp_avg", "exp_avg_sq", "step"))
    lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
    adamw(
        parts, grads, means, squares, [], steps, fused=True, amsgrad=False, maximize=False,
        lr=lr, beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=eps,
    )  # fmt: skip
    if norms is not None:
        for p, mean, square, step in zip(params, means, squares, steps, strict=True):
            update = mean / ((square / (1 - beta2**step)).sqrt_().add_(eps))
            norms[p] = lr / (1 - beta1**step), _norm(update, p)


UPDATES = {"muon": _muon_update, "adamw": _adamw_update}


class Muon(torch.optim.Optimizer):
    """Optimizer over groups of kind "muon" and "adamw" (see `build_groups`).

    Every group has `params`, `kind` and `lr`; what else it may have stands, with its default, in DEFAULTS.
    Parameters of a Muon group are matrices [R, C] or batches of them [E, R, C].

    Where `update_norms` is a dict, a step puts there of each parameter a factor, and a scalar: their product is the L2
    norm of the update, without weight decay; of a sharded parameter the scalar is of this rank's part (norms.py).
    """

    update_norms: Norms = None

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        super().__init__(param_groups, {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        kind = param_group.get("kind")
        if kind not in DEFAULTS:
            raise ValueError(f"kind ({kind!r}) of an optimizer group is unknown; use one of {sorted(DEFAULTS)}")
        super().add_param_group({**DEFAULTS[kind], **param_group})
        for p in self.param_groups[-1]["params"]:
            if kind == "muon" and p.ndim not in (2, 3):
                raise ValueError(f"a Muon group holds a tensor of shape {tuple(p.shape)}; move it to an AdamW group")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                UPDATES[group["kind"]](params, self.state, group, self.update_norms)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for saved_id, p in zip(saved_ids, params, strict=True):
            for key, value in state_dict["state"].get(saved_id, {}).items():
                if key == "step" or self.state[p][key].dtype != value.dtype:
                    self.state[p][key] = value.to(p.device)
