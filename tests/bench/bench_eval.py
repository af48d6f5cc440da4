"""What evaluating four adapters costs beside four runs of transformers + peft, and beside lm-eval: `make bench-eval`. No test.

SmolLM2-135M in float32 (after `make demo`; else a Llama of that shape with random weights), four LoRA adapters of rank 16,
rows of real instructions. Every run is a process of its own and they take turns, so that a busy machine slows all. Before
anything is timed, both sides have to say the same losses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.bench.memory import Weighed, weighed_process
from tests.bench.timing import median

INPUTS = Path("demo-work/inputs")
ADAPTERS = 4
SAME = 1e-3
"""How far two sums of likelihoods may lie apart, relatively."""


def prepare(folder: Path, rows: int) -> tuple[dict[str, Any], list[Path]]:
    """Base, rows, and four adapters in a store and as folders."""
    from adapterhub.store import Store
    from tests.support.models import peft_adapter

    base, data = INPUTS / "base", folder / "rows.json"
    source = INPUTS / "data" / "alpaca_en_demo.json"
    if not base.is_dir():
        print(
            "There is no demo's base here: a Llama of its shape with random weights takes its place."
        )
        base = _random_base(folder / "base")
    if source.is_file():
        told = json.loads(source.read_text())[:rows]
    else:
        told = [
            {"instruction": f"Tell me about number {i}. " * 5, "output": f"It is {i}. " * 20}
            for i in range(rows)
        ]
    data.write_text(json.dumps(told))
    store = Store.open(folder / "home")
    found = []
    for seed in range(ADAPTERS):
        targets = ("q_proj", "k_proj", "v_proj", "o_proj")
        made = peft_adapter(
            base, folder / f"peft{seed}", seed=seed, strength=0.02, targets=targets, r=16
        )
        store.add_folder(made, name=f"bench/a{seed}", base=str(base))
        found.append(made)
    return {"base": str(base), "data": str(data)}, found


def _random_base(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.support.chat import chat_tokenizer

    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).to("bfloat16").save_pretrained(folder)  # type: ignore[arg-type, unused-ignore]
    chat_tokenizer().save_pretrained(folder)
    return folder


def run(side: str, settings: dict[str, Any], folder: Path) -> tuple[Weighed, dict[str, Any]]:
    """One process: what it took, and what it found."""
    out = folder / "out.json"
    out.unlink(missing_ok=True)
    asked = json.dumps({**settings, "out": str(out)})
    home = {"ADAPTERHUB_HOME": str(folder / "home"), "ADAPTERHUB_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "tests.bench.eval_side", side, asked]
    taken = weighed_process(side, command, env=home)
    print(
        f"{side}: {taken.wall:.1f} s, {taken.cpu:.1f} of the processor, {taken.peak / 1e9:.2f} GB",
        file=sys.stderr,
        flush=True,
    )
    return taken, json.loads(out.read_text())


def against_plain(settings: dict[str, Any], made: Sequence[Path], folder: Path, runs: int) -> None:
    """Four adapters at once, beside one process each."""
    names = [f"bench/a{number}" for number in range(ADAPTERS)]
    together: list[Weighed] = []
    alone: list[Weighed] = []
    one: list[Weighed] = []
    parts: list[dict[str, float]] = []
    for _ in range(runs):
        taken, found = run("ours", {**settings, "names": names}, folder)
        together.append(taken)
        each = [run("plain", {**settings, "adapter": str(path)}, folder) for path in made]
        losses = [loss for _, told in each for loss in told["losses"]]
        apart = max(abs(a - b) / b for a, b in zip(found["losses"], losses, strict=True))
        if apart > SAME:
            raise SystemExit(f"The losses differ by {apart:.1e}: {found['losses']} and {losses}.")
        alone.append(
            Weighed(
                "plain",
                sum(one.wall for one, _ in each),
                sum(one.cpu for one, _ in each),
                max(one.peak for one, _ in each),
            )
        )
        one.append(run("ours", {**settings, "names": names[:1]}, folder)[0])
        parts.append(run("parts", {**settings, "adapter": str(made[0])}, folder)[1])
        print(f"losses agree to {apart:.0e}", file=sys.stderr, flush=True)
    ours, plain, single = median(together), median(alone), median(one)
    once = {key: statistics.median(one[key] for one in parts) for key in parts[0]}
    most = once["load"] + ADAPTERS * once["pass"]
    most_cpu = once["load_cpu"] + ADAPTERS * once["pass_cpu"]
    print(f"\n| {ADAPTERS} adapters | wall s | CPU s | peak memory GB |\n|---|---|---|---|")
    print(
        f"| four runs of transformers + peft | {plain.wall:.1f} | {plain.cpu:.1f} | {plain.peak / 1e9:.2f} |"
    )
    print(f"| one `eval` of all four | {ours.wall:.1f} | {ours.cpu:.1f} | {ours.peak / 1e9:.2f} |")
    print(
        f"| ratio | {ours.wall / plain.wall:.2f} | {ours.cpu / plain.cpu:.2f} | {ours.peak / plain.peak:.2f} |"
    )
    print(
        f"\npeak with one adapter {single.peak / 1e9:.2f} GB, with four {ours.peak / 1e9:.2f} GB"
        f" ({ours.peak / single.peak:.2f} x)"
        f"\nstart and load {once['load']:.1f} s, PEFT imported and one adapter attached {once['attach']:.1f} s,"
        f" one pass {once['pass']:.1f} s;"
        f" load + {ADAPTERS} passes {most:.1f} s ({most_cpu:.1f} of the processor), and `eval` took"
        f" {ours.wall:.1f} ({ours.cpu:.1f}): {ours.wall / most:.2f} x ({ours.cpu / most_cpu:.2f} x)"
    )


def against_harness(settings: dict[str, Any], folder: Path, runs: int) -> None:
    """Tokens a second of the same rows, on one model in memory."""
    _, found = run("harness", {**settings, "runs": runs}, folder)
    mine = found["sums"]["ours"]
    apart = max(abs(one - mine) / mine for one in found["sums"].values())
    if apart > SAME:
        raise SystemExit(f"The sums differ by {apart:.1e}: {found['sums']}.")
    tokens, seconds = found["tokens"], found["seconds"]
    print(
        f"\nthe same {tokens['scored']:,} tokens scored of {tokens['all']:,}; sums agree to {apart:.0e}\n"
        "\n| | tokens/s | scored tokens/s | CPU s | x wall |\n|---|---|---|---|---|"
    )
    for name, took in seconds.items():
        print(
            f"| {name} | {tokens['all'] / took['wall']:.0f} | {tokens['scored'] / took['wall']:.0f}"
            f" | {took['cpu']:.1f} | {took['wall'] / seconds['ours']['wall']:.2f} |"
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="one run of 8 rows")
    parser.add_argument("--only", choices=["plain", "harness"])
    options = parser.parse_args()
    runs, rows = (1, 8) if options.quick else (options.runs, options.rows)
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings, made = prepare(folder, rows)
        print(f"{rows} rows, medians of {runs} runs; load of the machine before: {busy:.1f}")
        if options.only != "harness":
            against_plain(settings, made, folder, runs)
        if options.only != "plain":
            against_harness(settings, folder, runs)


if __name__ == "__main__":
    main()
