"""The model to train: the base as it lies on disk or in NF4, with a fresh adapter on it.

Whatever the precision of the base, the adapter is trained in float32: at a learning rate of 2e-4 a step is smaller than
a bf16 weight can show.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import UsageError
from adapterhub.words import did_you_mean

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

    @property
    def bf16(self) -> bool:
        return self.dtype == "bfloat16"


def choose_device() -> Device:
    """A GPU where there is one, else the CPU."""
    import platform

    import torch

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if native else "float32"
        return Device("cuda", torch.cuda.get_device_name(0), dtype)
    return Device("cpu", platform.processor() or platform.machine(), "float32")


def lora_config(recipe: Recipe) -> Any:
    """The recipe's adapter as PEFT's configuration."""
    from peft import LoraConfig

    alpha = int(recipe.alpha) if recipe.alpha.is_integer() else recipe.alpha
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=alpha,  # type: ignore[arg-type,unused-ignore] # a float is right; the annotation is not
        lora_dropout=recipe.dropout,
        target_modules=recipe.target_modules,
        use_rslora=recipe.use_rslora,
        bias="none",
    )


def load_for_training(recipe: Recipe, base: BaseModel, device: Device) -> Any:
    """The base with the recipe's adapter, its random initialisation drawn from the recipe's seed.

    Raises UsageError when a target module is not in the model.
    """
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

    dtype: torch.dtype = getattr(torch, device.dtype)
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if recipe.method == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": 0 if device.kind == "cuda" else "cpu"}
    model: Any = AutoModelForCausalLM.from_pretrained(base.path, **options)
    if recipe.method == "lora":
        model = model.to(device.kind)
    set_seed(recipe.seed)
    return attach(model, recipe, base)


def attach(model: Any, recipe: Recipe, base: BaseModel) -> Any:
    """`model` with a fresh adapter that names its base by repository and revision, never by a path."""
    from peft import get_peft_model

    check_targets(model, recipe)
    model.name_or_path = base.repo or ""
    return get_peft_model(model, lora_config(recipe), revision=base.revision)


def meta_model(recipe: Recipe, base: BaseModel) -> Any:
    """The adapted model without memory for its weights: for counting parameters of any size in a second."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base.path, local_files_only=True)
    with torch.device("meta"):
        return attach(AutoModelForCausalLM.from_config(config), recipe, base)


def check_targets(model: Any, recipe: Recipe) -> None:
    """UsageError unless every listed target module is in the model (PEFT ignores the ones that aren't)."""
    if isinstance(recipe.target_modules, str):
        return
    names = [name for name, module in model.named_modules() if hasattr(module, "weight")]
    for target in recipe.target_modules:
        if not any(name == target or name.endswith("." + target) for name in names):
            known = sorted(
                {
                    name.rpartition(".")[2]
                    for name in names
                    if hasattr(model.get_submodule(name), "in_features")
                }
            )
            raise UsageError(
                f"The recipe's target_modules names {target}, which is not in the base model.",
                why=did_you_mean(target, known),
                hint=f"Linear layers here: {', '.join(known)}; or `all-linear`.",
            )
        if target == "lm_head":
            raise UsageError(
                "The recipe's target_modules names lm_head, which can't be trained.",
                why="The loss is computed from its weight directly, so an adapter on it would be ignored.",
            )


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
