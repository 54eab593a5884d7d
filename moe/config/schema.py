"""Every setting, with its type, default and meaning. The string under a field is its row in docs/configuration.md.

Decisions: names are Composer's where Composer has one; frozen, so a value read anywhere is the value in the yaml;
keys that a run cannot do without (`run_name`, `model`, `train_data`, `max_duration`, ...) have no default.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from moe.config.balance import BalanceName
from moe.config.observe import EvalTasks, LoggersConfig


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    d_model: int
    "Width of the residual stream."
    n_layers: int
    "Transformer blocks; each has attention and, except the first `first_k_dense_replace`, an MoE layer."
    n_heads: int
    "Query heads."
    n_kv_heads: int
    "Key-value heads (grouped-query attention); must divide `n_heads`."
    n_experts: int
    "Experts in each layer. 1 makes a dense model."
    top_k: int
    "Experts that each token passes through. With 1 set `norm_topk_prob: false`, or the router learns nothing."
    expert_hidden: int
    "Hidden width of one expert (SwiGLU)."
    n_shared_experts: int = 0
    "Shared experts: one SwiGLU of this many times `expert_hidden` for every token (DeepSeekMoE, arXiv 2401.06066)."
    first_k_dense_replace: int = 0
    "So many of the first blocks have one dense MLP in the place of router and experts."
    dense_hidden: int | None = None
    "Its hidden width (SwiGLU). null means that of all experts of a token: (top_k + n_shared_experts) x expert_hidden."
    head_dim: int | None = None
    "Width of one head; null means `d_model / n_heads`."
    qk_norm: bool | str = "head"
    "RMSNorm on queries and keys: on each `head` (Qwen3), on the `full` width (OLMoE), or false. true means head."
    rope_theta: float = 10000.0
    "Base of the rotary position embedding."
    partial_rotary_factor: float = 1.0
    "Fraction of a head's channels that RoPE rotates."
    norm_eps: float = 1e-6
    "Epsilon of every RMSNorm."
    tie_embeddings: bool = True
    "One matrix for the embedding and the output head."
    document_mask: bool = True
    "Documents packed in one sequence do not attend to each other, and the token after an EOS is no target."
    dropout: float = 0.0
    "Dropout on the embedding and on both residual branches."
    scoring_func: Literal["softmax", "sigmoid"] = "softmax"
    "What makes scores of the router's logits: over all experts, or each expert alone (DeepSeek-V3)."
    norm_topk_prob: bool = True
    "The weights of a token's experts are divided by their sum; with `top_k: 1` that makes the one weight 1, always."
    routed_scaling_factor: float = 1.0
    "Factor on the routing weights, after `norm_topk_prob`."
    balance: BalanceName = "loss"
    "What loads experts evenly, a load-balance loss or an expert bias: [the rules](training.md#balance)."
    balance_rate: float | None = None
    "Step of an expert bias, of the rules that have one; null means that of the rule for a run of so many steps."
    balance_loss: float | None = None
    "Weight of each layer's load-balance loss (arXiv 2501.11873). null means 0.01, and 0 where `balance` moves a bias."
    router_z_loss: float = 0.001
    "Weight of the router z-loss, per layer (arXiv 2202.08906). A dense model (`n_experts: 1`) has none."
    z_loss: float = 0.0001
    "Weight of the z-loss on the output logits (arXiv 2204.02311)."


@dataclass(frozen=True, kw_only=True)
class AdamWConfig:
    lr: float | Literal["auto"] | None = None
    "Learning rate of the AdamW groups; null: `optimizer.lr`. auto: the same, by a rule with `adjust_lr_fn: original`."
    embedding_lr: float | Literal["auto"] | None = None
    "That of an embedding that is not the head too (`tie_embeddings: false`); null means `lr`. auto: by a rule."
    betas: tuple[float, float] = (0.9, 0.95)
    "Decay rates of the two moments."
    eps: float = 1e-8
    "Added to the root of the second moment."


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    lr: float | Literal["auto"]
    "Peak learning rate. auto: by a rule, from width, tokens and batch (docs/learning.md)."
    name: Literal["muon", "adamw"] = "muon"
    "`muon`: Muon for the blocks' matrices, AdamW for embeddings, head, norms. `adamw`: for all, at `adamw.lr` if set."
    weight_decay: float | Literal["auto"] = 0.1
    "Decoupled weight decay; none on norms. auto: by a rule, from `lr` and the number of steps."
    momentum: float = 0.95
    "Muon's Nesterov momentum."
    momentum_dtype: Literal["fp32", "bf16"] = "fp32"
    "Data type of Muon's momentum; bf16 halves its memory."
    adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    "Scale of Muon's update. `match_rms_adamw`: 0.2 sqrt(max(rows, cols)), lr about 1e-3. `original`: lr about 0.02."
    adamw: AdamWConfig = field(default_factory=AdamWConfig)


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    name: Literal["cosine_with_warmup", "wsd", "constant_with_warmup", "linear_decay_with_warmup"] = (
        "cosine_with_warmup"
    )
    "Shape of the learning rate over `max_duration`."
    t_warmup: str = "0ba"
    "Linear warmup, in tokens or steps, e.g. 100000000tok. auto: by a rule, from the number of steps."
    alpha_f: float = 0.1
    "Final learning rate as a share of the peak."
    t_decay: str | None = None
    "`wsd` only: length of the final decay, in tokens or steps."


@dataclass(frozen=True, kw_only=True)
class Stream:
    local: str
    "As `train_data.local`."
    remote: str | None = None
    "As `train_data.remote`."


@dataclass(frozen=True, kw_only=True)
class TrainStream(Stream):
    split: str = "train"
    "Subfolder of the data."
    proportion: float | None = None
    "Share of an epoch's sequences; streams without one share what is left by their size."
    repeat: float | None = None
    "Times the stream is read in an epoch; only where no stream has a `proportion`."
    choose: int | None = None
    "Sequences read in an epoch; only where no stream has a `proportion`."


@dataclass(frozen=True, kw_only=True)
class EvalStream(Stream):
    split: str = "val"
    "Subfolder of the data."


@dataclass(frozen=True, kw_only=True)
class TextData:
    dataset: str
    "Hub name, or a folder or file on this machine, of the kinds that a conversion reads."
    config: str | None = None
    "The dataset's config, e.g. sample-10BT for HuggingFaceFW/fineweb."
    split: str = "train"
    "The dataset's split."
    revision: str | None = None
    "Branch, tag or commit of a hub dataset."
    text_column: str = "text"
    "The column that holds the text."
    skip_bad_files: bool = False
    "Continue without files that cannot be read, and without the rest of one that breaks; each is reported."
    verify: Literal["samples", "full"] = "samples"
    "What identifies local files: samples of their bytes, or all bytes as well (`full` reads all text at each start)."
    val_fraction: float = 0.005
    "Share of the documents that are never trained on; the same ones as in a conversion with this fraction and seed."
    val_seed: int = 17
    "Decides which these are, as --seed of the conversion."
    lanes: int = 16
    "Places in the text that are read side by side; the number of ranks must divide it."


@dataclass(frozen=True, kw_only=True)
class TrainData:
    local: str | None = None
    "Folder made by `moe convert` (or where `remote` is cached). Give this, `streams` or `text`."
    remote: str | None = None
    "Where shards are fetched from as they are needed, e.g. s3://bucket/fineweb-10bt; null means all is in `local`."
    split: str = "train"
    "Subfolder of the data."
    verify: Literal["size", "full"] = "size"
    "Check of the shards before training: their sizes, or also their hashes (`full` reads all local data once)."
    cache_limit: str | None = None
    "With `remote`: most disk for fetched shards, e.g. 100gb; older ones go. At least four of the largest: 300mb."
    shuffle: bool = True
    "Shuffle sequences anew in each epoch (seeded)."
    num_canonical_nodes: int = 1
    "Partitions of the order, each with its own shards. A multiple of N lets N machines fetch 1/N of a `remote` each."
    streams: dict[str, TrainStream] = field(default_factory=dict)
    "A mixture of several folders, each under a name of its own (docs/data.md)."
    text: TextData | None = None
    "Text that is tokenised as it is read, without a conversion (docs/data.md)."


@dataclass(frozen=True, kw_only=True)
class EvalData:
    local: str | None = None
    "As `train_data.local`. Give this, `streams` or `text`."
    remote: str | None = None
    "As `train_data.remote`."
    split: str = "val"
    "Subfolder of the data."
    max_batches: int = 100
    "Batches (of `global_train_batch_size` sequences) per evaluation; -1 means all of the split."
    streams: dict[str, EvalStream] = field(default_factory=dict)
    "Several validation sets, each under a name of its own and logged as `metrics/eval/NAME/loss`."
    text: bool = False
    "Evaluate on the documents that `train_data.text` holds out."


@dataclass(frozen=True, kw_only=True)
class ParallelismConfig:
    fsdp2: bool = False
    "Divide weights, gradients and optimizer state among the ranks (torch's FSDP2); false: each rank holds them all."
    replicas: int = 1
    "With `fsdp2`: how often the ranks hold the model (HSDP); each replica is divided among ranks / replicas ranks."


@dataclass(frozen=True, kw_only=True)
class Config:
    run_name: str
    "Name of the run; part of the default `save_folder`."
    model: ModelConfig
    optimizer: OptimizerConfig
    train_data: TrainData
    max_duration: str
    "Length of the run: tokens (10000000000tok) or steps (20000ba)."
    global_train_batch_size: int
    "Sequences per optimizer step, over all ranks and microbatches."
    max_seq_len: int
    "Tokens per sequence; must be what the data was converted with."
    tokenizer: str
    "Hub name or folder of the tokenizer that the data was converted with."
    seed: int = 17
    "Seed of initialisation, data order and dropout."
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    eval_data: EvalData | None = None
    "Validation data; null turns evaluation off."
    device_train_microbatch_size: int | str = "auto"
    "Sequences per forward pass on one device: sets the memory, not the result. `auto` tries what fits a GPU."
    precision: Literal["amp_bf16", "amp_fp16", "fp32"] = "amp_bf16"
    "Where the device has no bf16, amp_bf16 becomes fp32, with one printed line."
    gradient_clip_norm: float = 1.0
    "Largest global gradient norm; larger ones are scaled down to it."
    activation_checkpointing: bool = False
    "Recompute each block in the backward pass: less memory for more time."
    parallelism: ParallelismConfig = field(default_factory=ParallelismConfig)
    "How several ranks share the work. No effect on the result beyond rounding; may change within a run."
    compile: bool | str = "auto"
    "torch.compile for each block. `auto`: on a GPU, where Triton is installed; not on CPU, which needs a C++ compiler."
    deterministic: bool = True
    "On a GPU: attention adds up gradients in a fixed order, without which no two runs have the same bits."
    num_workers: int = 2
    "Loader processes per rank."
    save_folder: str = "./checkpoints/${run_name}"
    "Run folder: checkpoints, config, logs. s3://bucket/prefix works in ./runs/{run_name} and uploads at each save."
    save_interval: str = "1000ba"
    "Time between checkpoints; the end of the run always makes one."
    save_num_checkpoints_to_keep: int = 3
    "Newest checkpoints that stay, across resumes; -1 keeps all."
    keep_every: str | None = None
    "The first checkpoint at or after each multiple of this is kept permanently."
    max_failed_saves: int = 5
    "Checkpoints in a row that could not be written (a full disk) that stop the run; 1 stops it at the first."
    autoresume: bool = True
    "The same command resumes from the newest checkpoint that verifies. false: a folder with a run in it is refused."
    resume_from: str | None = None
    "`step:5000` goes back to that checkpoint of this run."
    load_path: str | None = None
    "Checkpoint of another run to start from (a step folder, or a run folder for its newest)."
    load_weights_only: bool = True
    "With `load_path`: weights only, or also optimizer, step and data position."
    eval_interval: str = "1000ba"
    "Time between evaluations; the end of the run always makes one."
    eval_first: bool = True
    "Evaluate once before the first step."
    eval_tasks: EvalTasks | None = None
    "Benchmarks of lm-eval, scored on the model as it trains; null scores none."
    sample_prompts: list[str] = field(default_factory=list)
    "Texts that the model continues at every evaluation; shown and logged."
    log_interval: str = "10ba"
    "Time between log lines and logged metrics."
    loggers: LoggersConfig = field(default_factory=LoggersConfig)
    callbacks: list[Any] = field(default_factory=list)
    "Callbacks of your own or Composer's: `[{class: my_file.MyCallback, every: 100ba}]`, arguments beside the class."
    alert_command: str | None = None
    "Program to run at each alarm, e.g. `notify-send moe`: the message is its last argument and in $MOE_MESSAGE."
    max_skipped_steps: int = 20
    "Steps in a row with a non-finite gradient (each skipped on every rank) that stop the run."
    time_limit: str | None = None
    "Wall-clock time of one start of the command, e.g. 24h: then it saves and exits 75. Leave room for a last save."
    start_timeout: str = "10m"
    "How long the ranks of a start wait for each other: then the start says who is missing, and exits 75."
    stall_timeout: str = "auto"
    "Without progress for so long it writes all stacks and ends. Above a step's time. auto: 30m; 5m over machines."
    stop_grace: str = "25s"
    "How long a stop may take after SIGTERM: a few seconds less than passes until the kill (Composer's launcher: 30s)."
    check: bool = False
    "Check what the run needs, as `moe check` does, and exit: 0 when all is well, 2 when something must be fixed."
