"""Measuring each model once: its scores, its answers, what they are judged by; going on with what is known of before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.evaluate.backend import Backend, Speaker
from adapterhub.evaluate.measures import Measure
from adapterhub.evaluate.results import Answered, Results
from adapterhub.evaluate.subjects import Subject
from adapterhub.evaluate.table import Found
from adapterhub.evaluate.task import Asked, Asking

if TYPE_CHECKING:
    from adapterhub.base import BaseModel


class Progress(Protocol):
    """What `evaluate` tells of its work: one unit for each model."""

    def advance(self, amount: float = 1, **status: object) -> None:
        """`amount` more units are done."""

    def update(self, text: str) -> None:
        """Says what is being done now."""


@dataclass(frozen=True)
class Measuring:
    """What every model is asked, and how."""

    asked: Asked
    measures: Sequence[Measure]
    prompt: str | None
    """Answered beside the rows, where there is one."""
    max_new_tokens: int
    base: BaseModel | None
    stop_ids: frozenset[int]
    backend: Backend
    cached: bool
    progress: Progress | None

    def all(self, subjects: Sequence[Subject]) -> list[Found]:
        """Each of them once: the base and its adapters one after another, then each model folder."""
        results: dict[str, Found] = {}
        different = {subject.name: subject for subject in subjects}.values()
        for subject in sorted(different, key=lambda one: one.folder is not None):
            with self.backend.speaker(subject) as speaker:
                results[subject.name] = self._one(subject, speaker)
        return [results[subject.name] for subject in subjects]

    def _one(self, subject: Subject, speaker: Speaker) -> Found:
        began = time.monotonic()
        asking = self.asked.of(subject)
        advance = self._advancer(len(asking.rows) + len(asking.questions))
        results = Results(self._what(subject, asking), fresh=not self.cached)
        self._say(f"scoring {subject.name}")
        scores = speaker.score(
            asking.encoded, known=results.scores, on_scores=results.score, on_rows=advance
        )
        if asking.questions:
            self._say(f"asking {subject.name}")
            self._ask(asking, speaker, results, advance)
        said = None if self.prompt is None else speaker.answer(self.prompt, self.max_new_tokens)
        told = [results.answers.get(place) for place in range(len(asking.questions))]
        return Found(
            subject=subject,
            rows=len(asking.rows),
            scores=scores,
            answers=told,
            values={one.name: _judged(one, told, self.asked.references) for one in self.measures},
            better={one.name: True for one in self.measures if one.share},
            said=said,
            seconds=round(time.monotonic() - began, 3),
            answering_seconds=results.seconds if told else 0.0,
        )

    def _ask(
        self, asking: Asking, speaker: Speaker, results: Results, advance: Callable[[int], None]
    ) -> None:
        last = time.monotonic()
        for batch in speaker.answers(
            asking, self.max_new_tokens, known=results.answers, on_rows=advance
        ):
            took, last = time.monotonic() - last, time.monotonic()
            found = {place: Answered(a.text, len(a.tokens)) for place, a in batch.items()}
            results.answer(found, took)

    def _what(self, subject: Subject, asking: Asking) -> dict[str, Any]:
        """Everything that what is found row by row depends on: the weights, the tokens, and how it is computed.

        A fingerprint is of a sample; weights that differ elsewhere are files of another size or time.
        """
        from adapterhub.base import read_base

        weights = read_base(subject.folder) if subject.folder else self.base
        assert weights is not None, "an adapter, and the base, need a base"
        return {
            "adapter": subject.digest,
            "weights": weights.fingerprint,
            "config": weights.config_digest,
            "files": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in weights.shards],
            "rows": _digest([[row.input_ids, row.labels] for row in asking.encoded]),
            "questions": _digest([list(question) for question in asking.questions]),
            "max_new_tokens": self.max_new_tokens,
            "stop": sorted(self.stop_ids),
            **self.backend.identity,
            **self.backend.recognised(subject),
        }

    def _say(self, text: str) -> None:
        if self.progress:
            self.progress.update(text)

    def _advancer(self, steps: int) -> Callable[[int], None]:
        def advance(done: int) -> None:
            if self.progress:
                self.progress.advance(done / steps)

        return advance


def _judged(
    measure: Measure, told: Sequence[Answered | None], references: Sequence[str]
) -> list[float | None]:
    return [
        None if one is None else measure.judge(one.text, reference)
        for one, reference in zip(told, references, strict=True)
    ]


def _digest(tokens: Sequence[Any]) -> str:
    return digest_of(canonical_bytes({"tokens": tokens}))
