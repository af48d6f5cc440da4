"""Runs of trainings with any course, written as the trainer writes them, and a recipe that a tiny base can be trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adapterhub.runs import Run
from adapterhub.trainer.recipe import parse_recipe
from tests.support.chat import chat_rows, write_rows

STEPS = 40


def recipe_document(folder: Path, base: Path) -> dict[str, Any]:
    """A recipe of 12 steps on 60 rows as plain values, about a second; its data are written into the folder."""
    write_rows(folder / "data.json", chat_rows(60))
    return {
        "name": "paint",
        "base": str(base),
        "data": {"path": "data.json", "held_out": 0.2},
        "rank": 8,
        "alpha": 16,
        "steps": 12,
        "learning_rate": 5e-3,
        "max_length": 256,
        "seed": 3,
        "eval": {"rows": 6},
    }


def recipe_file(folder: Path, base: Path, **changes: Any) -> Path:
    """That recipe with these keys changed, as a file beside its data."""
    document = {**recipe_document(folder, base), **changes}
    path = folder / "paint.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def loss_at(step: int, high: float = 2.5) -> float:
    """A falling loss with some noise."""
    return high * math.exp(-step / 25) + 0.5 + 0.1 * math.sin(step * 2.3)


def begun(runs: Path, name: str = "support/tone", *, steps: int = STEPS, samples: int = 1) -> Run:
    """A run that has been prepared and scored, before its first of `steps` steps."""
    recipe = parse_recipe(
        {
            "name": name,
            "base": "base",
            "data": {"path": "tone.json"},
            "steps": steps,
            "eval": {"every": 20, "samples": samples},
        }
    )
    run = Run.create(runs, "train", recipe.document)
    run.event("prepared", training="sha256:" + "0" * 64)
    run.event("loaded", device="cpu", rows=90, tokens=9000, trainable_parameters=1000)
    score(run, 0, samples)
    run.event("training", steps=steps)
    return run


def take(run: Run, first: int, last: int, **changes: Any) -> None:
    """The steps `first` to `last`, with scores and checkpoints at every twentieth."""
    for step in range(first, last + 1):
        run.event("step", **{**_step(step), **changes})
        if step % 20 == 0:
            run.event("saved", step=step)
            score(run, step, 1)
            run.event("checkpoint", step=step)


def finish(run: Run, name: str = "support/tone") -> None:
    """The end of one that went well."""
    run.event("added", name=name, digest="sha256:" + "1" * 64)
    run.finish("done")


def finished(runs: Path, name: str = "support/tone", **changes: Any) -> Run:
    """A whole training."""
    run = begun(runs, name)
    take(run, 1, STEPS, **changes)
    finish(run, name)
    return run


def score(run: Run, step: int, samples: int) -> None:
    """The held-out rows, and their questions."""
    for number in range(samples):
        said = f"The [b]answer[/] after {step}\x1b[31m"
        run.event("sample", step=step, question=f"Question {number}?", answer=said)
    when = "before" if step == 0 else "during"
    run.event(
        "evaluated",
        step=step,
        when=when,
        loss=loss_at(step) + 0.2,
        perplexity=2.0,
        nll=10.0,
        tokens=20,
        rows=4,
    )


def _step(step: int) -> Mapping[str, Any]:
    return {
        "step": step,
        "steps": STEPS,
        "loss": loss_at(step),
        "learning_rate": 2e-4 * (1 - step / STEPS),
        "grad_norm": 1.0 + 0.2 * math.cos(step),
        "grad_norms": {"q_proj": 0.7, "v_proj": 0.5 + 0.1 * math.sin(step)},
        "tokens": 250,
        "tokens_per_second": 125.0,
        "memory": 2_000_000_000 + step * 1_000_000,
        "epoch": step / 36,
        "seconds": 2.0 * step,
        "eta": 2.0 * (STEPS - step),
    }
