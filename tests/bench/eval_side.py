"""One side of `bench_eval`, in a process of its own: `python -m tests.bench.eval_side SIDE SETTINGS`; JSON into a file.

`ours` is one `evaluate` of the named adapters on one loaded base. `plain` is the script that people write for one adapter:
transformers, peft, batches of eight, all logits. `parts` times a load and a pass by themselves. `harness` scores the same
rows with lm-evaluation-harness and with ours, in turns, on one model in memory.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapterhub.data import Encoded, encode_rows, read_rows, stop_token_ids
from adapterhub.data.masking import IGNORED
from tests.bench.timing import inside, medians

BEGAN = time.monotonic() - time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)
"""About when the process began: nothing of it is waited for before this line."""
BATCH = 8


def rows_of(settings: Mapping[str, Any]) -> tuple[Encoded, ...]:
    """The same tokens for every side."""
    from adapterhub.evaluate.models import load_tokenizer

    base = Path(settings["base"])
    tokenizer = load_tokenizer(base)
    stop_ids = stop_token_ids(tokenizer, base)
    found = encode_rows(
        tokenizer, read_rows(Path(settings["data"])), max_length=1024, stop_ids=stop_ids
    )
    return tuple(found.rows)


def ours(settings: Mapping[str, Any]) -> dict[str, Any]:
    """All adapters, one after another, as the command does it."""
    from adapterhub.evaluate import evaluate
    from adapterhub.store import Store

    store = Store.open(Path(os.environ["ADAPTERHUB_HOME"]))
    rows = evaluate(
        store,
        settings["names"],
        base=settings["base"],
        data=Path(settings["data"]),
        split="all",
        held_out=0.0,
        attest=False,
        cached=False,
    )
    return {"losses": [row.loss for row in rows]}


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """One adapter: a right-padded batch, its whole logits, the loss of its answers."""
    import torch
    import torch.nn.functional as F
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(settings["base"], dtype=torch.float32)
    model = PeftModel.from_pretrained(model, settings["adapter"]).eval()
    rows = rows_of(settings)
    summed, tokens = 0.0, 0
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        longest = max(len(row.input_ids) for row in batch)
        pads = [longest - len(row.input_ids) for row in batch]
        ids = torch.tensor(
            [[*row.input_ids, *[0] * pad] for row, pad in zip(batch, pads, strict=True)]
        )
        labels = torch.tensor(
            [[*row.labels, *[IGNORED] * pad] for row, pad in zip(batch, pads, strict=True)]
        )
        mask = torch.tensor([[1] * (longest - pad) + [0] * pad for pad in pads])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask).logits
        loss = F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        summed += float(loss)
        tokens += int((labels[:, 1:] != IGNORED).sum())
    return {"losses": [summed / tokens]}


def parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """From the start of the process to a loaded base, the first adapter attached, and one pass with it: seconds, and of the processor."""
    from adapterhub.evaluate.models import attached, load_model
    from adapterhub.evaluate.scoring import score_rows

    rows = rows_of(settings)
    model = load_model(Path(settings["base"]), "float32")
    load, load_cpu = time.monotonic() - BEGAN, time.process_time()
    began, began_cpu = time.monotonic(), time.process_time()
    with attached(model, Path(settings["adapter"])) as wrapped:
        attach, attach_cpu = time.monotonic() - began, time.process_time() - began_cpu
        score_rows(wrapped, rows[:1])  # what only the first call does
        forward = inside("pass", lambda: score_rows(wrapped, rows))
    return {
        "load": load,
        "load_cpu": load_cpu,
        "attach": attach,
        "attach_cpu": attach_cpu,
        "pass": forward.wall,
        "pass_cpu": forward.cpu,
    }


def harness(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same (context, answer) pairs for both; first shown to be the same sum, then timed."""
    from adapterhub.evaluate.harness_peace import guest, in_peace
    from adapterhub.evaluate.models import load_model, load_tokenizer
    from adapterhub.evaluate.scoring import score_rows, total

    rows = [_answered(row) for row in rows_of(settings)]
    base = Path(settings["base"])
    model = load_model(base, "float32")
    sums: dict[str, float] = {}
    tokens = {
        "scored": sum(sum(label != IGNORED for label in row.labels) for row in rows),
        "all": sum(len(row.input_ids) for row in rows),
    }

    def by_us() -> None:
        sums["ours"] = total(score_rows(model, rows)).nll

    def by_them(batch: int) -> Callable[[], None]:
        wrapper = guest("models.huggingface").HFLM
        lm = wrapper(pretrained=model, tokenizer=load_tokenizer(base), batch_size=batch)

        def score() -> None:
            asked = [_pair(row) for row in rows]
            sums[str(batch)] = -math.fsum(
                found[0] for found in lm._loglikelihood_tokens(asked, disable_tqdm=True)
            )

        return score

    score_rows(model, rows[:1])  # what only the first call does
    with in_peace():
        sides = {"ours": by_us, "lm-eval, one at a time": by_them(1), "lm-eval, 8": by_them(8)}
        taken = medians(
            settings["runs"],
            *[lambda what=what, work=work: inside(what, work) for what, work in sides.items()],
        )
    return {
        "sums": sums,
        "tokens": tokens,
        "seconds": {one.what: {"wall": one.wall, "cpu": one.cpu} for one in taken},
    }


def _answered(row: Encoded) -> Encoded:
    """The row up to the end of its answer: what comes behind it, nobody is asked about."""
    last = max(at for at, label in enumerate(row.labels) if label != IGNORED)
    return Encoded(row.input_ids[: last + 1], row.labels[: last + 1])


def _pair(row: Encoded) -> tuple[None, list[int], list[int]]:
    """Context and continuation, as the harness wants them; the answer has to be one piece."""
    first = next(at for at, label in enumerate(row.labels) if label != IGNORED)
    assert all(label != IGNORED for label in row.labels[first:]), "an answer in several pieces"
    return None, list(row.input_ids[:first]), list(row.input_ids[first:])


SIDES: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "ours": ours,
    "plain": plain,
    "parts": parts,
    "harness": harness,
}


def main() -> None:
    """Does one side, and writes what it found."""
    settings = json.loads(sys.argv[2])
    found = SIDES[sys.argv[1]](settings)
    Path(settings["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
