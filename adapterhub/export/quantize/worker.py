"""A script for an environment of its own: quantises a model with llm-compressor, and scores it before and after.

It imports nothing of adapterhub, since it runs where adapterhub isn't. A job comes as JSON on stdin:

    model, out     folders: read, and written
    method         gptq or awq
    calibration    rows of token ids
    held_out       rows of {"ids", "trained"}: the positions that count for the perplexity are those where trained is true
    seed

Answers go to stdout, one JSON object a line: {"event": "stage", "name"}, and as the last {"event": "done", ...}. Whatever
libraries print goes to stderr.
"""

from __future__ import annotations

import json
import math
import os
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Any

GROUPS = (128, 64, 32)
"""Sizes of groups of weights that share a scale, as the kernels of servers have them; the first that fits is taken."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)

    def tell(event: str, **fields: Any) -> None:
        answers.write(json.dumps({"event": event, **fields}) + "\n")

    job = json.load(sys.stdin)
    tell("stage", name="loading")
    torch: Any = import_module("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(job["seed"])
    if not torch.accelerator.is_available():
        # AWQ (0.14) pins memory whatever the machine, for faster copies to an accelerator; without one that raises.
        torch.Tensor.pin_memory = lambda self: self
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto", local_files_only=True)
    width = group_width(model)
    tell("stage", name="scoring the unquantised model")
    before = loss(model, job["held_out"], torch)
    tell("stage", name="calibrating")
    quantise(model, job, width)
    tell("stage", name="saving")
    model.save_pretrained(job["out"], save_compressed=True)
    AutoTokenizer.from_pretrained(job["model"], local_files_only=True).save_pretrained(job["out"])
    del model
    tell("stage", name="scoring the quantised model")
    saved = AutoModelForCausalLM.from_pretrained(job["out"], dtype="auto", local_files_only=True)
    after = loss(saved, job["held_out"], torch)
    tell(
        "done",
        perplexity_before=math.exp(before),
        perplexity_after=math.exp(after),
        group=width,
        versions={
            name: version(name)
            for name in ("llmcompressor", "compressed-tensors", "transformers", "torch")
        },
    )


def group_width(model: Any) -> int | None:
    """The largest group that divides every linear's input; None: one scale for a whole row."""
    widths = {
        module.in_features
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear" and name != "lm_head"
    }
    return next((size for size in GROUPS if all(width % size == 0 for width in widths)), None)


def quantise(model: Any, job: dict[str, Any], width: int | None) -> None:
    """Weights of 4 bits, in place; the head stays as it is."""
    schemes = import_module("compressed_tensors.quantization")
    awq = job["method"] == "awq"
    weights = schemes.QuantizationArgs(
        num_bits=4,
        type="int",
        symmetric=not awq,
        strategy="channel" if width is None else "group",
        group_size=width,
    )
    groups = {"group_0": schemes.QuantizationScheme(targets=["Linear"], weights=weights)}
    common = {"config_groups": groups, "ignore": ["lm_head"]}
    if awq:
        smooth = import_module("llmcompressor.modifiers.transform.awq")
        plain = import_module("llmcompressor.modifiers.quantization")
        recipe = [smooth.AWQModifier(duo_scaling="both"), plain.QuantizationModifier(**common)]
    else:
        recipe = [import_module("llmcompressor.modifiers.gptq").GPTQModifier(**common)]
    rows = job["calibration"]
    import_module("llmcompressor").oneshot(
        model=model,
        dataset=import_module("datasets").Dataset.from_list(
            [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]
        ),
        recipe=recipe,
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
        max_seq_length=max(map(len, rows)),
    )


def loss(model: Any, rows: list[dict[str, Any]], torch: Any) -> float:
    """Nats a token over the positions that count, computed in the model's dtype."""
    total, count = 0.0, 0
    model.eval()
    for row in rows:
        ids = torch.tensor([row["ids"]], device=model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1].float()
        each = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        counts = torch.tensor(row["trained"][1:], device=each.device)
        total += float(each[counts].double().sum())
        count += int(counts.sum())
    return total / max(1, count)


if __name__ == "__main__":
    main()
