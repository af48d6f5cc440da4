"""Trains for two steps in a process of its own and prints what it held in memory: `python peak.py BASE RECIPE_JSON`.

One line of JSON: `peak`, the most that was resident while training, less `before`, what was before the model was loaded;
`predicted`, the plan's total less the same. Bytes.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import bitsandbytes  # noqa: F401 - so that it is there before the first measurement

from adapterhub.base import read_base
from adapterhub.data.masking import Encoded
from adapterhub.evaluate.models import load_tokenizer
from adapterhub.trainer.loop import make_trainer
from adapterhub.trainer.memory import plan_memory
from adapterhub.trainer.model import choose_device, load_for_training
from adapterhub.trainer.recipe import parse_recipe

ROWS = 8


def resident(key: str) -> int:
    """A line of /proc/self/status (VmRSS, VmHWM), in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def main() -> None:
    folder = Path(sys.argv[1])
    changes = {
        "name": "peak",
        "base": str(folder),
        "data": {"path": "none"},
        "steps": 2,
        "eval": {"rows": 0},
    }
    recipe = parse_recipe({**changes, **json.loads(sys.argv[2])})
    base, device = read_base(folder), choose_device()
    assert isinstance(recipe.max_length, int)
    length, vocabulary = recipe.max_length, int(base.config["vocab_size"])
    rows = []
    for row in range(ROWS):
        ids = tuple((31 * row + 17 * place) % (vocabulary - 10) + 5 for place in range(length))
        rows.append(Encoded(ids, (-100,) * (length // 2) + ids[length // 2 :]))
    plan = plan_memory(recipe, base, max_length=length, device=device, trained_share=0.5)

    before = resident("VmRSS")
    model = load_for_training(recipe, base, device)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(model, load_tokenizer(folder), rows, recipe, device, Path(scratch))
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # VmHWM begins again: files mapped while loading are not meant
        trainer.train()
    found = {
        "peak": resident("VmHWM") - before,
        "predicted": plan.total - before,
        "before": before,
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
