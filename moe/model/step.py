"""One step of training as numbers: what its FLOPs and its memory (moe/model/memory.py) are counted from."""

from __future__ import annotations

from dataclasses import dataclass

from moe.config import Config
from moe.config.balance import BALANCE_RULES
from moe.model.flops import ParameterCount, count_parameters, dense_width, flops_per_token, model_shape


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of training. `microbatch` in sequences; `accumulated` where it is not the full batch of the device.

    muon: Muon for the matrices of the blocks (`momentum_bytes` each), else AdamW for all.
    compiled: `torch.compile` for blocks and loss; counted on a GPU alone (`inductor`).
    one_expert: the worst router: every token has one expert in common.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    n_experts: int
    top_k: int
    expert_hidden: int
    head_dim: int | None = None
    qk_norm: bool | str = "head"
    tie_embeddings: bool = True
    n_shared_experts: int = 0
    first_k_dense_replace: int = 0
    dense_hidden: int | None = None
    document_mask: bool = True
    dropout: float = 0.0
    bins: int = 0
    seq_len: int
    microbatch: int
    accumulated: bool = True
    activation_checkpointing: bool = False
    muon: bool = True
    momentum_bytes: int = 4
    gpu: bool
    bf16: bool
    compiled: bool = False
    n_gpus: int = 1
    one_expert: bool = False

    @property
    def tokens(self) -> int:
        return self.microbatch * self.seq_len

    @property
    def compute(self) -> int:
        """Bytes of a number in the products."""
        return 2 if self.bf16 else 4

    @property
    def inductor(self) -> bool:
        """Whether Inductor's GPU kernels run. On a CPU compiled blocks are counted as eager ones."""
        return self.compiled and self.gpu

    @property
    def channels(self) -> int:
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def sparse(self) -> int:
        """Layers of experts."""
        return self.n_layers - self.first_k_dense_replace

    @property
    def dense_width(self) -> int:
        """Hidden width of the MLP of a dense layer, 0 where there is none."""
        width = dense_width(
            self.dense_hidden,
            top_k=self.top_k,
            n_shared_experts=self.n_shared_experts,
            expert_hidden=self.expert_hidden,
        )
        return width if self.first_k_dense_replace else 0

    @property
    def count(self) -> ParameterCount:
        return count_parameters(**model_shape(self, self.vocab_size))

    @property
    def flops_per_token(self) -> float:
        return flops_per_token(**model_shape(self, self.vocab_size), seq_len=self.seq_len)


def make_step(config: Config, vocab_size: int, *, n_gpus: int, microbatch: int) -> Step:
    """The run's step on one of `n_gpus`. amp_fp16 takes the memory of bf16; `compile: auto` is taken for true."""
    return Step(
        **model_shape(config.model, vocab_size),
        document_mask=config.model.document_mask,
        dropout=config.model.dropout,
        bins=BALANCE_RULES[config.model.balance].bins,
        seq_len=config.max_seq_len,
        microbatch=microbatch,
        accumulated=microbatch < config.global_train_batch_size // n_gpus,
        activation_checkpointing=config.activation_checkpointing,
        muon=config.optimizer.name == "muon",
        momentum_bytes=2 if config.optimizer.momentum_dtype == "bf16" else 4,
        gpu=True,
        bf16=config.precision != "fp32",
        compiled=bool(config.compile),  # auto: Triton comes with torch for a GPU
        n_gpus=n_gpus,
    )
