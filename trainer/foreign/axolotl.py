"""Axolotl's YAML as a recipe.

Key names and defaults are those of axolotl/utils/schemas: `config.py`, `peft.py`, `training.py`, `datasets.py`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.trainer.foreign.axolotl_data import take_data
from adapterhub.trainer.foreign.common import (
    KERNEL,
    NOT_IN_4_BITS,
    PRECISION,
    RUNNING,
    SEVERAL_GPUS,
    Reading,
    carry,
    number,
    refuse,
    take_held_out,
    take_length,
    take_optimizer,
    take_schedule,
    take_scoring,
    take_targets,
)

TOOL = "Axolotl"

_SAME_PLUGINS = ("CutCrossEntropyPlugin", "LigerPlugin")
_TOKENS = "the tokenizer stays as it is, so the adapter fits the base that others have"
_PART = "all layers are trained"
_ADAM = "AdamW has its usual constants here"
_SCHEDULE = "the rate falls to 0 in the usual way"

_IGNORED = {
    "bf16": PRECISION, "fp16": PRECISION, "bfloat16": PRECISION, "float16": PRECISION, "float32": PRECISION,
    "tf32": PRECISION,
    "flash_attention": KERNEL, "xformers_attention": KERNEL, "sdp_attention": KERNEL, "flex_attention": KERNEL,
    "eager_attention": KERNEL, "attn_implementation": KERNEL, "flash_attn_*": KERNEL, "flex_attn_*": KERNEL,
    "lora_mlp_kernel": KERNEL, "lora_qkv_kernel": KERNEL, "lora_o_kernel": KERNEL, "lora_embedding_kernel": KERNEL,
    "unsloth_*": KERNEL, "liger_*": KERNEL, "torch_compile*": KERNEL, "gradient_checkpointing_kwargs": KERNEL,
    "activation_offloading": KERNEL, "layer_offloading": KERNEL, "cut_cross_entropy": KERNEL, "chunked_cross_entropy": KERNEL,
    "model_type": "the base's own configuration says it", "tokenizer_type": "the base's own configuration says it",
    "is_*_derived_model": "the base's own configuration says it",
    "trust_remote_code": "code from a repository is never run",
    "pad_to_sequence_len": "rows are packed or not padded", "eval_sample_packing": "held-out rows are scored one by one",
    "loss_watchdog_threshold": "a training whose loss is lost ends by itself",
    "loss_watchdog_patience": "a training whose loss is lost ends by itself",
    "saves_per_epoch": "a checkpoint is written at each evaluation", "save_strategy": "a checkpoint is written at each evaluation",
    "eval_strategy": "it is evaluated ten times a run, or as eval.every says", "shuffle_merged_datasets": "rows are always shuffled",
    "lora_fan_in_fan_out": "told from the layers", "eval_max_new_tokens": "see eval.sample_tokens",
    "loraplus_lr_embedding": "embeddings are not trained", "peft_autocast_adapter_dtype": PRECISION,
    "use_reentrant": KERNEL,
} | dict.fromkeys(
    (
        "strict", "debug", "dataset_prepared_path", "output_dir", "wandb_*", "mlflow_*", "comet_*", "swanlab_*", "trackio_*",
        "use_wandb", "use_mlflow", "use_comet", "otel_*", "use_otel*", "logging_steps", "local_rank", "resume_from_checkpoint",
        "auto_resume_from_checkpoints", "save_first_step", "save_total_limit", "save_safetensors", "save_only_model", "hub_*",
        "hf_use_auth_token", "push_dataset_to_hub", "dataset_processes", "dataset_num_proc", "dataset_keep_in_memory",
        "dataloader_*", "eval_batch_size", "eval_table_size", "remove_unused_columns", "device", "device_map", "ddp_*",
        "gc_steps", "profiler_steps*", "include_tokens_per_second", "include_tkps", "use_ray", "ray_*", "resources_per_worker",
        "low_cpu_mem_usage", "lora_on_cpu", "max_memory", "gpu_memory_limit", "experimental_skip_move_to_device",
        "skip_prepare_dataset", "sample_packing_group_size", "sample_packing_bin_size", "multipack_real_batches", "merge_lora",
        "merge_method", "sample_packing_eff_est", "total_num_tokens", "auto_find_batch_size", "tokenizer_use_fast",
        "tokenizer_save_jinja_files", "qlora_sharded_model_loading", "generate_samples", "metric_for_best_model",
        "greater_is_better",
    ),
    RUNNING,
)  # fmt: skip

_DIFFERING = {
    "lora_modules_to_save": "the embeddings and the head stay as they are; no whole module is trained",
    "lora_target_parameters": "adapters are on linear layers alone", "peft_layers_to_transform": _PART,
    "peft_layers_pattern": _PART, "peft_layer_replication": _PART, "unfrozen_parameters": _PART,
    "peft_trainable_token_indices": _TOKENS, "special_tokens": _TOKENS, "tokens": _TOKENS, "added_tokens_overrides": _TOKENS,
    "resize_token_embeddings_to_32x": _TOKENS, "tokenizer_config": _TOKENS, "fix_untrained_tokens": _TOKENS,
    "peft": "there are NF4 with double quantisation and no quantisation", "bnb_config_kwargs": "NF4 with double quantisation is fixed",
    "gptq": "the base is quantised as it is loaded, or not at all", "qat": "there is no quantisation-aware training",
    "quantization": "nothing is quantised afterwards", "fp8": "there is no training in float8",
    "deepspeed": SEVERAL_GPUS, "fsdp*": SEVERAL_GPUS, "sequence_parallel_degree": SEVERAL_GPUS, "context_parallel_size": SEVERAL_GPUS,
    "tensor_parallel_size": SEVERAL_GPUS, "dp_shard_size": SEVERAL_GPUS, "dp_replicate_size": SEVERAL_GPUS,
    "expert_parallel_size": SEVERAL_GPUS, "tensor_parallel": SEVERAL_GPUS, "ring_attn_func": SEVERAL_GPUS, "heads_k_stride": SEVERAL_GPUS,
    "relora*": "there is no ReLoRA", "jagged_restart_*": "there are no restarts", "lisa_*": "there is no LISA",
    "adam_beta1": _ADAM, "adam_beta2": _ADAM, "adam_beta3": _ADAM, "adam_epsilon*": _ADAM, "optim_args": _ADAM,
    "optim_target_modules": "AdamW trains the adapter alone", "embedding_lr*": "embeddings are not trained",
    "cosine_min_lr_ratio": _SCHEDULE, "cosine_constant_lr_ratio": _SCHEDULE, "lr_scheduler_kwargs": _SCHEDULE, "lr_quadratic_warmup": _SCHEDULE,
    "lr_div_factor": _SCHEDULE, "lr_groups": "all of the adapter has one rate (or LoRA+'s two)",
    "group_by_length": "rows are shuffled freely", "curriculum_sampling": "rows are shuffled freely",
    "sample_packing_sequentially": "rows are shuffled freely", "s2_attention": "attention is the model's own",
    "scaling_softmax": "attention is the model's own", "use_pose": "there is no PoSE", "pose_*": "there is no PoSE",
    "overrides_of_model_*": "the base is loaded as it is", "rope_*": "the base is loaded as it is",
    "revision_of_model": "`adapterhub base add` says which revision lies here", "quantize_moe_experts": "experts are left as they are",
    "default_system_message": "give a template that says it", "eot_tokens": "the template and the tokenizer say what ends a turn",
    "test_datasets": "held-out rows come from data.path, by hash", "dataset_exact_deduplication": "duplicates stay: `adapterhub data report` lists them",
    "min_sample_len": "short rows stay", "excess_length_strategy": "rows that are too long are cut", "train_on_inputs": "the loss is on the answers alone",
    "dpo_*": "DPO is as in its paper", "rpo_alpha": "DPO is as in its paper", "lora_model_dir": (
        "put it into the store (adapterhub add DIR --name NAME), then write start_from: NAME"
    ),
    "dataset_shard_*": "all rows are used", "batch_flattening": "set packing",
}  # fmt: skip


def read(given: Mapping[str, Any], folder: Path) -> Reading:
    """The configuration `given`, from a file in `folder`, as a recipe without its name.

    UsageError where it isn't a training of an adapter, or of a kind that adapterhub hasn't.
    """
    reading = Reading(TOOL, given)
    _take_objective(reading)
    _take_adapter(reading)
    take_data(reading, folder)
    reading.keep("base_model", "base", reading.get("base_model"))
    if reading.has("base_model_config"):
        reading.ignore("base_model_config", "the base has it")
    for key in ("tokenizer_config", "processor_type"):
        if reading.get(key) == reading.get("base_model"):
            reading.ignore(key, "it is the base's")
    steps = take_length(reading, "num_epochs", 1)
    _take_batch(reading)
    carry(
        reading,
        {
            "learning_rate": ("learning_rate", None),
            "weight_decay": ("weight_decay", None),
            "max_grad_norm": ("max_grad_norm", None),
            "sequence_len": ("max_length", 512),
            "seed": ("seed", 42),
            "use_tensorboard": ("tensorboard", None),
        },
    )
    take_optimizer(reading, "optimizer", "adamw")
    take_schedule(reading, "lr_scheduler", "cosine", 0.03, steps)
    held_out = take_held_out(reading, "val_set_size")
    take_scoring(reading, held_out, steps, ("early_stopping_patience",))
    _take_template(reading, folder)
    _take_rest(reading)
    reading.finish(_IGNORED, _DIFFERING)
    return reading


def _take_objective(reading: Reading) -> None:
    for key in ("reward_model", "process_reward_model"):
        if reading.get(key):
            raise refuse(TOOL, "trains a reward model", "adapterhub trains sft and dpo.")
    kind = reading.get("rl")
    if kind is None:
        return
    if kind != "dpo":
        raise refuse(TOOL, f"has rl: {kind}", "adapterhub trains sft and dpo.")
    reading.keep("rl", "objective", "dpo")
    for key in ("rl_beta", "dpo_beta"):
        if reading.has(key):
            reading.keep(key, "dpo.beta", number(reading.get(key)))
    if reading.has("dpo_loss_type") and "sigmoid" not in str(reading.get("dpo_loss_type")):
        raise refuse(
            TOOL,
            f"has dpo_loss_type: {reading.get('dpo_loss_type')}",
            "DPO's own loss is there alone.",
        )


def _take_adapter(reading: Reading) -> None:
    adapter = reading.get("adapter")
    if adapter not in ("lora", "qlora"):
        what = (
            "trains all weights (it has no adapter)"
            if adapter is None
            else f"has adapter: {adapter}"
        )
        raise refuse(TOOL, what, "adapterhub trains adapters: adapter: lora or qlora.")
    quantised = reading.get("load_in_4bit") or adapter == "qlora"
    reading.keep("adapter", "method", "qlora" if quantised else "lora")
    if reading.has("load_in_4bit"):
        reading.keep("load_in_4bit", "method", "qlora" if quantised else "lora")
    if reading.get("load_in_8bit"):
        reading.differ(
            "load_in_8bit",
            "the base is held as it is, or in 4 bits: more memory, less rounding",
            "method",
            "lora",
        )
    elif reading.has("load_in_8bit"):
        reading.ignore("load_in_8bit", "it is off")
    carry(
        reading,
        {
            "lora_r": ("rank", 8),
            "lora_alpha": ("alpha", 8),
            "lora_dropout": ("dropout", None),
            "peft_use_rslora": ("use_rslora", None),
            "loraplus_lr_ratio": ("loraplus_ratio", None),
            "neftune_noise_alpha": ("neftune_alpha", None),
            "noisy_embedding_alpha": ("neftune_alpha", None),
        },
    )
    if reading.has("peft_use_dora"):
        reading.keep("peft_use_dora", "kind", "dora" if reading.get("peft_use_dora") else "lora")
    _take_beginning(reading)
    _take_targets(reading)


def _take_beginning(reading: Reading) -> None:
    key = "peft_init_lora_weights"
    if not reading.has(key):
        return
    word = str(reading.get(key)).lower()
    if word in ("true", "olora", "pissa") or word.startswith("pissa_niter"):
        ours = "default" if word == "true" else word.partition("_")[0]
        if ours != "default" and reading.document.get("method") == "qlora":
            reading.differ(key, NOT_IN_4_BITS, "init", "default")
        else:
            reading.keep(key, "init", ours)
    else:
        reading.differ(key, "there are default, pissa and olora", "init", "default")


def _take_targets(reading: Reading) -> None:
    listed = reading.get("lora_target_modules")
    if reading.get("lora_target_linear"):
        reading.keep("lora_target_linear", "target_modules", "all-linear")
        if listed is not None:
            reading.ignore("lora_target_modules", "lora_target_linear has them all")
        return
    if reading.has("lora_target_linear"):
        reading.ignore("lora_target_linear", "it is off")
    if listed == "all-linear":
        reading.keep("lora_target_modules", "target_modules", "all-linear")
    elif isinstance(listed, list):
        take_targets(reading, "lora_target_modules", [str(name) for name in listed])
    elif listed is not None:
        why = "a pattern can't be given, only names"
        reading.differ("lora_target_modules", why, "target_modules", "all-linear")
    else:
        reading.assume("target_modules", "all-linear", "it has none, and PEFT chooses by the model")


def _take_batch(reading: Reading) -> None:
    carry(reading, {"micro_batch_size": ("batch_size", None)})
    whole, part = number(reading.get("batch_size")), number(reading.get("micro_batch_size", 1))
    if reading.has("gradient_accumulation_steps"):
        carry(reading, {"gradient_accumulation_steps": ("gradient_accumulation", None)})
    elif isinstance(whole, int) and isinstance(part, int) and part > 0 and whole % part == 0:
        reading.keep(
            "batch_size", "gradient_accumulation", whole // part, f"{whole} / {part} on one GPU"
        )
    packing = bool(reading.get("sample_packing"))
    if reading.has("sample_packing"):
        reading.keep("sample_packing", "packing", packing)
    else:
        reading.assume("packing", False)
    if reading.has("gradient_checkpointing"):
        reading.keep(
            "gradient_checkpointing",
            "gradient_checkpointing",
            bool(reading.get("gradient_checkpointing")),
        )


def _take_template(reading: Reading, folder: Path) -> None:
    own = "the base's own chat template is used; another is a file: template: FILE.jinja"
    inline = reading.get("chat_template_jinja")
    if isinstance(inline, str) and os.path.isfile(folder / inline):  # noqa: PTH113 - a template is no name, and may be too long for one
        reading.keep("chat_template_jinja", "template", inline)
    elif inline is not None:
        reading.differ("chat_template_jinja", "save it to a file and write template: FILE.jinja")
    if reading.get("chat_template") == "tokenizer_default":
        reading.ignore("chat_template", "the base's own is used")
    elif reading.get("chat_template") == "jinja" and "template" in reading.document:
        reading.ignore("chat_template", "chat_template_jinja names it")
    elif reading.has("chat_template"):
        reading.differ("chat_template", own)


def _take_rest(reading: Reading) -> None:
    """Keys whose value decides whether they make a difference."""
    special = reading.get("special_tokens")
    if isinstance(special, dict) and {key for key, value in special.items() if value} <= {
        "pad_token"
    }:
        reading.ignore("special_tokens", "padding is never trained")
    plugins = reading.get("plugins")
    if isinstance(plugins, list) and all(str(name).endswith(_SAME_PLUGINS) for name in plugins):
        reading.ignore("plugins", KERNEL)
    elif plugins is not None:
        reading.differ("plugins", "what they change isn't known here")
