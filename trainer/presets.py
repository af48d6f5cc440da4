"""Three starting points: a recipe's `preset` fills in what the recipe itself doesn't say.

They differ in what a mistake costs. `quick` answers "does this data teach anything at all"; `production` is what most
adapters should be; `quality` spends several times the time on the last percent, and guards it against overfitting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "rank": 8,
        "alpha": 16,
        "epochs": 1,
        "learning_rate": 3e-4,
        "max_length": 512,
        "eval": {"rows": 32},
    },
    "production": {
        "method": "qlora",
        "rank": 16,
        "alpha": 32,
        "dropout": 0.05,
        "epochs": 3,
        "gradient_accumulation": 4,
        "learning_rate": 2e-4,
        "scheduler": "cosine",
        "max_length": "auto",
        "eval": {"rows": 128, "patience": 3, "samples": 2},
    },
    "quality": {
        "method": "lora",
        "rank": 64,
        "alpha": 16,
        "use_rslora": True,
        "dropout": 0.05,
        "neftune_alpha": 5,
        "epochs": 4,
        "gradient_accumulation": 8,
        "learning_rate": 1e-4,
        "scheduler": "cosine",
        "max_length": "auto",
        "data": {"held_out": 0.15},
        "eval": {"rows": None, "patience": 3, "samples": 4},
    },
}


def with_preset(document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with the values of its preset where it has none of its own; sections are filled key by key.

    A length of training that the document names, in steps or epochs, replaces the preset's; without a preset nothing is
    changed. Where no row is held out, the preset asks nothing of the scores. An unknown preset is left for validation to
    refuse.
    """
    name = document.get("preset")
    preset = PRESETS.get(name, {}) if isinstance(name, str) else {}
    data = document.get("data")
    if isinstance(data, Mapping) and data.get("held_out") == 0:
        preset = {key: value for key, value in preset.items() if key != "eval"}
    filled: dict[str, Any] = {**preset, **document}
    for key, value in preset.items():
        own = document.get(key)
        if isinstance(value, Mapping) and isinstance(own, Mapping):
            filled[key] = {**value, **own}
    if document.get("steps") is None and document.get("epochs") is None and "epochs" in preset:
        filled["epochs"] = preset["epochs"]  # a null of both says nothing
    elif document.get("steps") is not None and document.get("epochs") is None:
        filled.pop("epochs", None)
    return filled
