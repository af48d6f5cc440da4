"""Which weights of a model bitsandbytes quantises: transformers' own rules, asked on a model without memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapterhub.base import BaseModel, find_weight
from adapterhub.errors import UnsupportedError
from adapterhub.export.quantize.fourbit import require_bitsandbytes
from adapterhub.words import some


@dataclass(frozen=True)
class Linear:
    """A linear whose weight is quantised: the tensor in the base, and whether it is stored (in, out)."""

    module: str
    tensor: str
    transposed: bool


@dataclass(frozen=True)
class Loading:
    """What becomes of a model's weights in `from_pretrained` with a BitsAndBytesConfig."""

    linears: Mapping[str, Linear]
    """By tensor: all linears except the head, what is tied, and the last module."""
    wide: frozenset[str]
    """Parts of the names of tensors that stay in float32 whatever dtype is asked for."""


def read_loading(base: BaseModel) -> Loading:
    """How transformers would load `base` in 4 bits.

    UnsupportedError where a linear isn't in the base under its own name, as where it is built from several stored
    tensors, and for a model that transformers can't build.
    """
    require_bitsandbytes()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import HfQuantizer
    from transformers.quantizers.quantizers_utils import should_convert_module

    from adapterhub.evaluate.models import quiet_libraries

    with quiet_libraries():
        try:
            config = AutoConfig.from_pretrained(base.path, local_files_only=True)
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config)
        except (OSError, ValueError, KeyError) as error:
            raise UnsupportedError(
                f"transformers can't build {base.label}, so it can't say which of its weights 4 bits would change.",
                why=str(error).split("\n")[0],
                hint="Export into the original weights, unquantised: --base-view original",
            ) from error
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    found, missing = {}, []
    for name, module in model.named_modules():
        conv1d = isinstance(module, Conv1D)
        if not (conv1d or type(module) is torch.nn.Linear) or not should_convert_module(name, kept):
            continue
        tensor = find_weight(base, name)
        if tensor is None:
            missing.append(name)
        else:
            found[tensor] = Linear(name, tensor, conv1d)
    if missing:
        raise UnsupportedError(
            f"{len(missing)} linears of {base.label} aren't stored as they are built: {some(missing)}.",
            why="transformers puts them together while it loads, so their 4 bits can't be computed tensor by tensor.",
            hint="Export into the original weights, unquantised: --base-view original",
        )
    wide = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    return Loading(found, frozenset(wide))
