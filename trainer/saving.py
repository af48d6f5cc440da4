"""The trained adapter as a PEFT folder, so that the same training gives the same bytes, whatever its factors began as."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.fsio import new_folder
from adapterhub.trainer.methods import as_plain_lora

if TYPE_CHECKING:
    import torch

    from adapterhub.base import BaseModel
    from adapterhub.trainer.recipe import Recipe

Initial = Mapping[str, "torch.Tensor"]


def initial_factors(model: Any, recipe: Recipe) -> Initial | None:
    """The factors before the first step, for inits that change the base; None for those that don't."""
    if recipe.init == "default":
        return None
    return {name: value.detach().clone() for name, value in _state(model).items()}


def save_adapter(
    model: Any,
    base: BaseModel,
    folder: Path,
    initial: Initial | None = None,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes the adapter to the new `folder`, whole or not at all, as plain LoRA where `initial` says how it began.

    `tensors` are the trained ones by their names in `model`, where it has only parts of them (FSDP).

    PEFT writes sets in the order of the process's hash seed, and a model card; here the configuration is canonical
    (sorted), names the base by repository and revision only, and is alone with the weights.
    """
    with new_folder(folder) as building:
        model.save_pretrained(
            str(building),
            state_dict=tensors,
            safe_serialization=True,
            save_embedding_layers=False,
            selected_adapters=["default"],  # a preference training holds its reference beside it
        )
        (building / "README.md").unlink(missing_ok=True)
        path = building / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base.repo
        config["revision"] = base.revision
        for key in ("target_modules", "feedforward_modules"):
            if isinstance(config.get(key), list):
                config[key] = sorted(config[key])
        if initial is not None:
            config["init_lora_weights"] = True
            config["r"] *= 2
            config["lora_alpha"] *= 2**0.5 if config["use_rslora"] else 2
            _save(as_plain_lora(_state(model), initial), building)
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _state(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    state: dict[str, torch.Tensor] = get_peft_model_state_dict(model, save_embedding_layers=False)
    return state


def _save(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    from safetensors.torch import save_file

    whole = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    save_file(whole, folder / "adapter_model.safetensors", {"format": "pt"})
