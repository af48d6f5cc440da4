"""The base asked in other ways: what a system prompt or retrieved texts alone would have done, beside what training did."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.canonical import digest_of
from adapterhub.data import Row
from adapterhub.errors import UsageError
from adapterhub.evaluate.contexts import RETRIEVED, read_contexts
from adapterhub.evaluate.subjects import Subject
from adapterhub.evaluate.task import with_system

PROMPTED = "base + system prompt"
"""What the base is called that was told a system prompt."""


@dataclass(frozen=True)
class Baseline:
    """One more line of the table."""

    subject: Subject
    setting: str
    """What it is attested as."""
    given: Callable[[Sequence[Row]], list[Row]]
    """The rows as it is asked them; raises what can be wrong with them."""
    digest: Callable[[Sequence[Row]], str]
    """Of what these rows are told beside."""


def baselines(system: str | None, contexts: Path | None, *, has_base: bool) -> list[Baseline]:
    """Those that were asked for. UsageError where there is no base to ask, and what `read_contexts` raises."""
    found: list[Baseline] = []
    if (system is not None or contexts is not None) and not has_base:
        raise UsageError(
            "A system prompt or contexts are tried on the base.",
            hint="Name it: --base FOLDER_OR_REPO",
        )
    if system is not None:
        told = system
        found.append(
            Baseline(
                Subject(PROMPTED, "prompted"),
                "system",
                lambda rows: [with_system(row, told) for row in rows],
                lambda rows: digest_of(told.encode()),
            )
        )
    if contexts is not None:
        texts = read_contexts(contexts)
        found.append(
            Baseline(Subject(RETRIEVED, "retrieved"), "contexts", texts.given, texts.digest)
        )
    return found
