"""A real store with a few tiny real adapters for the screen: the same bytes, digests and times on every machine and day."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from adapterhub.names import parse_name
from adapterhub.store import Store

SMOL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QWEN = "Qwen/Qwen3-0.6B"
NOON = 1_767_268_800  # 2026-01-01 12:00 UTC
DAY = 86_400
ALL = [
    "desk/both",
    "legal/terms",
    "odd/stranger",
    "support/tone",
    "support/tone:prod",
    "tools/calls",
]
"""The names in it, in order."""


def write_adapter(
    folder: Path,
    *,
    base: str,
    rank: int = 4,
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    seed: int = 0,
    **config: Any,
) -> Path:
    """A PEFT folder with a LoRA for two layers of a tiny model."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for layer in range(2):
        for target in targets:
            stem = f"base_model.model.model.layers.{layer}.self_attn.{target}"
            for role, shape in (("lora_A", (rank, 16)), ("lora_B", (16, rank))):
                # No random numbers: digests are in the pictures, so the bytes must be the same with every numpy and libm.
                steps = np.arange(rank * 16) * 7 + len(tensors) + 5 * seed
                tensors[f"{stem}.{role}.weight"] = (
                    ((steps % 17 - 8) / 8).astype(np.float32).reshape(shape)
                )
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    document = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(document))
    return folder


def set_added(store: Store, name: str, seconds: int) -> None:
    """Makes `name` as if it had been set then."""
    os.utime(store.layout.ref(parse_name(name)), (seconds, seconds))


def fill(store: Store, root: Path) -> None:
    def add(name: str, provenance: Mapping[str, Any] | None = None, **adapter: Any) -> str:
        folder = write_adapter(root / name, **adapter)
        return store.add_folder(folder, name=name, provenance=provenance).digest

    seven = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    commit = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
    tone = add(
        "support/tone", _trained("tone.jsonl", 1200, 1.734), base=SMOL, revision=commit, seed=1
    )
    terms = add(
        "legal/terms",
        _trained("terms.jsonl", 800, 2.218),
        base=SMOL,
        revision=commit,
        rank=8,
        targets=seven,
        seed=2,
    )
    both = add(
        "desk/both",
        {
            "event": "merged",
            "recipe": {
                "method": "ties",
                "space": "delta",
                "parents": [tone, terms],
                "weights": [1.0, 0.5],
                "parameters": {"density": 0.2, "lambda": 1.0, "trim_scope": "model"},
                "rank": "auto",
                "dtype": None,
            },
            "parents": [{"digest": tone, "name": "tone"}, {"digest": terms, "name": "terms"}],
            "report": {
                "rank": 12,
                "energy_kept": 0.993106,
                "error": 0.083,
                "modules": {
                    f"model.layers.{layer}.self_attn.q_proj": {
                        "rank": 12,
                        "energy_kept": 0.99 + layer / 200,
                    }
                    for layer in range(2)
                },
            },
            "allowed_mismatch": [],
            "engine": {"adapterhub": "0.1.0", "torch": "2.13.0"},
        },
        base=SMOL,
        revision=commit,
        rank=12,
        targets=seven,
        seed=3,
    )
    add("tools/calls", base=QWEN, rank=16, use_rslora=True, seed=4)
    add("odd/stranger", base="[bold red]x[/]", seed=5)
    store.tag(store.resolve("support/tone"), parse_name("support/tone:prod"))
    for digest, perplexity in ((tone, 6.21), (terms, 9.87), (both, 7.02)):
        store.attest(
            digest,
            "base",
            {
                "repo": SMOL,
                "fingerprint": "sha256:" + "5eed" * 16,
                "modules_found": 4,
                "modules_total": 4,
            },
        )
        store.attest(digest, "eval", _evaluated(perplexity))


def _trained(data: str, rows: int, loss: float) -> dict[str, Any]:
    return {
        "event": "trained",
        "recipe": {
            "method": "qlora",
            "data": {"path": data, "format": "alpaca"},
            "learning_rate": 2e-4,
            "packing": True,
        },
        "seed": 0,
        "data": {
            "digest": "sha256:" + "da7a" * 16,
            "rows": rows,
            "train_rows": rows * 9 // 10,
            "trained_tokens": 25_600,
        },
        "steps": 50,
        "seconds": 102.4,
        "metrics": {
            "first_loss": 2.913,
            "last_loss": loss,
            "held_out": {"rows": 64, "perplexity_before": 11.4, "perplexity_after": 6.2},
        },
        "versions": {"torch": "2.13.0", "trl": "1.16.0"},
    }


def _evaluated(perplexity: float) -> dict[str, Any]:
    return {
        "metric": "perplexity",
        "data": {"digest": "sha256:" + "da7a" * 16, "truncated": 0},
        "settings": {"split": "held_out", "held_out": 0.1, "max_length": 1024},
        "versions": {"torch": "2.13.0", "peft": "0.21.2"},
        "result": {
            "loss": 1.826,
            "perplexity": perplexity,
            "tokens": 20_480,
            "rows": 120,
            "base_perplexity": 11.4,
        },
        "said": {"prompt": "Say hello.", "answer": "Hello! How can I help?"},
    }
