"""The table: one line a model, what it says beside the base's, and for each part of the data by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adapterhub.evaluate.intervals import Interval, Word, ratio_interval
from adapterhub.evaluate.results import Answered
from adapterhub.evaluate.scoring import Score, total
from adapterhub.evaluate.subjects import Subject


@dataclass(frozen=True)
class Versus:
    """A number less the base's, with its paired bootstrap interval."""

    difference: float
    low: float
    high: float
    level: float
    verdict: Word | None
    """None where more is neither better nor worse."""

    @classmethod
    def of(cls, found: Interval | None, *, lower_is_better: bool | None) -> Versus | None:
        if found is None:
            return None
        word = None if lower_is_better is None else found.word(lower_is_better=lower_is_better)
        return cls(found.estimate, found.low, found.high, found.level, word)


@dataclass(frozen=True)
class Measured:
    """The mean of one measure over the answers."""

    value: float
    versus_base: Versus | None


@dataclass(frozen=True)
class Judged:
    """How the judge of the measure `judge` came by its verdicts on one model."""

    pairs: int
    """Of answers that it was asked about, each from both places."""
    identical: int
    """Pairs more that it wasn't asked about: they are the same answer."""
    unreadable: int
    """Of the pairs, those with a reply that holds no verdict."""
    consistent: float | None
    """Share of the others with the same verdict from both places."""
    first_place: float | None
    """Share of all decided askings that the first place won: without a bias a half."""
    models: tuple[str, ...]
    """What the server called the model that replied."""


@dataclass(frozen=True)
class Part:
    """The rows of one value of a column, by themselves."""

    rows: int
    loss: float | None
    perplexity: float | None
    versus_base: Versus | None
    measures: Mapping[str, Measured]


@dataclass(frozen=True)
class Rival:
    """A model beside another adapter: the loss and the measures, each less the other's."""

    loss: Versus | None
    measures: Mapping[str, Versus]


@dataclass(frozen=True)
class EvalRow:
    """One line of the table: how well one model predicts the answers in the data, and what it answers itself."""

    name: str
    kind: str
    digest: str | None
    """The adapter's; None for the base and for model folders."""
    loss: float | None
    """Nats a token; None, as all that follows from it, where whoever computes tells no likelihoods."""
    perplexity: float | None
    tokens: int
    """That the loss is taken over."""
    rows: int
    answer: str | None
    """The greedy answer to the prompt, where one was given."""
    seconds: float
    versus_base: Versus | None = None
    """Of the loss, in nats a token. Where the base is among the names; None for the base itself, and where one row is
    all there is."""
    measures: Mapping[str, Measured] = field(default_factory=dict)
    tokens_per_second: float | None = None
    """Of the answers, where there are any."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    versus: Mapping[str, Rival] = field(default_factory=dict)
    """The same beside each other adapter of the table, by digest."""
    judged: Judged | None = None
    """Where a judge compared its answers."""
    left_out: int = 0
    """Rows that nobody was scored on, because in one way of asking their answer lies behind max_length."""
    trained_on: int = 0
    """Of the rows, those that it is known to have been trained on."""


@dataclass(frozen=True)
class Found:
    """Everything that was found out about one model, in the order of the rows."""

    subject: Subject
    rows: int
    scores: Sequence[Score] | None
    """None where whoever computes tells no likelihoods."""
    answers: Sequence[Answered | None]
    """None for a row that asks nothing; empty where nothing was asked."""
    values: Mapping[str, Sequence[float | None]]
    """Of each measure; None for a row that wasn't answered or can't be judged here."""
    better: Mapping[str, bool]
    """Whether more of a measure is better; a measure that isn't among them is neither."""
    said: str | None
    seconds: float
    answering_seconds: float
    judged: Judged | None = None


def line(
    found: Found,
    base: Found | None,
    parts: Sequence[str],
    all_of_them: Sequence[Found],
    order: Sequence[int] | None = None,
) -> EvalRow:
    """The line of one model.

    Args:
        all_of_them: everything in the table.
        base: what was found out about the base, where it is among the models.
        parts: what each row is a part of; nothing where they aren't told apart.
        order: of all rows, in which an interval's are drawn; as they stand where nothing is said.
    """
    against = None if base is found else base
    places = range(found.rows) if order is None else order
    whole = _part(found, against, places)
    answered = sum(one.tokens for one in found.answers if one is not None)
    return EvalRow(
        name=found.subject.name,
        kind=found.subject.kind,
        digest=found.subject.digest,
        loss=whole.loss,
        perplexity=whole.perplexity,
        tokens=total(found.scores).tokens if found.scores else 0,
        rows=found.rows,
        answer=found.said,
        seconds=found.seconds,
        versus_base=whole.versus_base,
        measures=whole.measures,
        tokens_per_second=answered / found.answering_seconds if found.answering_seconds else None,
        parts={
            name: _part(found, against, [at for at, part in enumerate(parts) if part == name])
            for name in dict.fromkeys(parts)
        },
        versus={
            other.subject.digest: _rival(found, other, places)
            for other in all_of_them
            if other.subject.digest not in (None, found.subject.digest)
        },
        judged=found.judged,
    )


def _rival(found: Found, other: Found, places: Sequence[int]) -> Rival:
    beside = _part(found, other, places)
    measures = {name: one.versus_base for name, one in beside.measures.items()}
    return Rival(beside.versus_base, {name: one for name, one in measures.items() if one})


def _part(found: Found, base: Found | None, places: Sequence[int]) -> Part:
    own = _scored(found, places)
    score = total(own) if own else None
    versus = None
    if base is not None and own and (theirs := _scored(base, places)):
        differences = [a.nll - b.nll for a, b in zip(own, theirs, strict=True)]
        versus = ratio_interval(differences, [one.tokens for one in theirs])
    measured = {name: _measured(name, found, base, places) for name in found.values}
    return Part(
        len(places),
        score.loss if score else None,
        score.perplexity if score else None,
        Versus.of(versus, lower_is_better=True),
        {name: one for name, one in measured.items() if one is not None},
    )


def _scored(found: Found, places: Sequence[int]) -> list[Score]:
    return [found.scores[place] for place in places] if found.scores else []


def _measured(
    name: str, found: Found, base: Found | None, places: Sequence[int]
) -> Measured | None:
    """The mean over the rows that were judged; None where there are none."""
    own = {at: value for at in places if (value := found.values[name][at]) is not None}
    if not own:
        return None
    versus = None
    if base is not None:
        theirs = base.values[name]
        differences = [
            value - other for at, value in own.items() if (other := theirs[at]) is not None
        ]
        versus = ratio_interval(differences, [1.0] * len(differences))
    better = found.better.get(name)
    return Measured(
        math.fsum(own.values()) / len(own),
        Versus.of(versus, lower_is_better=None if better is None else not better),
    )
