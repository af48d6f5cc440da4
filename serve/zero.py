"""An adapter that changes nothing, for requests to the base where the engine would give their rows another's output.

Through it a row of the base has an index of its own, so no kernel takes it for the last slot's (`vllm_plugin.mask` says
more). What is added to every output is 0, so the logits are the base's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from adapterhub.base import BaseModel
from adapterhub.errors import UnsupportedError
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.safetensors import FLOATS, encode_header
from adapterhub.fsio import disk_errors, new_folder
from adapterhub.words import natural

LINEARS = (
    "q_proj",
    "qkv_proj",
    "query_key_value",
    "c_attn",
    "Wqkv",
    "q_b_proj",
    "o_proj",
    "down_proj",
    "in_proj",
)
"""Last parts of modules that vLLM has as a linear layer or as one part of it, whichever model has them; the first is taken."""

_ELSEWHERE = re.compile(r"(^|[._])(experts?|vision|visual|audio|image|mtp|draft)(?![a-z])")
"""Experts, and what stands beside the language model."""


def zero_adapter(base: BaseModel, folder: Path) -> Path:
    """Writes it as a PEFT folder: rank 1 on one module, A = B = 0, in float32. The same base gives the same bytes.

    Where `folder` is filled already it is left as it is.

    Raises:
        UnsupportedError: the base has none of the modules in `LINEARS`.
    """
    if (folder / WEIGHTS_NAME).is_file():
        return folder
    module, out, width = _place(base)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.repo or base.path.name,
        "r": 1,
        "lora_alpha": 1,
        "target_modules": [module.rpartition(".")[2]],
        "bias": "none",
        "inference_mode": True,
    }
    prefix = f"base_model.model.{module}.lora"
    rows = [
        (f"{prefix}_A.weight", "F32", (1, width), 4 * width),
        (f"{prefix}_B.weight", "F32", (out, 1), 4 * out),
    ]
    with new_folder(folder) as building, disk_errors(building):
        (building / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        (building / WEIGHTS_NAME).write_bytes(
            encode_header(rows, {"format": "pt"}) + bytes(4 * (width + out))
        )
    return folder


def _place(base: BaseModel) -> tuple[str, int, int]:
    """The module it goes on, and its sizes (out, in): the first layer's, of the language model."""
    found: dict[str, str] = {}
    for name in sorted(base.tensors, key=natural):
        info, (module, _, kind) = base.tensors[name], name.rpartition(".")
        last = module.rpartition(".")[2]
        # quantised weights are packed: their shapes aren't the layer's
        whole = kind == "weight" and len(info.shape) == 2 and info.dtype in FLOATS
        if whole and last in LINEARS and not _ELSEWHERE.search(module):
            found.setdefault(last, module)
    module = next((found[last] for last in LINEARS if last in found), "")
    if not module:
        raise UnsupportedError(
            f"{base.label} has no module that a zero adapter could go on.",
            why=f"None of its weights is a plain linear layer called {', '.join(LINEARS)}.",
            hint="Install adapterhub beside vLLM: with its plugin there, none is needed.",
        )
    rows, columns = base.tensors[f"{module}.weight"].shape
    return (module, columns, rows) if base.is_conv1d(module) else (module, rows, columns)
