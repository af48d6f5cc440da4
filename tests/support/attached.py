"""What a model says: logits of a base, of a base with an adapter attached by PEFT, of a base with dense deltas added."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tests.support.adapters import VOCABULARY
from tests.support.dense import Deltas

# PEFT says what it thinks of tied embeddings and of fan_in_fan_out on every load; neither is about keys.
_REMARKS = ("tie_word_embeddings=True", "fan_in_fan_out is set to")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The causal language model in `folder`, every warning an error. Missing or unexpected weights are errors too."""
    from transformers import AutoModelForCausalLM

    automatic: Any = AutoModelForCausalLM
    model, said = automatic.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(said.values()), said
    return model.eval()


def attach(model: Any, adapter: Path) -> Any:
    """`model` with `adapter` on it, by PEFT; a missing or unexpected key is an error."""
    from peft import PeftModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attached = PeftModel.from_pretrained(model, adapter)
    said = [str(one.message) for one in caught]
    assert not [text for text in said if not any(remark in text for remark in _REMARKS)], said
    return attached.eval()


def logits(model: Any) -> npt.NDArray[np.float64]:
    """Of two fixed sequences: (2, 12, vocabulary)."""
    generator = torch.Generator().manual_seed(11)
    tokens = torch.randint(3, VOCABULARY, (2, 12), generator=generator)
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=tokens).logits
    return found.double().numpy()


def logits_of_dense(
    folder: Path,
    deltas: Deltas,
    *,
    conv1d: bool = False,
    whole: Mapping[str, npt.NDArray[np.float64]] | None = None,
) -> npt.NDArray[np.float64]:
    """Of the float32 base with `whole` in place of its own parameters and the float64 deltas added to its weights, ties
    cut where only one side is changed."""
    model = load(folder).double()
    changed = {*deltas, *(name.removesuffix(".weight") for name in whole or ())}
    if model.config.tie_word_embeddings and changed & {
        "lm_head",
        "model.embed_tokens",
        "transformer.wte",
    }:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with torch.no_grad():
        for name, values in (whole or {}).items():
            model.get_parameter(name).copy_(torch.from_numpy(values))
        for module, delta in deltas.items():
            weight = model.get_submodule(module).weight
            flip = conv1d or isinstance(model.get_submodule(module), torch.nn.Embedding)
            weight += torch.from_numpy(delta.T.copy() if flip else delta)
    return logits(model)


def apart(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> float:
    """Largest difference, relative to the largest logit."""
    return float(np.abs(one - other).max() / np.abs(other).max())


def tensors(folder: Path) -> Mapping[str, torch.Tensor]:
    """Every weight of a model folder, whatever the number of its files."""
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    return found
