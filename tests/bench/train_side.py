"""One side of `bench_train`, in a process of its own: `python -m tests.bench.train_side plain|ours SETTINGS`; JSON on stdout.

`plain` is the script that people write: SFTTrainer with a PEFT configuration on prompts and completions. `ours` is the
trainer's own loop. Both get the same rows, base, seed and settings, and are timed step by step from the outside.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

BEGAN = time.monotonic() - time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
"""About when the process began: nothing of it is waited for before this line."""


def clocked(trainer: Any) -> dict[str, list[float]]:
    """Wall clock and CPU clock at the end of every step, first the beginning of the first one."""
    from transformers import TrainerCallback

    seen: dict[str, list[float]] = {"wall": [], "cpu": [], "tokens": [], "trained": []}

    class Clock(TrainerCallback):  # type: ignore[misc,unused-ignore]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not seen["wall"]:
                self.on_step_end()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seen["wall"].append(time.monotonic())
            seen["cpu"].append(time.process_time())

    step: Callable[..., Any] = trainer.training_step

    def counted(model: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
        mask = inputs.get("attention_mask")
        seen["tokens"].append(inputs["input_ids"].numel() if mask is None else int(mask.sum()))
        seen["trained"].append(int((inputs["labels"] != -100).sum()))
        return step(model, inputs, *rest, **options)

    trainer.training_step = counted
    trainer.add_callback(Clock())
    return seen


def build_plain(settings: dict[str, Any], scratch: str) -> tuple[Any, Any]:
    """The usual script."""
    import torch
    from datasets import Dataset  # type: ignore[import-untyped]
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    base = settings["base"]
    model = AutoModelForCausalLM.from_pretrained(
        base,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
        device_map={"": "cpu"},
    )
    rows = [
        {"prompt": turns[:-1], "completion": turns[-1:]}
        for turns in json.loads(Path(settings["rows"]).read_text())
    ]
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=scratch,
            max_steps=settings["steps"],
            per_device_train_batch_size=settings["batch"],
            learning_rate=settings["learning_rate"],
            max_length=settings["length"],
            packing=settings["packing"],
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            seed=0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=settings["rank"],
            lora_alpha=2 * settings["rank"],
            target_modules=settings["targets"],
        ),
    )
    return trainer, trainer.model


def build_ours(settings: dict[str, Any], scratch: str) -> tuple[Any, Any]:
    """The trainer's own parts, as `adapterhub train` puts them together."""
    from adapterhub.base import read_base
    from adapterhub.evaluate.models import load_tokenizer
    from adapterhub.trainer.attention import how_rows_stay_apart
    from adapterhub.trainer.data import load_corpus, tokenize
    from adapterhub.trainer.libraries import require_libraries
    from adapterhub.trainer.loop import make_trainer
    from adapterhub.trainer.model import choose_device, load_for_training, scoring_mode
    from adapterhub.trainer.recipe import parse_recipe

    require_libraries()
    recipe = parse_recipe(
        {
            "name": "bench/ours",
            "base": settings["base"],
            "data": {"path": settings["data"], "held_out": 0},
            "eval": {"rows": 0},
            "method": "qlora",
            "rank": settings["rank"],
            "alpha": 2 * settings["rank"],
            "target_modules": settings["targets"],
            "steps": settings["steps"],
            "batch_size": settings["batch"],
            "learning_rate": settings["learning_rate"],
            "warmup": 0,
            "max_length": settings["length"],
            "packing": settings["packing"],
        }
    )
    base = read_base(Path(settings["base"]))
    tokenizer = load_tokenizer(base.path)
    rows = tokenize(recipe, load_corpus(recipe), tokenizer, base.path).train.rows
    device = choose_device()
    model = load_for_training(recipe, base, device)
    with scoring_mode(model):
        apart = how_rows_stay_apart(model, rows)
    trainer = make_trainer(model, tokenizer, rows, recipe, device, Path(scratch), apart=apart)
    return trainer, model


def held_out_loss(model: Any, settings: dict[str, Any]) -> float:
    """Nats a token on the held-out rows, by one and the same scorer."""
    from adapterhub.data import encode_rows, read_rows, stop_token_ids
    from adapterhub.evaluate.models import load_tokenizer
    from adapterhub.evaluate.scoring import score
    from adapterhub.trainer.model import scoring_mode

    base = Path(settings["base"])
    tokenizer = load_tokenizer(base)
    rows = encode_rows(
        tokenizer,
        read_rows(Path(settings["held_out"])),
        max_length=settings["length"],
        stop_ids=stop_token_ids(tokenizer, base),
    )
    with scoring_mode(model):
        return score(model, rows.rows).loss


def main() -> None:
    """Trains one side and prints what it took."""
    side, settings = sys.argv[1], json.loads(sys.argv[2])
    with TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):
        trainer, model = (build_plain if side == "plain" else build_ours)(settings, scratch)
        seen = clocked(trainer)
        trainer.train()
        peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
        loss = held_out_loss(model, settings) if settings.get("held_out") else None
    # Straight to the file: libraries may have kept their own hold on stdout.
    report = {**seen, "first_step": seen["wall"][1] - BEGAN, "peak": peak, "held_out_loss": loss}
    os.write(1, (json.dumps(report) + "\n").encode())


if __name__ == "__main__":
    main()
