"""Evaluations as they are attested, without a model: chosen numbers through the code that writes real ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub.evaluate.attesting import body_of
from adapterhub.evaluate.gates import suite_digest
from adapterhub.evaluate.intervals import Word
from adapterhub.evaluate.table import EvalRow, Measured, Part, Versus
from adapterhub.store import Store
from tests.support.sample import SMOL

FINGERPRINT = "sha256:" + "5eed" * 16
"""Of the base in the sample store."""
TRAINED_ON = "sha256:" + "da7a" * 16
"""The data that the sample's adapters were trained on, tone.jsonl or terms.jsonl."""
WHOLE: Mapping[str, Any] = {
    "split": "all",
    "held_out": 0.0,
    "split_seed": 0,
    "limit": None,
    "max_rows": None,
    "max_length": 1024,
    "dtype": "float32",
}

GATES = """
[[gates]]
names = ["support/*", "desk/*", "legal/*"]

[[gates.demands]]
suite = "forgetting"
at_most_worse = 0.05

[[gates.demands]]
suite = "forgetting"
measure = "passed"
max_new_tokens = 48
at_least = 0.6
"""
"""What the sample store's prod asks for."""


def facts(digest: str, *, suite: str | None = None, **settings: Any) -> dict[str, Any]:
    """What all numbers of an evaluation have in common."""
    return {
        "metric": "perplexity",
        **({"suite": suite} if suite else {}),
        "data": {"digest": digest, "rows_digest": digest, "truncated": 0, "dropped": 0},
        "settings": {**WHOLE, **settings},
        "base": {"repo": SMOL, "revision": None, "fingerprint": FINGERPRINT},
        "template": "sha256:" + "7e" * 32,
        "versions": {"torch": "2.13.0"},
    }


def versus(difference: float, spread: float, word: Word | None) -> Versus:
    """A difference, known to within `spread`."""
    return Versus(difference, difference - spread, difference + spread, 0.95, word)


def adapter(
    name: str,
    digest: str | None,
    against: Versus | None,
    *,
    base: float = 14.0,
    **given: Any,
) -> EvalRow:
    """A line of the table that `evaluate` makes; `base` is the base's perplexity."""
    loss = math.log(base) + (against.difference if against else 0.0)
    return EvalRow(
        name, "adapter", digest, loss, math.exp(loss), 640, 42, None, 1.0, versus_base=against, **given
    )  # fmt: skip


def attest(
    store: Store, rows: Sequence[EvalRow], common: Mapping[str, Any], base: float = 14.0
) -> None:
    """Attests the rows as one table with the base in it."""
    table = [EvalRow("base", "base", None, math.log(base), base, 640, 42, None, 1.0), *rows]
    for row in rows:
        assert row.digest is not None
        store.attest(row.digest, "eval", body_of(row, table, common, None))


def evaluate_sample(store: Store) -> None:
    """Gives the sample store two tables: what they knew before, with its parts, and orders hidden in tickets."""
    parts = ("arithmetic", "code", "knowledge", "instructions", "prose")
    digests = {
        name: store.resolve(name).digest for name in ("support/tone", "legal/terms", "desk/both")
    }
    changes: tuple[tuple[str, float, float, Word, Word], ...] = (
        ("support/tone", -0.012, 0.71, "same", "same"),
        ("legal/terms", 0.241, 0.52, "worse", "worse"),
        ("desk/both", -0.087, 0.81, "better", "better"),
    )
    rows = []
    for name, difference, passed, word, judged in changes:
        told = {
            part: Part(
                8,
                math.log(9 + step) + difference * step,
                (9 + step) * math.exp(difference * step),
                versus(difference * step, 0.09, word if step else "same"),
                {"passed": Measured(passed - step / 20, versus(passed - 0.7, 0.04, judged))}
                if part != "prose"
                else {},
            )
            for step, part in enumerate(parts)
        }
        measured = {"passed": Measured(passed, versus(passed - 0.69, 0.05, judged))}
        against = versus(difference, 0.06, word)
        rows.append(adapter(name, digests[name], against, measures=measured, parts=told))
    common = facts(
        suite_digest("forgetting"), suite="forgetting", measures=["passed"], max_new_tokens=48
    )
    common["data"]["rows_digest"] = "sha256:" + "f09e" * 16
    attest(store, rows, common)
    hidden = {"passed": Measured(0.94, versus(0.02, 0.05, "same"))}
    injections = facts("sha256:" + "01d0" * 16, suite="injections", measures=["passed"], max_new_tokens=48)  # fmt: skip
    attest(store, [adapter("support/tone", digests["support/tone"], versus(0.01, 0.05, "same"), measures=hidden)], injections)  # fmt: skip
