"""What training costs beside a plain SFTTrainer script, on SmolLM2-135M in NF4 and real rows: `make bench-train`. No test.

Each side is a process of its own; the two take turns, so that a busy machine slows both. Told are the medians over runs
of each run's useful tokens a second (padding is not useful), by the wall and by CPU time, the peak of memory, the time from
the command to the end of the first step, and the held-out loss after the same steps. `make demo` prepares base and rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from adapterhub.data import read_rows, split_rows

INPUTS = Path("demo-work/inputs")
ROWS = INPUTS / "data" / "alpaca_en_demo.json"
SHAPES: dict[str, dict[str, Any]] = {
    "packed to 1,024": {"packing": True, "batch": 1},
    "batch 1": {"packing": False, "batch": 1},
    "batch 4": {"packing": False, "batch": 4},
    "batch 8": {"packing": False, "batch": 8},
}
SIDES = ("plain", "ours")


def prepare(folder: Path) -> dict[str, Any]:
    """The same rows for both sides: as alpaca for ours, as turns for trl, and the held-out ones for the scorer."""
    raw = json.loads(ROWS.read_text())
    split = split_rows(read_rows(ROWS), 0.1)
    (folder / "train.json").write_text(json.dumps([raw[row.number - 1] for row in split.train]))
    (folder / "held_out.json").write_text(
        json.dumps([raw[row.number - 1] for row in split.held_out[:48]])
    )
    turns = [[{"role": m.role, "content": m.content} for m in r.messages] for r in split.train]
    (folder / "turns.json").write_text(json.dumps(turns))
    return {
        "base": str(INPUTS / "base"),
        "data": str(folder / "train.json"),
        "rows": str(folder / "turns.json"),
        "rank": 8,
        "targets": ["q_proj", "v_proj"],
        "learning_rate": 5e-4,
        "length": 1024,
    }


def run(side: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One process; what it printed, and what a step cost it, the first two left out."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.train_side", side, json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    skipped = min(2, settings["steps"] - 1)
    tokens = sum(report["tokens"][skipped:])
    report["speed"] = tokens / (report["wall"][-1] - report["wall"][skipped])
    report["cpu_speed"] = tokens / (report["cpu"][-1] - report["cpu"][skipped])
    return report


def compare(settings: dict[str, Any], runs: int) -> dict[str, dict[str, float]]:
    """The median of every figure, by side."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(runs):
        for side in SIDES:
            found[side].append(run(side, settings))
    keys = ("speed", "cpu_speed", "peak", "first_step", "held_out_loss")
    return {
        side: {k: median(r[k] for r in reports) for k in keys if reports[0][k] is not None}
        for side, reports in found.items()
    }


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help="steps of a run")
    parser.add_argument("--only", nargs="*", choices=[*SHAPES, "loss"], default=[*SHAPES, "loss"])
    parser.add_argument(
        "--loss-steps", type=int, default=60, help="steps before losses are compared"
    )
    options = parser.parse_args()
    if not (INPUTS / "base").is_dir():
        raise SystemExit("There is no base model: make demo  prepares one.")
    with tempfile.TemporaryDirectory() as folder:
        settings = prepare(Path(folder))
        print(
            "| rows | useful tokens/s plain | ours | ratio | by CPU time | peak MB plain | ours | first step s plain | ours |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for name, shape in SHAPES.items():
            if name in options.only:
                told = compare({**settings, **shape, "steps": options.steps}, options.runs)
                p, o = told["plain"], told["ours"]
                print(
                    f"| {name} | {p['speed']:.0f} | {o['speed']:.0f} | {o['speed'] / p['speed']:.2f} x"
                    f" | {o['cpu_speed'] / p['cpu_speed']:.2f} x | {p['peak'] / 1e6:.0f} | {o['peak'] / 1e6:.0f}"
                    f" | {p['first_step']:.1f} | {o['first_step']:.1f} |",
                    flush=True,
                )
        if "loss" in options.only:
            held_out = {
                "held_out": str(Path(folder) / "held_out.json"),
                "steps": options.loss_steps,
            }
            told = compare({**settings, **SHAPES["batch 4"], **held_out}, 1)
            print(
                f"\nheld-out loss after {options.loss_steps} steps of batch 4:"
                f" plain {told['plain']['held_out_loss']:.4f}, ours {told['ours']['held_out_loss']:.4f} nats a token"
            )


if __name__ == "__main__":
    main()
