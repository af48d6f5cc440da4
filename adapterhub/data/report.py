"""A report on training data: what is in the files, how it splits, how long it is, and what is wrong with it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.data.health import any_of, examine
from adapterhub.data.masking import (
    Encoded,
    control_tokens,
    covering_length,
    encode,
    stop_token_ids,
    template_digest,
)
from adapterhub.data.problems import Health, Problem
from adapterhub.data.reading import Fault, Scan
from adapterhub.data.replay import mix_replay
from adapterhub.data.rows import Example, Preference, Row
from adapterhub.data.split import Split, dataset_digest, split_rows
from adapterhub.errors import AdapterHubError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Tokenizing:
    """With what rows become tokens, and how many of these a row may have; `on_row` is called after each row."""

    tokenizer: PreTrainedTokenizerBase
    base: str
    folder: Path
    max_length: int | Literal["auto"]
    on_row: Callable[[], None] | None = None


@dataclass(frozen=True)
class Replay:
    """General rows, and how many of them for each training row."""

    rows: tuple[Row, ...]
    ratio: float
    seed: int


@dataclass(frozen=True)
class DataReport:
    """Everything the report says: `record` as plain values, complete."""

    record: dict[str, Any]
    health: Health


def make_report(
    scan: Scan[Row] | Scan[Preference],
    *,
    held_out: float,
    seed: int,
    tokenizing: Tokenizing | None = None,
    replay: Replay | None = None,
) -> DataReport:
    """Looks at all rows that can be read; those that can't are among the problems.

    Raises IncompatibleError for a tokenizer that can't be used for any rows.
    """
    rows: tuple[Example, ...] = scan.rows
    problems = _faulty(scan.faults)
    split: Split[Example] | None = None
    try:
        split = split_rows(rows, held_out, seed=seed)
    except UsageError as error:
        problems.append(Problem("split", "refuse", error.what))
    record: dict[str, Any] = {
        "files": [{**asdict(file), "unused": list(file.unused)} for file in scan.files],
        "rows": len(rows),
        "faulty": len(scan.faults),
        "kind": _kind(rows),
        "digest": dataset_digest(rows),
        **_shape(rows),
        "split": split and _sides(split),
        "tokens": None,
    }
    encoded: Mapping[str, Encoded] | None = None
    limit: int | None = None
    controls: Sequence[str] = ()
    if tokenizing is not None:
        controls = control_tokens(tokenizing.tokenizer)
        encoded, wrong = _tokens(rows, tokenizing, controls)
        problems += wrong
        if encoded:
            side = split.train if split is not None else rows
            train = [encoded[row.digest] for row in side if row.digest in encoded]
            record["tokens"], limit = _lengths(train or list(encoded.values()), tokenizing)
    record["replay"] = None
    if replay is not None and split is not None:
        record["replay"] = _replayed(split, replay, problems)
    health = examine(rows, split, control_tokens=controls, encoded=encoded, max_length=limit)
    health = Health.of([*problems, *health.problems])
    record["problems"] = [problem.record for problem in health.problems]
    record["example"] = _example(rows[0]) if rows else None
    return DataReport(record, health)


def percentiles(values: Sequence[int]) -> dict[str, int]:
    """The smallest value that so many of a hundred don't exceed, and the largest; of none, nothing."""
    ordered = sorted(values)
    if not ordered:
        return {}
    at = {f"p{p}": ordered[math.ceil(p / 100 * len(ordered)) - 1] for p in PERCENTILES}
    return {**at, "max": ordered[-1]}


def _faulty(faults: Sequence[Fault]) -> list[Problem]:
    """The rows the reader refuses, one problem for each kind of fault."""
    kinds: dict[str, list[tuple[str]]] = {}
    for fault in faults:
        kinds.setdefault(fault.words, []).append((fault.where,))
    return [
        Problem("faulty", "refuse", f"{words[0].upper()}{words[1:]}.", tuple(rows))
        for words, rows in kinds.items()
    ]


def _kind(rows: Sequence[Example]) -> str:
    if any(isinstance(row, Preference) for row in rows):
        return "preferences"
    talks = sum(bool(row.turns) for row in rows)
    if 0 < talks < len(rows):
        return "conversations and documents"
    return "conversations" if talks else "documents" if rows else "nothing"


def _shape(rows: Sequence[Example]) -> dict[str, Any]:
    """Turns and characters."""
    talks = [row for row in rows if row.turns]
    characters = {"row": percentiles([sum(map(len, row.texts)) for row in rows])}
    if talks:
        characters["answers"] = percentiles([sum(map(len, row.answers)) for row in talks])
    return {
        "turns": percentiles([len(row.turns) for row in talks]),
        "with_system": sum(row.turns[0].role == "system" for row in talks),
        "with_tools": sum(any("<tool_call>" in text for text in row.answers) for row in talks),
        "characters": characters,
    }


def _sides(split: Split[Example]) -> dict[str, Any]:
    return {
        "train": len(split.train),
        "held_out": len(split.held_out),
        "fraction": split.fraction,
        "seed": split.seed,
        "train_digest": dataset_digest(split.train),
        "held_out_digest": dataset_digest(split.held_out),
    }


def _tokens(
    rows: Sequence[Example], tokenizing: Tokenizing, controls: Sequence[str]
) -> tuple[dict[str, Encoded], list[Problem]]:
    """Each row as tokens by its digest (of a preference the longer side), and the rows that can't be made so.

    Rows with control tokens in them are left out: `examine` finds those.
    """
    stop_ids = stop_token_ids(tokenizing.tokenizer, tokenizing.folder)
    control = any_of(controls)
    found: dict[str, Encoded] = {}
    wrong: dict[str, tuple[AdapterHubError, list[tuple[str]]]] = {}
    for row in rows:
        if row.digest not in found and not any(control.search(text) for text in row.texts):
            try:
                sides = [
                    encode(tokenizing.tokenizer, side, stop_ids=stop_ids) for side in row.sides
                ]
                found[row.digest] = max(sides, key=lambda side: len(side.input_ids))
            except AdapterHubError as error:
                alike = re.sub(r"\d+", "", error.what)  # errors name the row
                wrong.setdefault(alike, (error, []))[1].append((row.where,))
        if tokenizing.on_row:
            tokenizing.on_row()
    problems = [
        Problem("template", "refuse", " ".join(filter(None, (e.what, e.why, e.hint))), tuple(where))
        for e, where in wrong.values()
    ]
    return found, problems


def _lengths(rows: Sequence[Encoded], tokenizing: Tokenizing) -> tuple[dict[str, Any], int]:
    """What the training rows come to in tokens, and the limit they are cut to."""
    auto = covering_length(rows)
    limit = auto if tokenizing.max_length == "auto" else tokenizing.max_length
    cut = [Encoded(row.input_ids[:limit], row.labels[:limit]) for row in rows]
    kept = [row for row in cut if row.trained]
    total, trained = sum(len(row.input_ids) for row in kept), sum(row.trained for row in kept)
    return {
        "base": tokenizing.base,
        "template": template_digest(tokenizing.tokenizer),
        "row": percentiles([len(row.input_ids) for row in rows]),
        "answers": percentiles([row.trained for row in rows]),
        "max_length": limit,
        "auto": auto,
        "truncated": sum(len(row.input_ids) > limit for row in rows) - (len(rows) - len(kept)),
        "dropped": len(rows) - len(kept),
        "total": total,
        "trained": trained,
        "trained_share": trained / total if total else 0.0,
    }, limit


def _replayed(
    split: Split[Example], replay: Replay, problems: list[Problem]
) -> dict[str, Any] | None:
    """What replay adds; a problem where it can't."""
    train = [row for row in split.train if isinstance(row, Row)]
    held_out = [row for row in split.held_out if isinstance(row, Row)]
    try:
        mixed = mix_replay(train, replay.rows, replay.ratio, replay.seed, held_out)
    except UsageError as error:
        problems.append(Problem("replay", "refuse", " ".join((error.what, error.why, error.hint))))
        return None
    return {
        "ratio": replay.ratio,
        "seed": replay.seed,
        "general": len(replay.rows),
        "taken": len(mixed.taken),
        "taken_digest": dataset_digest(mixed.taken),
        "train": len(mixed.rows),
    }


def _example(row: Example) -> dict[str, Any]:
    """The row as it was read, so that people see what became of their columns."""
    shown: dict[str, Any] = {"row": row.where}
    if isinstance(row, Preference):
        for name, turns in (
            ("prompt", row.prompt),
            ("chosen", row.chosen),
            ("rejected", row.rejected),
        ):
            shown[name] = [asdict(turn) for turn in turns]
    elif row.turns:
        shown["messages"] = [asdict(turn) for turn in row.turns]
    else:
        shown["text"] = row.texts[0]
    return shown
