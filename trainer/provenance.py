"""What a trained adapter says about itself: everything needed to train it again, and what was measured.

No path and no host name is in it: it travels with the adapter to other people.
"""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.trainer.objectives import objective_of

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.store import Resolved
    from adapterhub.trainer.data import Corpus, TokenData
    from adapterhub.trainer.model import Device
    from adapterhub.trainer.recipe import Recipe
    from adapterhub.trainer.watch import Course

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
_NOT_TRAINING = (
    "name",
    "base",
    "data",
    "preset",
    "template",
    "start_from",
    "save_every",
    "tensorboard",
)
"""Keys of the recipe that don't change the weights by themselves: what they point at is recorded by its digest."""
NOT_CHOSEN = "a checkpoint that wasn't chosen"
"""Why an adapter is in the store that is not the result of its training."""
_RENDERING = (
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
)
_OF_THE_START = ("kind", "rank", "alpha", "use_rslora", "target_modules")
"""Keys that an adapter which is trained on has its own values for."""


@dataclass(frozen=True)
class Finished:
    """Everything a finished training has to say about itself."""

    recipe: Recipe
    base: BaseModel
    corpus: Corpus
    tokens: TokenData
    device: Device
    history: Course
    parameters: tuple[int, int]
    """Trainable, all."""
    training: str
    start: Resolved | None
    processes: int = 1

    @property
    def kept(self) -> int:
        """The step whose adapter is the result: of the lowest held-out loss, unless the recipe wants the last."""
        best = self.history.best
        if self.recipe.eval.keep == "last" or best is None:
            return self.history.saved[-1]
        return best.step

    @property
    def why(self) -> str:
        """Why that step."""
        if self.recipe.eval.keep == "best" and self.history.best is not None:
            return "lowest held-out loss"
        return "last step"


def training_digest(
    recipe: Recipe, corpus: Corpus, base: BaseModel, start: str | None = None, processes: int = 1
) -> str:
    """One digest for "the same training": settings, rows and base weights, wherever they lie.

    The held-out rows belong to it because they decide which step is kept; `start` is the adapter that was trained on.
    """
    without = (*_NOT_TRAINING, *(_OF_THE_START if start is not None else ()))
    settings = {k: v for k, v in recipe.document.items() if k not in without}
    if processes > 1:  # each step has so many batches
        settings["processes"] = processes
    settings["eval"] = {k: v for k, v in settings["eval"].items() if not k.startswith("sample")}
    return digest_of(
        canonical_bytes(
            {
                "settings": settings,
                "train_digest": corpus.train_digest,
                "held_out_digest": corpus.held_out_digest,
                "template": corpus.template_digest,
                "rendering": _rendering(base.path),
                "base": base.fingerprint,
                "start": start,
            }
        )
    )


def provenance_body(finished: Finished, step: int | None = None) -> dict[str, Any]:
    """The body of the `provenance` attestation of a trained adapter.

    `step` is that of a checkpoint that wasn't chosen; left out, the body is that of the result.
    """
    recipe, base, corpus, tokens = (
        finished.recipe, finished.base, finished.corpus, finished.tokens,
    )  # fmt: skip
    history = finished.history
    document = recipe.document
    document["base"] = base.label
    document["data"] = {
        **document["data"],
        "path": [Path(path).name for path in recipe.data.paths],
        "replay": _named(document["data"]["replay"]),
    }
    document["template"] = recipe.template and Path(recipe.template).name
    at = finished.kept if step is None else step
    start = finished.start
    return {
        "event": "trained",
        "training": finished.training,
        "recipe": document,
        "seed": recipe.seed,
        "parents": [{"name": recipe.start_from, "digest": start.digest}] if start else [],
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
            "replayed_rows": corpus.replayed,
            "held_out": corpus.split.fraction,
            "split_seed": corpus.split.seed,
            "max_length": tokens.max_length,
            "truncated_rows": tokens.train.truncated,
            "dropped_rows": tokens.train.dropped,
            "tokens": tokens.train.tokens,
            "trained_tokens": tokens.train.trained,
        },
        "template": tokens.template,
        "mask": objective_of(recipe).mask,
        "parameters": {"trainable": finished.parameters[0], "all": finished.parameters[1]},
        "steps": history.steps,
        "kept": {
            "step": at,
            "why": finished.why if step is None else NOT_CHOSEN,
            "stopped_early": history.stopped_early,
        },
        "evaluations": [{"step": e.step, "loss": e.score.loss} for e in history.evaluations],
        "epochs": round(history.epochs, 4),
        "seconds": round(history.seconds, 1),
        "peak_memory": history.memory or None,
        "metrics": metrics(history, at),
        "versions": versions(),
        "hardware": hardware(finished.device) | {"processes": finished.processes},
    }


def _rendering(folder: Path) -> dict[str, str]:
    """Digests of the base's files that decide which tokens a row becomes and which of them end it."""
    return {
        path.name: digest_of(path.read_bytes())
        for name in _RENDERING
        for path in sorted(folder.glob(name))
        if path.is_file()
    }


def metrics(history: Course, step: int) -> dict[str, Any]:
    """Loss of the first and last step, and what the held-out rows showed before and after step `step`.

    Losses are in nats a token; of preferences a pair.
    """
    found: dict[str, Any] = {
        "first_loss": history.losses[0] if history.losses else None,
        "last_loss": history.losses[-1] if history.losses else None,
        "held_out": None,
    }
    before, after = history.before, history.at(step)
    if before and after:
        found["held_out"] = {
            "rows": before.rows,
            "tokens": before.tokens,
            **{f"{name}_before": value for name, value in before.measures.items()},
            **{f"{name}_after": value for name, value in after.measures.items()},
        }
    return found


def _named(replay: dict[str, Any] | None) -> dict[str, Any] | None:
    return {**replay, "path": Path(replay["path"]).name} if replay else None


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
