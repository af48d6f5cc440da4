"""The model to train: the base as it lies on disk or in NF4, with an adapter on it.

Whatever the precision of the base, the adapter is trained in float32: at a learning rate of 2e-4 a step is smaller than
a bf16 weight can show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.trainer.methods import adapter_config
from adapterhub.trainer.ranks import sharded

if TYPE_CHECKING:
    import torch

    from adapterhub.base import BaseModel
    from adapterhub.trainer.recipe import Recipe


@dataclass(frozen=True)
class Device:
    """Where and in what precision the base computes. CPU: float32. CUDA: bfloat16 where the GPU has it."""

    kind: str
    """cpu | cuda"""
    name: str
    dtype: str
    index: int = 0
    """Of the GPU this process computes on."""

    @property
    def bf16(self) -> bool:
        return self.dtype == "bfloat16"


def choose_device() -> Device:
    """A GPU where there is one (with a launcher: this process's own), else the CPU."""
    import os
    import platform

    import torch

    if torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", "0"))
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if native else "float32"
        return Device("cuda", torch.cuda.get_device_name(index), dtype, index)
    return Device("cpu", platform.processor() or platform.machine(), "float32")


def load_for_training(
    recipe: Recipe,
    base: BaseModel,
    device: Device,
    *,
    steps: int = 1000,
    start: Path | None = None,
) -> Any:
    """The base with the recipe's adapter, its random initialisation drawn from the recipe's seed.

    Args:
        steps: the training's length, for kinds that plan by it.
        start: a PEFT folder whose adapter is trained on, in place of a fresh one.

    Raises UsageError when a target module is not in the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

    dtype: torch.dtype = getattr(torch, device.dtype)
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if device.kind == "cuda" and find_spec("flash_attn") is not None:
        options["attn_implementation"] = "flash_attention_2"
    if recipe.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype if sharded() else torch.uint8,
        )
        if not sharded():
            options["device_map"] = {"": device.index if device.kind == "cuda" else "cpu"}
    model: Any = AutoModelForCausalLM.from_pretrained(base.path, **options)
    if recipe.method == "lora" and not sharded():
        model = model.to(device.kind)
    set_seed(recipe.seed)
    return attach(model, recipe, base, steps=steps, start=start)


def attach(
    model: Any, recipe: Recipe, base: BaseModel, *, steps: int = 1000, start: Path | None = None
) -> Any:
    """`model` with an adapter that names its base by repository and revision, never by a path."""
    from peft import PeftConfig, PeftModel, get_peft_model

    model.name_or_path = base.repo or ""
    if start is not None:
        config: Any = PeftConfig.from_pretrained(str(start))
        config.lora_dropout = recipe.dropout  # the training's, not the adapter's
        return PeftModel.from_pretrained(model, start, is_trainable=True, config=config)
    return get_peft_model(model, adapter_config(recipe, model, steps), revision=base.revision)


def meta_model(recipe: Recipe, base: BaseModel, *, steps: int = 1000) -> Any:
    """The adapted model without memory for its weights: for counting parameters of any size in a second."""
    import msgspec
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base.path, local_files_only=True)
    # How the factors begin changes no shape, and there are no weights here to begin from.
    plain = msgspec.structs.replace(recipe, init="default")
    with torch.device("meta"):
        return attach(AutoModelForCausalLM.from_config(config), plain, base, steps=steps)


def count_parameters(model: Any) -> tuple[int, int]:
    """(trainable, all) parameters; a 4-bit weight counts as the parameters it stands for."""
    trainable, total = model.get_nb_trainable_parameters()
    return int(trainable), int(total)


@contextmanager
def scoring_mode(model: Any) -> Iterator[None]:
    """No dropout while the block runs, and 4-bit weights left as they are.

    bitsandbytes repacks the weights of a 4-bit layer in eval mode on some CPUs, after which they can't be trained
    through; such layers alone stay in training mode, which changes nothing they compute.
    """
    was = model.training
    model.eval()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True
    try:
        yield
    finally:
        model.train(was)
