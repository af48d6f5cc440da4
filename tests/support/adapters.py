"""Adapters made to measure: PEFT folders written from random or given factors, without the product's own code.

Shapes follow the tiny Llama of `tests.support.models`, so that every adapter made here fits it, unless a test says other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

Array = npt.NDArray[Any]
Shapes = Mapping[str, tuple[int, int]]
"""Module -> (out, in) of its delta."""
Factors = Mapping[str, tuple[Array, Array]]
"""Module -> (B, A), with B (out, rank) and A (rank, in), the scale not in them."""

HIDDEN, INNER, KEY_VALUE, VOCABULARY, LAYERS = 64, 96, 32, 160, 2
TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def linears(hidden: int, key_value: int, inner: int) -> Shapes:
    """The seven linears of a Llama layer of these sizes, as (out, in)."""
    return {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (key_value, hidden),
        "self_attn.v_proj": (key_value, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


_LINEARS = linears(HIDDEN, KEY_VALUE, INNER)


def llama_modules(
    *targets: str, layers: Sequence[int] = range(LAYERS)
) -> dict[str, tuple[int, int]]:
    """Modules of the tiny Llama whose last part is in `targets`, with their shapes; all seven when none is named."""
    return {
        f"model.layers.{layer}.{module}": shape
        for layer in layers
        for module, shape in _LINEARS.items()
        if not targets or module.rpartition(".")[2] in targets
    }


QV = llama_modules("q_proj", "v_proj")
EMBEDDING: Shapes = {"model.embed_tokens": (HIDDEN, VOCABULARY)}
"""An embedding's delta as (out, in): PEFT adds (B @ A).T to the (vocabulary, hidden) weight."""
HEAD: Shapes = {"lm_head": (VOCABULARY, HIDDEN)}


@dataclass(frozen=True)
class AdapterMaker:
    """Writes PEFT folders below `root`; call it."""

    root: Path

    def __call__(
        self,
        name: str = "adapter",
        *,
        modules: Shapes = QV,
        rank: int = 4,
        alpha: float = 8,
        seed: int = 0,
        dtype: str = "float32",
        use_rslora: bool = False,
        rank_pattern: Mapping[str, int] | None = None,
        alpha_pattern: Mapping[str, float] | None = None,
        fan_in_fan_out: bool = False,
        embeddings: Sequence[str] = ("embed_tokens", "wte"),
        base: str | None = "org/tiny",
        revision: str | None = None,
        factors: Factors | None = None,
        scale: float = 0.05,
        extra: Mapping[str, torch.Tensor] | None = None,
        **config: Any,
    ) -> Path:
        """A LoRA as PEFT's save_pretrained writes it.

        Args:
            modules: what it changes, as (out, in); ignored where `factors` are given.
            rank_pattern, alpha_pattern: keys as PEFT has them, regular expressions for a dotted suffix of a module's name.
            embeddings: last parts of modules that are embeddings (`lora_embedding_A`).
            factors: (B, A) of every module; random normal ones times `scale` by default.
            extra: further tensors, by their full names in the file.
            config: further or other fields of adapter_config.json; None removes nothing, it writes null.
        """
        rank_pattern, alpha_pattern = dict(rank_pattern or {}), dict(alpha_pattern or {})
        if factors is None:
            factors = random_factors(
                modules, rank=rank, rank_pattern=rank_pattern, seed=seed, scale=scale
            )
        tensors: dict[str, torch.Tensor] = dict(extra or {})
        for module, (b, a) in factors.items():
            embedding = module.rpartition(".")[2] in embeddings
            roles = (
                ("lora_embedding_A", "lora_embedding_B")
                if embedding
                else ("lora_A.weight", "lora_B.weight")
            )
            for role, values in zip(roles, (a, b), strict=True):
                tensor = torch.from_numpy(np.ascontiguousarray(values)).to(TORCH_DTYPES[dtype])
                tensors[f"base_model.model.{module}.{role}"] = tensor
        document = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "revision": revision,
            "r": rank,
            "lora_alpha": alpha,
            "rank_pattern": rank_pattern,
            "alpha_pattern": alpha_pattern,
            "target_modules": sorted({module.rpartition(".")[2] for module in factors}),
            "fan_in_fan_out": fan_in_fan_out,
            "bias": "none",
            "lora_dropout": 0.0,
            "inference_mode": True,
            "init_lora_weights": True,
            "use_rslora": use_rslora,
            "use_dora": False,
            "modules_to_save": None,
            **config,
        }
        folder = self.root / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps(document, indent=2))
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        return folder


def random_factors(
    modules: Shapes,
    *,
    rank: int = 4,
    rank_pattern: Mapping[str, int] | None = None,
    seed: int = 0,
    scale: float = 0.05,
) -> dict[str, tuple[Array, Array]]:
    """Normal factors (B, A) times `scale`, float32, each module with a generator of its own."""
    found = {}
    for place, (module, (out, width)) in enumerate(sorted(modules.items())):
        random = np.random.default_rng((seed, place))
        r = by_pattern(rank_pattern or {}, module, rank)
        b = (scale * random.standard_normal((out, r))).astype(np.float32)
        a = (scale * random.standard_normal((r, width))).astype(np.float32)
        found[module] = (b, a)
    return found


def by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """As PEFT does: the value of the first key that, as a regular expression, matches a dotted suffix of `module`."""
    return next(
        (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default
    )
