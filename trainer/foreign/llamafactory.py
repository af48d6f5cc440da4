"""LLaMA-Factory's YAML as a recipe.

Key names and defaults are those of llamafactory/hparams: `finetuning_args.py`, `data_args.py`, `model_args.py`, and of
transformers' TrainingArguments beneath them. Data are names there, which its `dataset_info.json` knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.canonical import read_object
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

TOOL = "LLaMA-Factory"
INFO_NAME = "dataset_info.json"

_TOKENS = "the tokenizer stays as it is, so the adapter fits the base that others have"
_ADAM = "AdamW has its usual constants here"
_MULTIMODAL = "adapterhub trains on text"
_IGNORED = {
    "trust_remote_code": "code from a repository is never run",
    "use_fast_tokenizer": "the tokenizer has to be a fast one",
    "flash_attn": KERNEL, "enable_liger_kernel": KERNEL, "use_unsloth": KERNEL, "use_unsloth_gc": KERNEL, "use_kt": KERNEL,
    "kt_*": KERNEL, "use_v1_kernels": KERNEL, "use_reentrant_gc": KERNEL, "torch_compile*": KERNEL,
    "bf16": PRECISION, "fp16": PRECISION, "pure_bf16": PRECISION, "tf32": PRECISION, "upcast_*": PRECISION,
    "infer_dtype": PRECISION, "compute_dtype": PRECISION,
    "pissa_convert": "the adapter is always stored as plain LoRA", "pissa_iter": "PiSSA takes the exact singular vectors",
    "loraplus_lr_embedding": "embeddings are not trained", "loraplus_lr_embed": "embeddings are not trained",
    "save_strategy": "a checkpoint is written at each evaluation", "ignore_pad_token_for_loss": "padding is never trained",
    "eval_strategy": "it is evaluated ten times a run, or as eval.every says", "create_new_adapter": "so it is here",
    "do_eval": "held-out rows are scored where there are any", "group_by_modality_length": _MULTIMODAL,
} | dict.fromkeys(
    (
        "do_train", "overwrite_cache", "preprocessing_*", "dataloader_*", "output_dir", "logging_*", "plot_loss",
        "overwrite_output_dir", "save_only_model", "save_total_limit", "save_safetensors", "ddp_*", "resume_from_checkpoint",
        "per_device_eval_batch_size", "tokenized_path", "cache_dir", "run_name", "use_swanlab", "swanlab_*", "use_wandb",
        "include_num_input_tokens_seen", "include_effective_tokens_per_second", "push_to_hub", "hub_*", "hf_hub_token",
        "ms_hub_token", "om_hub_token", "ray_run_name", "ray_storage_*", "resources_per_worker", "placement_strategy",
        "ray_init_kwargs", "low_cpu_mem_usage", "offload_folder", "media_dir", "print_param_status", "disable_shuffling_*",
        "compute_accuracy", "eval_on_each_dataset", "streaming", "buffer_size", "data_shared_file_system", "max_new_tokens",
        "predict_with_generate", "split_special_tokens", "disable_tqdm", "remove_unused_columns", "bf16_full_eval",
        "eval_delay", "optim_target_modules", "export_*",
    ),
    RUNNING,
)  # fmt: skip

_DIFFERING = {
    "additional_target": "no whole module is trained; the embeddings and the head stay as they are",
    "adapter_name_or_path": "put it into the store (adapterhub add DIR --name NAME), then write start_from: NAME",
    "deepspeed": SEVERAL_GPUS, "fsdp*": SEVERAL_GPUS, "ray_num_workers": SEVERAL_GPUS, "use_megatron*": SEVERAL_GPUS, "use_mca": SEVERAL_GPUS,
    "sequence_parallel_size": SEVERAL_GPUS,
    "rope_scaling": "the base is loaded as it is", "shift_attn": "attention is the model's own", "mixture_of_depths": "the base is loaded as it is",
    "model_revision": "`adapterhub base add` says which revision lies here",
    "resize_vocab": _TOKENS, "add_tokens": _TOKENS, "add_special_tokens": _TOKENS, "new_special_tokens_config": _TOKENS,
    "train_on_prompt": "the loss is on the answers alone", "mask_history": "the loss is on every answer, not on the last one",
    "mix_strategy": "files are put together", "interleave_probs": "files are put together",
    "eval_dataset": "held-out rows come from data.path, by hash", "tool_format": "tool calls are as the Hermes convention has them",
    "default_system": "give a template that says it", "enable_thinking": "the template says it", "efficient_eos": "the template says it",
    "train_from_scratch": "an adapter is trained", "pref_ftx": "DPO is as in its paper", "pref_bco_weight": "DPO is as in its paper",
    "dpo_label_smoothing": "DPO is as in its paper", "ld_alpha": "DPO is as in its paper", "ref_model*": "the reference is the base itself",
    "use_galore": "AdamW trains the adapter alone", "galore_*": "AdamW trains the adapter alone", "use_apollo": "AdamW trains the adapter alone",
    "apollo_*": "AdamW trains the adapter alone", "use_badam": "AdamW trains the adapter alone", "badam_*": "AdamW trains the adapter alone",
    "use_adam_mini": "AdamW trains the adapter", "use_muon": "AdamW trains the adapter",
    "adam_beta1": _ADAM, "adam_beta2": _ADAM, "adam_epsilon": _ADAM, "optim_args": _ADAM,
    "lr_scheduler_kwargs": "the rate falls to 0 in the usual way", "group_by_length": "rows are shuffled freely",
    "use_dft_loss": "the loss is cross entropy", "use_asft_loss": "the loss is cross entropy", "use_eaft_loss": "the loss is cross entropy",
    "asft_alpha": "the loss is cross entropy", "eaft_alpha": "the loss is cross entropy", "label_smoothing_factor": "the loss is cross entropy",
    "use_llama_pro": "no block is added", "freeze_*": "adapters are trained", "image_*": _MULTIMODAL, "video_*": _MULTIMODAL, "audio_*": _MULTIMODAL,
    "freeze_vision_tower": _MULTIMODAL, "freeze_multi_modal_projector": _MULTIMODAL, "moe_aux_loss_coef": "the loss is cross entropy",
    "quantization_device_map": "the base is on one device", "fp8*": "there is no training in float8",
}  # fmt: skip


def read(given: Mapping[str, Any], folder: Path) -> Reading:
    """The configuration `given`, from a file in `folder`, as a recipe without its name.

    UsageError where it isn't a training of an adapter, or of a kind that adapterhub hasn't.
    """
    reading = Reading(TOOL, given)
    if reading.get("do_train") is False:
        raise refuse(TOOL, "doesn't train", "It has do_train: false.")
    _take_method(reading)
    _take_data(reading, folder)
    reading.keep("model_name_or_path", "base", reading.get("model_name_or_path"))
    _take_quantisation(reading)
    _take_adapter(reading)
    steps = take_length(reading, "num_train_epochs", 3)
    carry(
        reading,
        {
            "per_device_train_batch_size": ("batch_size", 8),
            "gradient_accumulation_steps": ("gradient_accumulation", None),
            "learning_rate": ("learning_rate", 5e-5),
            "weight_decay": ("weight_decay", None),
            "max_grad_norm": ("max_grad_norm", None),
            "cutoff_len": ("max_length", 2048),
            "neftune_noise_alpha": ("neftune_alpha", None),
            "seed": ("seed", 42),
        },
    )
    take_optimizer(reading, "optim", "adamw")
    take_schedule(reading, "lr_scheduler_type", "linear", 0.0, steps)
    held_out = take_held_out(reading, "val_size")
    take_scoring(reading, held_out, steps, ("early_stopping_steps",))
    _take_running(reading)
    reading.finish(_IGNORED, _DIFFERING)
    return reading


def _take_method(reading: Reading) -> None:
    kind = reading.get("finetuning_type", "lora")
    if kind != "lora":
        raise refuse(
            TOOL, f"has finetuning_type: {kind}", "adapterhub trains low-rank adapters: lora."
        )
    if reading.has("finetuning_type"):
        reading.keep("finetuning_type", "kind", "lora")
    stage = reading.get("stage", "sft")
    if stage not in ("pt", "sft", "dpo"):
        raise refuse(
            TOOL, f"has stage: {stage}", "adapterhub trains sft (on documents as well) and dpo."
        )
    loss = reading.get("pref_loss", "sigmoid")
    if stage == "dpo" and loss != "sigmoid":
        raise refuse(TOOL, f"has pref_loss: {loss}", "DPO's own loss (sigmoid) is there alone.")
    if reading.has("stage"):
        reading.keep("stage", "objective", "dpo" if stage == "dpo" else "sft")
    if reading.has("pref_loss"):
        reading.ignore("pref_loss", "so it is here")
    if reading.has("pref_beta"):
        reading.keep("pref_beta", "dpo.beta", number(reading.get("pref_beta")))
    packing = reading.get("packing")
    neat = bool(reading.get("neat_packing"))
    packed = bool(packing) or neat or (stage == "pt" and packing is None)
    if packed and not neat:
        why = "rows packed together don't see each other here (neat_packing)"
        if reading.has("packing"):
            reading.differ("packing", why, "packing", True)
        else:
            reading.assume("packing", True, f"documents are packed; {why}")
    elif reading.has("packing"):
        reading.keep("packing", "packing", packed)
    elif not neat:
        reading.assume("packing", False)
    if reading.has("neat_packing"):
        reading.keep("neat_packing", "packing", packed)


def _take_quantisation(reading: Reading) -> None:
    bits = number(reading.get("quantization_bit"))
    if bits is None:
        reading.document["method"] = "lora"
        for key in ("quantization_method", "quantization_type", "double_quantization"):
            if reading.has(key):
                reading.ignore(key, "nothing is quantised")
        return
    if bits == 4:
        reading.keep("quantization_bit", "method", "qlora")
    else:
        why = "the base is held as it is, or in 4 bits: more memory, less rounding"
        reading.differ("quantization_bit", why, "method", "lora")
    for key, same, why in (
        ("quantization_method", ("bnb", "bitsandbytes"), "the base is quantised by bitsandbytes"),
        ("quantization_type", ("nf4",), "the base is in NF4"),
        ("double_quantization", (True,), "NF4 is doubly quantised: 4.13 bits a weight, not 4.5"),
    ):
        if reading.has(key) and reading.get(key) in same:
            reading.ignore(key, "so it is here")
        elif reading.has(key):
            reading.differ(key, why)


def _take_adapter(reading: Reading) -> None:
    carry(reading, {"lora_rank": ("rank", 8)})
    if reading.has("lora_alpha"):
        reading.keep("lora_alpha", "alpha", number(reading.get("lora_alpha")))
    else:
        rank = reading.document["rank"]
        alpha = 2 * rank if isinstance(rank, int) else 16
        reading.assume("alpha", alpha, "twice the rank")
    carry(
        reading,
        {
            "lora_dropout": ("dropout", None),
            "use_rslora": ("use_rslora", None),
            "loraplus_lr_ratio": ("loraplus_ratio", None),
        },
    )
    if reading.has("use_dora"):
        reading.keep("use_dora", "kind", "dora" if reading.get("use_dora") else "lora")
    if reading.has("pissa_init"):
        wanted = bool(reading.get("pissa_init"))
        if wanted and reading.document.get("method") == "qlora":
            reading.differ("pissa_init", NOT_IN_4_BITS, "init", "default")
        else:
            reading.keep("pissa_init", "init", "pissa" if wanted else "default")
    targets = reading.get("lora_target", "all")
    names = (
        [name.strip() for name in targets.split(",")]
        if isinstance(targets, str)
        else list(map(str, targets))
        if isinstance(targets, list)
        else ["all"]
    )
    if names == ["all"]:
        if reading.has("lora_target"):
            reading.keep("lora_target", "target_modules", "all-linear")
    else:
        take_targets(reading, "lora_target", [name for name in names if name])


def _take_running(reading: Reading) -> None:
    if reading.has("disable_gradient_checkpointing"):
        kept = not reading.get("disable_gradient_checkpointing")
        reading.keep("disable_gradient_checkpointing", "gradient_checkpointing", kept)
    elif reading.has("gradient_checkpointing"):
        kept = bool(reading.get("gradient_checkpointing"))
        reading.keep("gradient_checkpointing", "gradient_checkpointing", kept)
    if reading.has("report_to"):
        named = reading.get("report_to")
        board = "tensorboard" in (named if isinstance(named, list) else [named])
        if board:
            reading.keep("report_to", "tensorboard", True)
        else:
            reading.ignore("report_to", RUNNING)
    if reading.has("template"):
        reading.differ(
            "template",
            "the base's own chat template is used; another is a file: template: FILE.jinja",
        )
    if reading.get("mix_strategy") == "concat":
        reading.ignore("mix_strategy", "so it is here")


def _take_data(reading: Reading, folder: Path) -> None:
    names = reading.get("dataset")
    names = [one.strip() for one in names.split(",")] if isinstance(names, str) else names
    if not isinstance(names, list) or not names:
        raise refuse(TOOL, "names no training data", "`dataset` is missing.")
    where, info = _information(reading, folder)
    if reading.has("dataset_dir"):
        reading.inner(
            "dataset_dir",
            reading.get("dataset_dir"),
            "kept",
            why=f"{INFO_NAME} was looked for there",
        )
        reading.told("dataset_dir", "kept")
    paths, formats = [], []
    preferences, documents = (reading.get("stage") == kind for kind in ("dpo", "pt"))
    for name in map(str, names):
        entry = info.get(name)
        if isinstance(entry, Mapping):
            path, shape = _address(entry, where), _format(reading, name, entry)
            reading.inner(
                f"dataset {name}",
                name,
                "kept",
                became=f"data.path: {path}",
                why=f"from {where / INFO_NAME}",
            )
        else:
            path, shape = f"{name}.json", None
            missing = (
                f"{where / INFO_NAME} has no such name" if info else f"there is no {INFO_NAME} here"
            )
            reading.inner(
                f"dataset {name}", name, "differs", became=f"data.path: {path}",
                why=f"a name of {TOOL}'s, and {missing}: write the file's path",
            )  # fmt: skip
        paths.append(path)
        formats.append("preference" if preferences else "text" if documents else shape)
    reading.told("dataset", "kept", became="data.path")
    data = reading.document["data"]
    data["path"] = paths[0] if len(paths) == 1 else paths
    data["format"] = formats[0] if len(set(formats)) == 1 else None
    if reading.has("max_samples"):
        most = number(reading.get("max_samples"))
        if len(paths) == 1:
            reading.keep("max_samples", "data.limit", most, "chosen by hash, not the first ones")
        else:
            total = most * len(paths) if isinstance(most, int) else most
            reading.differ("max_samples", "of all files together, not of each", "data.limit", total)


def _information(reading: Reading, folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Where dataset_info.json lies, and what it says; an empty mapping where there is none."""
    named = reading.get("dataset_dir", "data")
    places = [Path(named), folder / named, folder] if isinstance(named, str) else [folder]
    for place in places:
        if (place / INFO_NAME).is_file():
            return place, read_object(place / INFO_NAME, INFO_NAME)
    return places[-1], {}


def _address(entry: Mapping[str, Any], where: Path) -> str:
    if entry.get("file_name"):
        return str(where / str(entry["file_name"]))
    if entry.get("hf_hub_url"):
        part = f"/{entry['folder']}" if entry.get("folder") else ""
        return f"hf://datasets/{entry['hf_hub_url']}{part}"
    return str(
        next(
            (
                entry[key]
                for key in ("cloud_file_name", "ms_hub_url", "script_url")
                if entry.get(key)
            ),
            "",
        )
    )


def _format(reading: Reading, name: str, entry: Mapping[str, Any]) -> str | None:
    """Our format for a data set of dataset_info.json; columns of other names are told."""
    columns = entry.get("columns") if isinstance(entry.get("columns"), Mapping) else {}
    tags = entry.get("tags") if isinstance(entry.get("tags"), Mapping) else {}
    assert isinstance(columns, Mapping)
    assert isinstance(tags, Mapping)
    for key in ("subset", "split", "num_samples"):
        if entry.get(key) not in (None, "train"):
            reading.inner(
                f"dataset {name}.{key}",
                entry[key],
                "differs",
                why="all rows are used, or data.limit of them",
            )
    if entry.get("formatting", "alpaca") == "sharegpt":
        expected = {"messages": "conversations", "role_tag": "from", "content_tag": "value"}
        shape = "sharegpt"
        if tags.get("role_tag") == "role" and tags.get("content_tag") == "content":
            expected = {"messages": "messages", "role_tag": "role", "content_tag": "content"}
            shape = "messages"
    else:
        expected = {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "system": "system",
        }
        shape = "alpaca"
        if set(columns) == {"prompt"}:
            expected, shape = {"prompt": "text"}, "text"
    for key, ours in expected.items():
        theirs = {**columns, **tags}.get(key, ours)
        if theirs != ours:
            reading.inner(
                f"dataset {name}.{key}",
                theirs,
                "differs",
                why=f"the column has to be called {ours}",
            )
    if "history" in columns:
        reading.inner(
            f"dataset {name}.history",
            columns["history"],
            "differs",
            why="earlier turns are left out",
        )
    return "preference" if entry.get("ranking") else shape
