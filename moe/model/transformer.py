"""The language model: embedding, blocks, norm, head.

- Maps one to one onto an architecture of transformers (moe/model/families). Parameter names and shapes are the
  checkpoint's contract.
- Labels are unshifted, as in transformers; the shift is in here. With labels the loss is computed here, over chunks
  of tokens: full logits never exist, and the head runs inside the wrapped forward of whatever wraps the model.
- With a cache, documents are not separated: what is generated is what any engine makes of the exported model.
- Compiled block by block, where it is: the blocks are alike. On a GPU also what the loss does between its products.
- What comes out with labels adds up over microbatches and ranks. No collective and no side effect in the forward pass.

B batch, S sequence, T = B*S tokens, D width, V vocabulary, L layers, E experts, K experts per token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.utils.checkpoint import checkpoint

from moe.config.balance import BALANCE_RULES, BalanceName
from moe.config.shape import shape_errors
from moe.model.attention import KVCache, has_varlen, rope_table
from moe.model.block import Block, MoE
from moe.model.documents import Layout, Packed, document_causal_mask, document_ends, document_ids, pack
from moe.model.flops import dense_width
from moe.model.init import init_weights
from moe.model.loss import IGNORE, TokenScores, linear_cross_entropy, token_scores
from moe.model.norm import RMSNorm
from moe.model.precision import Linear, compute_dtype, linear
from moe.model.ranks import sum_over_ranks
from moe.model.router import Router, RouterStats

# Dense and sparse blocks share one code: for each a graph of training and one of evaluation, of the first number of
# sequences, of any number and of a single one, make 12, and FSDP2 may add some. torch's own 8 would end a run.
MOST_GRAPHS = 32


class LossParts(NamedTuple):
    """Sums over the targets of one forward pass, and what its routers did.

    loss      fp32 scalar: nll + z_loss * z, summed over targets; the part of the three that carries gradient
    nll       fp32 scalar, negative log likelihood in nats summed over targets; detached
    z         fp32 scalar, squared logsumexp of the logits summed over targets; detached
    targets   int64 scalar, number of targets
    routers   of all layers that have one: each field with a leading L
    """

    loss: Tensor
    nll: Tensor
    z: Tensor
    targets: Tensor
    routers: RouterStats

    def detach(self) -> LossParts:
        return LossParts(
            self.loss.detach(), self.nll.detach(), self.z.detach(), self.targets.detach(), self.routers.detach()
        )

    def __add__(self, other: LossParts) -> LossParts:  # type: ignore[override]
        return LossParts(
            self.loss + other.loss,
            self.nll + other.nll,
            self.z + other.z,
            self.targets + other.targets,
            self.routers + other.routers,
        )

    def all_reduce(self) -> LossParts:
        """Of all ranks, in fp64."""
        loss, nll, z, targets = sum_over_ranks([self.loss, self.nll, self.z, self.targets])
        return LossParts(loss, nll, z, targets, self.routers.all_reduce())


class Transformer(nn.Module):
    """Decoder of n_layers pre-norm blocks.

    The first first_k_dense_replace blocks have a dense MLP of dense_hidden in the place of experts; None means
    (top_k + n_shared_experts) * expert_hidden. qk_norm: "head" (or True), "full" or False. head_dim None means
    d_model // n_heads; RoPE turns the first partial_rotary_factor of a head's channels.
    scoring_func, norm_topk_prob, routed_scaling_factor: see Router. balance (of BALANCE_RULES) decides
    whether routers have a bias; what the rule does is not in here. n_shared_experts: see MoE. z_loss is the weight of z
    in LossParts.loss. dropout acts on the embedding and on what each block adds to the residual stream.
    activation_checkpointing recomputes blocks in the backward pass. seed is that of the initial weights; None takes
    what torch.manual_seed was called with.

    Raises ValueError where heads or experts do not fit together (moe/config/shape.py).
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        eos_id: int,
        d_model: int,
        n_layers: int,
        n_heads: int,
        n_kv_heads: int,
        n_experts: int,
        top_k: int,
        expert_hidden: int,
        head_dim: int | None = None,
        rope_theta: float = 10000.0,
        norm_eps: float = 1e-6,
        qk_norm: bool | str = "head",
        tie_embeddings: bool = True,
        scoring_func: str = "softmax",
        norm_topk_prob: bool = True,
        routed_scaling_factor: float = 1.0,
        balance: BalanceName = "loss",
        n_shared_experts: int = 0,
        first_k_dense_replace: int = 0,
        dense_hidden: int | None = None,
        partial_rotary_factor: float = 1.0,
        document_mask: bool = True,
        dropout: float = 0.0,
        z_loss: float = 0.0,
        activation_checkpointing: bool = False,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        errors = shape_errors(
            d_model=d_model,
            n_layers=n_layers,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            n_experts=n_experts,
            top_k=top_k,
            head_dim=head_dim,
            qk_norm=qk_norm,
            partial_rotary_factor=partial_rotary_factor,
            balance=balance,
            first_k_dense_replace=first_k_dense_replace,
        )
        if not 0 < partial_rotary_factor <= 1:  # a config's ranges are checked before
            errors.append(f"model.partial_rotary_factor ({partial_rotary_factor}) must be above 0 and at most 1")
        if first_k_dense_replace < 0:
            errors.append(f"model.first_k_dense_replace ({first_k_dense_replace}) must be at least 0")
        if errors:
            raise ValueError("; ".join(errors))
        head_dim = d_model // n_heads if head_dim is None else head_dim
        rule = BALANCE_RULES[balance]
        routing = {
            "scoring_func": scoring_func,
            "norm_topk_prob": norm_topk_prob,
            "routed_scaling_factor": routed_scaling_factor,
            "bias": rule.moves_bias,
            "bins": rule.bins,
        }
        self.eos_id = eos_id
        self.head_dim = head_dim
        self.rotary_dim = int(head_dim * partial_rotary_factor)
        self.rope_theta = rope_theta
        self.document_mask = document_mask
        self.dropout = dropout
        self.z_loss = z_loss
        self.activation_checkpointing = activation_checkpointing
        self.compiled = False
        self.loss_backend: str | None = None
        self.embed = nn.Embedding(vocab_size, d_model)
        dense = dense_width(dense_hidden, top_k=top_k, n_shared_experts=n_shared_experts, expert_hidden=expert_hidden)
        self.blocks = nn.ModuleList(
            Block(
                d_model=d_model,
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                head_dim=head_dim,
                n_experts=n_experts,
                top_k=top_k,
                expert_hidden=expert_hidden,
                n_shared_experts=n_shared_experts,
                norm_eps=norm_eps,
                qk_norm=qk_norm,
                dropout=dropout,
                dense_hidden=dense if layer < first_k_dense_replace else None,
                routing=routing,
            )
            for layer in range(n_layers)
        )
        self.norm = RMSNorm(dim=d_model, eps=norm_eps)
        self.lm_head = None if tie_embeddings else Linear(d_model, vocab_size)
        init_weights(self, n_layers=n_layers, seed=torch.initial_seed() if seed is None else seed)

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix [V, D]: the embedding's when tied."""
        return self.embed.weight if self.lm_head is None else self.lm_head.weight

    @property
    def expert_layers(self) -> list[MoE]:
        """Router and experts of each layer that has them, in the order of `LossParts.routers`."""
        return [module for module in self.modules() if isinstance(module, MoE)]

    @property
    def expert_layer_numbers(self) -> list[int]:
        """Which of the blocks these are."""
        return [number for number, block in enumerate(self.blocks) if block.moe is not None]

    @property
    def routers(self) -> list[Router]:
        """In the order of `LossParts.routers`."""
        return [layer.router for layer in self.expert_layers]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles each block at its first use; one graph serves all. Names in the state stay as they are.

        The block's forward, not the module: hooks of what may wrap it (FSDP) then run outside of the graph. Gradients
        are computed as they are without compiling, each product in the dtype of its operands: left alone, a compiled
        backward pass runs under the autocast of the forward pass, which makes the router's products bf16.
        """
        if hasattr(functorch_config, "backward_pass_autocast"):  # not in torch 2.7
            functorch_config.backward_pass_autocast = "off"
        torch._dynamo.config.recompile_limit = max(MOST_GRAPHS, torch._dynamo.config.recompile_limit)
        self.compiled = True
        self.loss_backend = backend
        for block in self.blocks:
            block.forward = torch.compile(block.forward, backend=backend, fullgraph=True)  # type: ignore[method-assign]

    def _documents(self, tokens_BS: Tensor, ends_BM: Tensor | None, dtype: torch.dtype) -> Tensor | Packed:
        """What keeps the documents of a sequence apart, in the form that suits the device."""
        if not has_varlen(tokens_BS.device, dtype, self.head_dim):
            return document_causal_mask(document_ids(tokens_BS, self.eos_id), dtype)
        seq_len = tokens_BS.shape[1]
        if ends_BM is None:
            ends_BM = document_ends(tokens_BS, self.eos_id, room=seq_len)
        packed = pack(ends_BM, seq_len)
        if self.compiled:  # more room is no reason to compile again
            torch._dynamo.maybe_mark_dynamic(packed.starts_N, 0)
        return packed

    def _hidden(
        self, tokens_BS: Tensor, caches: list[KVCache] | None, ends_BM: Tensor | None, layout: Layout | None
    ) -> tuple[Tensor, RouterStats]:
        """Normed hidden states [B, S, D], and the statistics of all routers."""
        x_BSD = F.dropout(self.embed(tokens_BS), self.dropout, self.training)
        dtype = compute_dtype(x_BSD)
        start = caches[0].length if caches else 0
        cos, sin = rope_table(
            seq_len=start + tokens_BS.shape[1], head_dim=self.rotary_dim, theta=self.rope_theta, device=x_BSD.device
        )
        documents: Tensor | Packed | None = None
        if layout is not None:
            cos, sin = cos[layout.positions_BS], sin[layout.positions_BS]
            documents = layout.mask(dtype)
        else:
            cos, sin = cos[start:], sin[start:]
            if self.document_mask and caches is None:
                documents = self._documents(tokens_BS, ends_BM, dtype)
        rope = (cos.to(dtype), sin.to(dtype))
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        seen: list[RouterStats] = []
        layers: list[KVCache | None] = [*caches] if caches else [None] * len(self.blocks)
        for block, cache in zip(self.blocks, layers, strict=True):
            if recompute:
                x_BSD, stats = checkpoint(block, x_BSD, rope, documents, use_reentrant=False)
            else:
                x_BSD, stats = block(x_BSD, rope, documents, cache)
            if stats is not None:
                seen.append(stats)
        return self.norm(x_BSD), RouterStats.stack(seen)

    def forward(
        self,
        tokens_BS: Tensor,
        labels_BS: Tensor | None = None,
        caches: list[KVCache] | None = None,
        document_ends_BM: Tensor | None = None,
        layout: Layout | None = None,
        at_N: Tensor | None = None,
        scored_N: Tensor | None = None,
    ) -> Tensor | LossParts | TokenScores:
        """Logits [B, S, V] without labels; LossParts with labels (int64 [B, S], unshifted, -100 is no target).

        caches: one a layer, for generation; the tokens then follow those that the caches hold.
        document_ends_BM: of these tokens, by `document_ends`; spares work on a GPU and changes no result.
        layout: what each token looks at, in the place of the document mask.
        at_N: places among the B*S tokens: logits [N, V] behind these alone, or TokenScores of scored_N behind them.
        """
        x_BSD, routers = self._hidden(tokens_BS, caches, document_ends_BM, layout)
        if at_N is not None:
            x_ND = x_BSD.flatten(0, 1)[at_N]
            return (
                linear(x_ND, self.head_weight) if scored_N is None else token_scores(x_ND, self.head_weight, scored_N)
            )
        if labels_BS is None:
            return linear(x_BSD, self.head_weight)
        target_BS = F.pad(labels_BS[:, 1:], (0, 1), value=IGNORE)
        head = linear_cross_entropy(
            x_BSD.flatten(0, 1),
            self.head_weight,
            target_BS.flatten(),
            z_weight=self.z_loss,
            fused=self.loss_backend if x_BSD.is_cuda else None,
        )
        return LossParts(*head, (target_BS != IGNORE).sum(), routers)
