"""Names that other trainers give to our settings, for the hint at an unknown key.

Sources, each name looked up in one of them in August 2026: transformers' TrainingArguments and model configs, and the
arguments of its example scripts; the arguments of Megatron-LM, nanoGPT, nanochat, torchtitan, OLMo-core, levanter, LLM
Foundry and MegaBlocks. A few more stand in many scripts: peak_lr, log_every, eval_batches, checkpoint_interval.
"""

from __future__ import annotations

BATCH = "a microbatch is device_train_microbatch_size, and the steps of accumulation follow from both"
LENGTH = "in tokens (10000000000tok) or steps (20000ba)"

# our setting, what has to be said with it, and what others call it
TABLE = [
    ("global_train_batch_size", "in sequences", "batch_size global_batch_size total_batch_size train_batch_size"),
    ("global_train_batch_size", BATCH, "gradient_accumulation_steps grad_accum_steps"),
    (
        "device_train_microbatch_size",
        "",
        "per_device_train_batch_size micro_batch_size microbatch_size device_batch_size local_batch_size "
        "rank_microbatch_size per_device_parallelism",
    ),
    ("max_duration", LENGTH, "max_steps max_iters train_iters num_iterations num_train_steps total_steps"),
    ("max_duration", LENGTH + ", not in epochs", "num_train_epochs num_epochs epochs"),
    (
        "max_seq_len",
        "",
        "block_size seq_len seq_length sequence_len sequence_length max_length max_position_embeddings",
    ),
    ("save_folder", "", "output_dir out_dir save_dir checkpoint_dir dump_folder"),
    ("save_interval", "e.g. 1000ba", "save_steps save_every checkpoint_interval"),
    ("save_num_checkpoints_to_keep", "", "save_total_limit"),
    ("eval_interval", "e.g. 1000ba", "eval_steps eval_every steps_per_eval"),
    ("eval_data.max_batches", "", "eval_iters eval_batches"),
    ("log_interval", "e.g. 10ba", "logging_steps log_every"),
    ("resume_from", "e.g. step:5000; without it the newest is taken", "resume_from_checkpoint"),
    ("load_path", "", "init_from"),
    ("precision", "amp_bf16, amp_fp16 or fp32", "dtype bf16 fp16 mixed_precision"),
    ("activation_checkpointing", "true or false", "gradient_checkpointing recompute_granularity"),
    ("compile", "", "torch_compile"),
    ("deterministic", "true or false", "deterministic_mode full_determinism"),
    ("gradient_clip_norm", "", "max_grad_norm max_norm grad_clip clip_grad"),
    ("num_workers", "", "dataloader_num_workers num_data_workers"),
    ("tokenizer", "", "tokenizer_name tokenizer_path tokenizer_name_or_path"),
    ("train_data.local", "converted data", "dataset data_path data_dir dataset_name"),
    ("loggers.wandb.project", "", "wandb_project"),
    ("optimizer.lr", "", "lr learning_rate max_lr peak_lr matrix_lr"),
    ("optimizer.adamw.embedding_lr", "where tie_embeddings is false", "embedding_lr"),
    ("optimizer.weight_decay", "", "weight_decay wd"),
    ("optimizer.adamw.betas", "a list of both", "beta1 beta2 adam_beta1 adam_beta2"),
    ("optimizer.adamw.eps", "", "adam_epsilon adam_eps"),
    ("scheduler.t_warmup", "e.g. 100ba", "warmup_steps warmup_iters lr_warmup_iters num_warmup_steps"),
    ("scheduler.t_warmup", "in tokens or steps, not as a share", "warmup_ratio"),
    ("scheduler.name", "", "lr_scheduler_type lr_scheduler lr_decay_style"),
    ("scheduler.alpha_f", "as a share of the peak", "min_lr min_lr_factor final_lr_frac"),
    ("model.d_model", "", "hidden_size hidden_dim n_embd dim model_dim"),
    ("model.n_layers", "", "num_layers num_hidden_layers n_layer depth"),
    ("model.n_heads", "", "num_attention_heads n_head num_heads"),
    ("model.n_kv_heads", "", "num_key_value_heads num_query_groups n_kv_head num_kv_heads"),
    ("model.n_experts", "", "num_experts num_local_experts n_routed_experts moe_num_experts"),
    ("model.dense_hidden", "of the first, dense layers", "dense_intermediate_size"),
    ("model.top_k", "", "num_experts_per_tok moe_top_k moe_router_topk"),
    (
        "model.expert_hidden",
        "of one expert",
        "intermediate_size moe_intermediate_size moe_ffn_hidden_size ffn_hidden_size",
    ),
    (
        "model.balance_loss",
        "",
        "router_aux_loss_coef moe_aux_loss_coeff moe_loss_weight lb_loss_weight",
    ),
    ("model.balance_rate", "with model.balance sign", "load_balance_coeff moe_router_bias_update_rate"),
    ("model.router_z_loss", "", "moe_z_loss_coeff moe_zloss_weight z_loss_weight"),
    ("model.norm_eps", "", "rms_norm_eps layernorm_epsilon"),
    ("model.tie_embeddings", "", "tie_word_embeddings"),
    ("model.dropout", "", "hidden_dropout resid_pdrop"),
]
NAMES = {name: (ours, note) for ours, note, names in TABLE for name in names.split()}


def hint_for(path: tuple[str, ...], depth: int) -> str | None:
    """What to say of a setting at `path` whose key `depth` is unknown: our key for that one, or for what was to be set
    in a section that there is not (`training.learning_rate`); None where no trainer that is known here has the name.
    """
    for key in (path[depth], path[-1]):
        name = key.lower().replace("-", "_")
        if name in NAMES and (ours := NAMES[name])[0] != ".".join(path):
            return f"did you mean {ours[0]}?" + f" ({ours[1]})" * bool(ours[1])
    return None
