"""Every merge method on two adapters that were trained on two tasks: held-out perplexity on both. `make bench-methods`.

Takes the adapters of the demo (`make demo` first). What comes out is what it is: two small adapters of a small model,
a few rows a task, each method with its defaults.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = Path(sys.executable).with_name("adapterhub")
TASKS = {"instruct": "alpaca_en_demo.json", "tools": "glaive_toolcall_en_demo.json"}
PARENTS = ("demo/instruct", "demo/tools")


def main() -> int:
    """Merges, scores and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=CHECKOUT / "demo-work")
    parser.add_argument("--rows", type=int, default=12, help="held-out rows a task")
    parser.add_argument("--tokens", type=int, default=384, help="tokens a row is cut to")
    parser.add_argument("--rank", default="64", help="of the merged adapters")
    given = parser.parse_args()
    if not (given.demo / "home" / "store").is_dir():
        print(f"There is no demo at {given.demo}: make demo", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=given.demo) as scratch:
        home = Path(scratch) / "home"
        shutil.copytree(given.demo / "home", home, copy_function=os.link)
        environment = {**os.environ, "ADAPTERHUB_HOME": str(home), "HF_HUB_OFFLINE": "1"}
        environment["ADAPTERHUB_CACHE"] = str(Path(scratch) / "cache")
        names = [name for spec in ask(environment, "methods") if (name := merged(environment, spec, given.rank))]  # fmt: skip
        subjects = ["base", *PARENTS, *names]
        scores = {
            task: scored(environment, subjects, given.demo / "inputs" / "data" / file, given)
            for task, file in TASKS.items()
        }
    print(f"{given.rows} held-out rows a task, cut to {given.tokens} tokens; rank {given.rank}; defaults of each method\n")  # fmt: skip
    print(f"| {'':18} | instruct | tools | mean of the losses |")
    print("|---|---|---|---|")
    for subject in subjects:
        losses = [scores[task][subject]["loss"] for task in TASKS]
        cells = [f"{scores[task][subject]['perplexity']:.3f}" for task in TASKS]
        print(f"| {subject:18} | {' | '.join(cells)} | {sum(losses) / len(losses):.4f} |")
    return 0


def merged(environment: Mapping[str, str], spec: Mapping[str, Any], rank: str) -> str | None:
    """Merges both parents by the method's defaults; None for a method of one adapter."""
    if spec["max_inputs"] == 1:
        return None
    name = str(spec["name"])
    ask(environment, "merge", *PARENTS, "--method", name, "--rank", rank, "--name", name)
    return name


def scored(
    environment: Mapping[str, str], subjects: list[str], data: Path, given: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Each subject's row of `eval`."""
    limits = ("--max-rows", str(given.rows), "--max-length", str(given.tokens))
    base = str(given.demo / "inputs" / "base")
    rows = ask(environment, "eval", *subjects, "--data", str(data), "--base", base, *limits)
    return {row["name"]: row for row in rows}


def ask(environment: Mapping[str, str], *command: str) -> Any:
    """What the program says, as JSON."""
    print("$ adapterhub", *command, file=sys.stderr)
    done = subprocess.run(
        [PROGRAM, *command, "--json"], env=environment, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
