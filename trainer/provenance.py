"""What a trained adapter says about itself: everything needed to train it again, and what was measured.

No path and no host name is in it: it travels with the adapter to other people.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.canonical import canonical_bytes, digest_of

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.evaluate.scoring import Score
    from adapterhub.trainer.data import Corpus, TokenData
    from adapterhub.trainer.loop import History
    from adapterhub.trainer.model import Device
    from adapterhub.trainer.recipe import Recipe

_LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "peft",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
)
_NOT_TRAINING = ("name", "base", "data", "eval")
"""Keys of the recipe that don't change the weights by themselves: what they point at is recorded by its digest."""


def training_digest(recipe: Recipe, corpus: Corpus, base: BaseModel) -> str:
    """One digest for "the same training": settings, trained rows and base weights, wherever they lie."""
    settings = {k: v for k, v in recipe.document.items() if k not in _NOT_TRAINING}
    return digest_of(
        canonical_bytes(
            {"settings": settings, "train_digest": corpus.train_digest, "base": base.fingerprint}
        )
    )


def provenance_body(
    recipe: Recipe,
    base: BaseModel,
    corpus: Corpus,
    tokens: TokenData,
    device: Device,
    history: History,
    scores: tuple[Score, Score] | None,
    parameters: tuple[int, int],
) -> dict[str, Any]:
    """The body of the `provenance` attestation of a trained adapter."""
    document = recipe.document
    document["base"] = base.label
    document["data"] = {**document["data"], "path": Path(recipe.data.path).name}
    return {
        "event": "trained",
        "training": training_digest(recipe, corpus, base),
        "recipe": document,
        "seed": recipe.seed,
        "base": {
            "repo": base.repo,
            "revision": base.revision,
            "fingerprint": base.fingerprint,
            "quantization": _quantization(recipe),
        },
        "data": {
            "digest": corpus.digest,
            "train_digest": corpus.train_digest,
            "held_out_digest": corpus.held_out_digest,
            "rows": len(corpus.rows),
            "train_rows": len(corpus.split.train),
            "held_out_rows": len(corpus.split.held_out),
            "held_out": corpus.split.fraction,
            "split_seed": corpus.split.seed,
            "truncated_rows": tokens.train.truncated,
            "dropped_rows": tokens.train.dropped,
            "tokens": tokens.train.tokens,
            "trained_tokens": tokens.train.trained,
        },
        "template": tokens.template,
        "mask": "assistant turns, each with its stop token; documents whole",
        "parameters": {"trainable": parameters[0], "all": parameters[1]},
        "steps": history.steps,
        "epochs": round(history.epochs, 4),
        "seconds": round(history.seconds, 1),
        "metrics": metrics(history, scores),
        "versions": versions(),
        "hardware": hardware(device),
    }


def metrics(history: History, scores: tuple[Score, Score] | None) -> dict[str, Any]:
    """Loss of the first and last step, and on the held-out rows before and after; all in nats a token."""
    found: dict[str, Any] = {
        "first_loss": history.losses[0] if history.losses else None,
        "last_loss": history.losses[-1] if history.losses else None,
        "held_out": None,
    }
    if scores:
        before, after = scores
        found["held_out"] = {
            "rows": before.rows,
            "tokens": before.tokens,
            "loss_before": before.loss,
            "loss_after": after.loss,
            "perplexity_before": before.perplexity,
            "perplexity_after": after.perplexity,
        }
    return found


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that had a part in it."""
    found = {"python": platform.python_version()}
    for name in ("adapterhub", *_LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def hardware(device: Device) -> dict[str, Any]:
    """The kind of machine: enough to explain a difference in the last bits, nothing that identifies it."""
    import torch

    return {
        "device": asdict(device),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def _quantization(recipe: Recipe) -> dict[str, Any] | None:
    if recipe.method != "qlora":
        return None
    return {"method": "bitsandbytes", "type": "nf4", "bits": 4, "double_quantization": True}
