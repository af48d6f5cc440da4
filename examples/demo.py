"""The whole way on a real model: two adapters trained, compared, merged, exported, and one table that compares them all.

Everything lives in one folder, `demo-work/` beside the README (or $ADAPTERHUB_DEMO), and is reused the next time. Each step
is a command that you could type yourself; it is printed before it runs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo_data import DemoDataError, obtain_base, obtain_data

from adapterhub.cli.output import Output

CHECKOUT = Path(__file__).resolve().parents[1]
FOLDER = Path(os.environ.get("ADAPTERHUB_DEMO", CHECKOUT / "demo-work")).resolve()
RECIPES = CHECKOUT / "examples" / "demo"
COMMAND = Path(sys.executable).with_name("adapterhub")

TASKS = {"instruct": "alpaca_en_demo.json", "tools": "glaive_toolcall_en_demo.json"}
ADAPTERS = ("demo/instruct", "demo/tools", "demo/linear", "demo/ties")
EXPORTED = "demo/ties"
PROMPT = "Give three tips for staying healthy."
EVAL_ROWS = 6
EVAL_TOKENS = 384

# Attached in float32 or rounded into bf16 weights: the same model but for that rounding.
ROUNDING_NATS = 0.02

out = Output()


def main() -> int:
    """Runs every step; a step whose result is there already takes seconds."""
    began = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    environment = {
        "ADAPTERHUB_HOME": FOLDER / "home",
        "HF_HOME": FOLDER / "cache" / "huggingface",
        "XDG_CACHE_HOME": FOLDER / "cache",
    }
    os.environ.update({key: str(value) for key, value in environment.items()})
    out.note(f"Everything is kept in {FOLDER}; delete that folder to begin again.")
    try:
        base = obtain_base(FOLDER / "inputs", out.note)
        data = obtain_data(FOLDER / "inputs", out.note)
    except DemoDataError as error:
        out.note(f"The demo can't go on: {error}")
        return 1
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is here now
    for task, file in TASKS.items():
        shutil.copyfile(data / file, FOLDER / file)
        shutil.copyfile(RECIPES / f"{task}.yaml", FOLDER / f"{task}.yaml")

    run("Remember the base model", "base", "add", str(base))
    for task in TASKS:
        run(f"Train the adapter {task}", "train", f"{task}.yaml", "--base", str(base))
    run("Do they interfere?", "diff", "demo/instruct", "demo/tools")
    for method in ("linear", "ties"):
        names = ("demo/instruct", "demo/tools")
        run(
            f"Merge them with {method}",
            "merge",
            *names,
            "--method",
            method,
            "--name",
            f"demo/{method}",
        )
    model = export()
    run("What is in the store now", "ls")
    tables = {task: evaluated(task, file, base, model) for task, file in TASKS.items()}
    return finish(tables, model, time.monotonic() - began)


def export() -> Path:
    """The exported model's folder; written anew only when the adapter is another one."""
    folder = FOLDER / "model"
    record = folder / "adapterhub.json"
    shown = json.loads(capture("show", EXPORTED, "--json"))
    if (
        record.is_file()
        and json.loads(record.read_text())["adapters"][0]["digest"] == shown["digest"]
    ):
        out.note(f"\n{EXPORTED} is exported already.")
    else:
        run("Bake the merge into the base", "export", EXPORTED, "-o", "model", "--overwrite")
    return folder


def evaluated(task: str, file: str, base: Path, model: Path) -> list[dict[str, Any]]:
    """Every model on the held-out rows of one task; kept under a name that says what was evaluated."""
    arguments = ["eval", "base", *ADAPTERS, model.name, "--data", file, "--base", str(base)]
    arguments += ["--max-rows", str(EVAL_ROWS), "--max-length", str(EVAL_TOKENS)]
    if task == "instruct":
        arguments += ["--prompt", PROMPT, "--max-new-tokens", "32"]
    digests = [json.loads(capture("show", name, "--json"))["digest"] for name in ADAPTERS]
    key = hashlib.sha256(json.dumps([arguments, digests]).encode()).hexdigest()[:12]
    kept = FOLDER / f"eval-{task}-{key}.json"
    if not kept.is_file():
        say(f"Held-out perplexity on {task}", arguments)
        result = capture(*arguments, "--json")
        kept.write_text(result)
    rows: list[dict[str, Any]] = json.loads(kept.read_text())
    return rows


def finish(tables: dict[str, list[dict[str, Any]]], model: Path, seconds: float) -> int:
    """Prints the table and checks what must hold."""
    rows = []
    for index, row in enumerate(tables["instruct"]):
        name = f"{model.name}/ (exported {EXPORTED})" if row["kind"] == "model" else row["name"]
        perplexities = {
            f"ppl {task}": round(table[index]["perplexity"], 3) for task, table in tables.items()
        }
        rows.append({"model": name, **perplexities, "answer": row["answer"]})
    out.text("")
    out.table(
        rows,
        ("model", *(f"ppl {task}" for task in TASKS), "answer"),
        ids="model",
        title=f"“{PROMPT}”",
    )
    failures = []
    for position, task in enumerate(TASKS):
        losses = {row["name"]: row["loss"] for row in tables[task]}
        if losses[ADAPTERS[position]] >= losses["base"]:
            failures.append(f"{ADAPTERS[position]} is no better than the base on its own task")
        difference = abs(losses[model.name] - losses[EXPORTED])
        out.note(f"{task}: exported and attached differ by {difference:.4f} nats a token")
        if difference > ROUNDING_NATS:
            failures.append(
                f"the exported model differs from {EXPORTED} by {difference:.3f} nats on {task}"
            )
    for failure in failures:
        out.warn(failure)
    out.note(f"\n{seconds:.0f} s in all. Everything is in {FOLDER}; look around:")
    out.note(f"  ADAPTERHUB_HOME={os.environ['ADAPTERHUB_HOME']} {COMMAND} tui")
    return 1 if failures else 0


def run(title: str, *arguments: str) -> None:
    """Says and runs one command; the demo ends where it fails."""
    say(title, list(arguments))
    code = subprocess.run([COMMAND, *arguments], cwd=FOLDER, check=False).returncode
    if code:
        sys.exit(code)


def capture(*arguments: str) -> str:
    """The standard output of one command."""
    done = subprocess.run(
        [COMMAND, *arguments], cwd=FOLDER, check=False, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def say(title: str, arguments: list[str]) -> None:
    out.note(f"\n{title}\n$ adapterhub {shlex.join(arguments)}")


if __name__ == "__main__":
    sys.exit(main())
