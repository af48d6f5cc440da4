"""GPTQ and AWQ by llm-compressor, which wants other libraries than adapterhub and so has an environment of its own.

It runs `worker.py` there as a process. Calibration rows are turned into tokens here, as in training, and some of them are
kept apart: on those, which the calibration never sees, the model is scored before and after.

Frantar et al. 2023, GPTQ, arXiv:2210.17323; Lin et al. 2024, AWQ, arXiv:2306.00978.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from adapterhub.data import dataset_digest, encode_rows, read_rows, stop_token_ids
from adapterhub.data.masking import IGNORED
from adapterhub.errors import ExternalToolError, MissingDependencyError, UsageError
from adapterhub.evaluate.models import load_tokenizer
from adapterhub.export.beside import companions
from adapterhub.fsio import typed_path

Method = Literal["gptq", "awq"]
METHODS: dict[str, Method] = {"gptq": "gptq", "awq": "awq"}
"""By what people type."""
VARIABLE = "ADAPTERHUB_QUANTIZE"
LIBRARY = "llmcompressor==0.14.0.1"
_WORKER = Path(__file__).with_name("worker.py")
_HELD_OUT = 32
"""Rows that are scored, at most; at least a row, and never more than a fifth."""
_SHOWN = 2000
"""Characters of a failed process's last words."""


@dataclass(frozen=True)
class Calibration:
    """Rows as tokens: those that calibrate, and those that score."""

    rows: tuple[tuple[int, ...], ...]
    held_out: tuple[Mapping[str, Any], ...]
    digest: str
    """Of all the rows in the file."""

    def record(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "rows": len(self.rows),
            "tokens": sum(map(len, self.rows)),
            "held_out_rows": len(self.held_out),
            "held_out_tokens": sum(sum(row["trained"]) for row in self.held_out),
        }


def find_python(home: Path, configured: str | None) -> Path:
    """The Python of the environment: of the one named in ADAPTERHUB_QUANTIZE, else in config.toml, else the store's own.

    MissingDependencyError with the commands that make it where there is none.
    """
    own = home / "tools" / "quantize"
    named = os.environ.get(VARIABLE) or configured
    folder = typed_path(named) if named else own
    python = folder / "bin" / "python"
    if python.is_file():
        return python
    where = quote(str(folder))
    raise MissingDependencyError(
        f"There is no environment for GPTQ and AWQ at {folder}.",
        why="They are llm-compressor's, which wants other versions of libraries than adapterhub.",
        hint=f"python3 -m venv {where} && {where}/bin/pip install {LIBRARY}"
        f"    One that you have: {VARIABLE}=FOLDER",
    )


def read_calibration(
    data: Path, model: Path, *, fmt: str | None = None, most: int = 128, max_length: int = 2048
) -> Calibration:
    """At most `most` rows of `data` for calibration, and some more to score on, as tokens of the model in `model`.

    Which is which depends on the rows alone, not on their order. UsageError where there are too few; NotFoundError,
    FormatError and IncompatibleError as for training.
    """
    every = read_rows(data, fmt)
    tokenizer = load_tokenizer(model)
    chosen = sorted(every, key=lambda row: row.digest)
    held = max(1, min(_HELD_OUT, len(chosen) // 5))
    encoded = encode_rows(
        tokenizer,
        chosen[: held + most],
        max_length=max_length,
        stop_ids=stop_token_ids(tokenizer, model),
    ).rows
    if len(encoded) <= held:
        raise UsageError(
            f"{data} has {len(encoded)} rows that can be used; calibration takes some, and scoring others.",
            hint="Give more rows: 128 are usual.",
        )
    scored = [
        {"ids": list(row.input_ids), "trained": [label != IGNORED for label in row.labels]}
        for row in encoded[:held]
    ]
    rows = tuple(tuple(row.input_ids) for row in encoded[held:])
    return Calibration(rows, tuple(scored), dataset_digest(every))


def quantise_calibrated(
    model: Path,
    out: Path,
    method: Method,
    calibration: Calibration,
    *,
    python: Path,
    log: Path,
    stage: Callable[[str], None] = lambda _: None,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes the model in `model` into the empty folder `out`, its linears in 4 bits, and tells what is attested of it.

    The process holds the whole model. `log` gets what it prints; `stage` is called with what it does, in words.
    ExternalToolError where it fails.
    """
    job = {
        "model": str(model),
        "out": str(out),
        "method": method,
        "calibration": calibration.rows,
        "held_out": calibration.held_out,
        "seed": seed,
    }
    told = _run(python, job, log, stage)
    have = {path.name for path in out.iterdir()}
    for path in companions(model).values():
        if path.name not in have:
            shutil.copyfile(path, out / path.name)
    return {
        "method": method,
        "bits": 4,
        "group": told["group"],
        "library": "llm-compressor",
        "versions": told["versions"],
        "calibration": calibration.record(),
        "perplexity_before": told["perplexity_before"],
        "perplexity_after": told["perplexity_after"],
    }


def _run(
    python: Path, job: Mapping[str, Any], log: Path, stage: Callable[[str], None]
) -> dict[str, Any]:
    """The last answer of the worker. It gets a session of its own, and none of it is left however this ends."""
    answer: dict[str, Any] = {}
    # Isolated: neither this folder nor PYTHONPATH may lend it other libraries than its environment has.
    command = [str(python), "-I", str(_WORKER)]
    with log.open("wb") as said:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                start_new_session=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        except OSError as error:
            raise ExternalToolError(f"{python} can't be started.", why=str(error)) from error
        with process:
            try:
                answer = _talk(process, job, stage)
                process.wait()
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode or answer.get("event") != "done":
        text = log.read_text("utf-8", "replace").strip()
        last = text.splitlines()[-1] if text else f"it ended with {process.returncode}"
        raise ExternalToolError(
            "llm-compressor couldn't quantise the model.",
            why=last[-_SHOWN:],
            hint=f"All that it said: less {quote(str(log))}",
        )
    return answer


def _talk(
    process: subprocess.Popen[bytes], job: Mapping[str, Any], stage: Callable[[str], None]
) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(job).encode())
        process.stdin.close()
    except BrokenPipeError:  # it is dead already; its log says why
        return {}
    answer: dict[str, Any] = {}
    for line in process.stdout:
        answer = json.loads(line)
        if answer["event"] == "stage":
            stage(answer["name"])
    return answer
