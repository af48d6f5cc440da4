"""What a run's events say, in sentences: `logs` and the screens tell them alike. Strings are as they were recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from adapterhub.runs import Progress, RunRecord
from adapterhub.words import counted, human_count, human_seconds, human_size, short, shown

Event = Mapping[str, Any]

_LOGS = ("log", "vllm.log", "llm-compressor.log")
STATES = {
    "running": "running",
    "done": "done",
    "failed": "failed",
    "interrupted": "stopped",
    "died": "died: its process ended without a word",
}
"""What became of a run, in words."""


def sentence(event: Event) -> str:
    """One event in a line."""
    what = str(event.get("event") or "?")
    tell = _SENTENCES.get(what)
    try:
        return tell(event) if tell else _any(event)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ):  # of another version, or nobody's
        return _any(event)


def logs_of(run: RunRecord) -> list[Path]:
    """The files with the words of the run's own work, what its process says first."""
    return [path for path in (run.output, *(run.path / name for name in _LOGS)) if path.is_file()]


def how_far(progress: Progress | None) -> str:
    """`Merging (ties): 12 of 224`, `Writing out: 1.5 GB of 16 GB`."""
    if progress is None:
        return ""
    say: Callable[[float], str] = human_size if progress.unit == "bytes" else "{:g}".format
    if progress.total is None:
        count = f": {say(progress.done)}" if progress.done else ""
    else:
        count = f": {say(progress.done)} of {say(progress.total)}"
    return progress.what + count


def took(run: RunRecord, now: datetime) -> float | None:
    """Seconds that the run took, or has taken so far; None where nothing says."""
    try:
        began = datetime.fromisoformat(run.began)
        ended = datetime.fromisoformat(run.ended) if run.ended else now
        return (ended - began).total_seconds()
    except (ValueError, TypeError):
        return None


def consequence(kind: str) -> str:
    """What follows from stopping a run of this kind."""
    return _CONSEQUENCES.get(kind, "The store stays whole.")


_CONSEQUENCES = {
    "train": "The training ends after the step it is at. It goes on from its last checkpoint with"
    " `adapterhub train RECIPE --resume`.",
    "merge": "The store stays as it was: nothing of a merge is kept.",
    "export": "Nothing appears under the folder's name. What is written is kept for `--resume`.",
    "quantize": "Nothing appears under the folder's name.",
    "serve": "The server ends, and whoever is asking it is cut off.",
}


def _any(event: Event) -> str:
    fields = [f"{key} {shown(v)}" for key, v in event.items() if key not in ("time", "event")]
    what = str(event.get("event") or "?").replace("_", " ")
    return f"{what}: {', '.join(fields)}" if fields else what


def _numbers(event: Event, keys: Iterable[str]) -> str:
    """Those of the event's numbers that are there."""
    said = [
        f"{key.replace('_', ' ')} {event[key]:.4g}"
        for key in keys
        if isinstance(event.get(key), int | float)
    ]
    return ", ".join(said)


def _started(event: Event) -> str:
    title = event.get("title") or event["kind"]
    return f"started: {title}" + (f" (process {event['pid']})" if "pid" in event else "")


def _continued(event: Event) -> str:
    return f"goes on with {event['run']}" if "run" in event else "goes on in another process"


def _failed(event: Event) -> str:
    lines = str(event.get("error") or event.get("what") or "").split("\n")
    return "failed: " + "  ".join(filter(None, lines))


def _progress(event: Event) -> str:
    unit = "bytes" if event.get("unit") == "bytes" else ""
    return how_far(Progress(event["what"], event["done"], event["total"], unit))  # type: ignore[arg-type]


def _stored(event: Event) -> str:
    kept = event.get("energy_kept")
    of = f"; keeps {kept:.2%} of the energy" if isinstance(kept, float) else ""
    return f"stored as {event['name']} (@{short(event['digest'])}){of}"


def _added(event: Event) -> str:
    if "digest" in event:
        return _stored(event)
    return f"{event['name']} is served now"


def _loaded(event: Event) -> str:
    return (
        f"loaded on {event['device']}: {counted(event['rows'], 'row')}, {human_count(event['tokens'])} tokens,"
        f" {human_count(event['trainable_parameters'])} parameters to train"
    )


def _step(event: Event) -> str:
    of = f" of {event['steps']}" if event.get("steps") else ""
    return f"step {event['step']}{of}: " + _numbers(
        event, ("loss", "learning_rate", "grad_norm", "tokens_per_second")
    )


def _evaluated(event: Event) -> str:
    measures = _numbers(event, ("loss", "perplexity", "accuracy", "margin"))
    return f"held-out rows after step {event['step']}: {measures}"


def _shard(event: Event) -> str:
    return f"{event['name']} " + ("was there, and is kept" if event["kept"] else "is written")


def _verified(event: Event) -> str:
    loss = event.get("bake_loss")
    if isinstance(loss, float):
        return f"verified; baking costs {loss:.2g} of the change"
    return "verified"


def _named(words: str) -> Callable[[Event], str]:
    """`words` with the event's fields in them."""
    return words.format_map


_SENTENCES: dict[str, Callable[[Event], str]] = {
    "started": _started,
    "working": _named("process {pid} works on it"),
    "continued": _continued,
    "part": _named("now: {kind}"),
    "progress": _progress,
    "done": _named("done"),
    "failed": _failed,
    "interrupted": _named("stopped"),
    "stored": _stored,
    "added": _added,
    "prepared": _named("recipe and data are read"),
    "loaded": _loaded,
    "training": _named("training begins: {steps} steps"),
    "step": _step,
    "evaluated": _evaluated,
    "sample": _named("asked: {question}  answered: {answer}"),
    "checkpoint": _named("checkpoint after step {step}, to resume from"),
    "saved": _named("the adapter after step {step} is kept"),
    "kept": _named("the adapter after step {step} is kept in {path}"),
    "best": _named("the best so far is step {step}"),
    "resumed": _named("goes on after step {step}"),
    "stopped_early": _named("stops early at step {step}: nothing got better"),
    "finding": _named("{words}"),
    "shard": _shard,
    "verified": _verified,
    "stage": _named("{name}"),
    "launched": _named("vLLM is started (process {pid})"),
    "ready": lambda event: f"ready after {human_seconds(event['seconds'])}",
    "open": _named("open at {url}"),
    "engine_died": _named("vLLM ended: {why}"),
    "given_up": _named("given up after {restarts} restarts"),
    "updated": _named("{name} means another version now"),
    "rolled_back": _named("{name} means what it meant before"),
    "removed": _named("{name} is served no more"),
}
