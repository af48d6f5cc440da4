"""A judge: a model elsewhere that says which of two answers meets a rubric better, blind and from both places.

Each candidate's answer is laid beside its opponent's (the base's, or the row's own) twice, once in each order. Who wins both
times has 1 or 0; a tie, or a mind that changes with the places, is 0.5; a reply that can't be read is no verdict. The same
answer twice is a tie that nobody need be asked about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.data import Row
from adapterhub.errors import RemoteError, UsageError
from adapterhub.evaluate.endpoint import Endpoint, Reply, Turns, ask_all, endpoint_at
from adapterhub.evaluate.results import Answered, Results
from adapterhub.evaluate.rubric import PROMPT, Rubric, prompt, read_rubric, winner_in
from adapterhub.evaluate.subjects import BASE, Subject
from adapterhub.evaluate.table import EvalRow, Found, Judged
from adapterhub.words import counted, shown

Against = Literal["base", "reference"]

_UNREADABLE = 0.1
"""Share of pairs beyond which replies that can't be read are no accident. An answer may be what spoils them."""


class Progress(Protocol):
    """Who is told what is being done."""

    def update(self, text: str) -> None:
        """Says it."""


@dataclass(frozen=True)
class Judge:
    """Who judges, by what, and beside whose answers."""

    endpoint: Endpoint
    rubric: Rubric
    against: Against = "base"

    @property
    def measure(self) -> str:
        """What the verdicts are called among the measures: beside the rows' own answers they are other numbers."""
        return "judge" if self.against == "base" else f"judge={self.against}"

    @property
    def identity(self) -> dict[str, Any]:
        """What verdicts depend on beside the answers, and its digest, which a gate may ask for. No address and no key."""
        facts = {
            **self.endpoint.identity,
            "rubric": self.rubric.digest,
            "prompt": PROMPT,
            "against": self.against,
        }
        return {**facts, "digest": digest_of(canonical_bytes(facts))}

    def require(self, subjects: Sequence[Subject]) -> None:
        """UsageError where nothing is there to be compared."""
        if self.against != "base":
            return
        if not any(subject.kind == "base" for subject in subjects):
            raise UsageError(
                "The judge compares with the base's answers, and the base isn't among the names.",
                hint=f"Name it, too, the word {BASE}; or --judge-against reference: the data's own answers.",
            )
        if all(subject.kind == "base" for subject in subjects):
            raise UsageError(
                "The judge compares with the base, and nobody else is named.",
                hint="Name an adapter, too; or --judge-against reference.",
            )


def judge_of(
    url: str | None, model: str | None, rubric: str | None, against: Against | None
) -> Judge | None:
    """The judge that was named; None where none was.

    UsageError where something of it is missing or wrong, and what `read_rubric` raises.
    """
    given = {"--judge URL": url, "--judge-model NAME": model, "--rubric FILE": rubric}
    if not any((*given.values(), against)):
        return None
    if missing := [option for option, value in given.items() if not value]:
        raise UsageError(
            "A judge needs an address, a model and a rubric.", hint=f"Add {', '.join(missing)}."
        )
    return Judge(endpoint_at(str(url), str(model)), read_rubric(str(rubric)), against or "base")


@dataclass(frozen=True)
class _Pair:
    """One row: what was asked, and the two answers."""

    row: Row
    candidate: str
    opponent: str

    @property
    def first(self) -> bool:
        """Whether the candidate comes first when the judge is asked first: drawn by a hash."""
        told = [self.row.digest, self.candidate, self.opponent]
        return int(digest_of(canonical_bytes({"pair": told}))[-1], 16) % 2 == 0

    def turns(self, rubric: Rubric, swapped: bool) -> Turns:
        ours_first = self.first != swapped
        answers = (self.candidate, self.opponent) if ours_first else (self.opponent, self.candidate)
        return prompt(rubric, self.row.question, *answers)


def with_verdicts(
    found: Sequence[Found],
    rows: Sequence[Row],
    judge: Judge,
    *,
    cached: bool,
    progress: Progress | None,
) -> list[Found]:
    """What was found, and the judge's verdicts as one measure more.

    Args:
        rows: as all of them were asked, plainly: the judge reads the same question for all.
        cached: go on with what the judge said before; what it says is kept either way.

    RemoteError where the judge is out of reach or can't be understood.
    """
    base = next((one for one in found if one.subject.kind == "base"), None)
    if judge.against == "base":
        assert base is not None, "Judge.require"
        opponents = [None if one is None else one.text for one in base.answers]
    else:
        opponents = [row.answers[0] if row.answers else None for row in rows]
    results: dict[str, Found] = {}
    for one in found:
        if one.subject.name in results:
            continue
        if judge.against == "base" and one is base:
            values: list[float | None] = [None if answer is None else 0.5 for answer in one.answers]
            told = None
        else:
            values, told = _judged(one, opponents, rows, judge, cached, progress)
        results[one.subject.name] = replace(
            one,
            values={**one.values, judge.measure: values},
            better={**one.better, judge.measure: True},
            judged=told,
        )
    return [results[one.subject.name] for one in found]


def _judged(
    found: Found,
    opponents: Sequence[str | None],
    rows: Sequence[Row],
    judge: Judge,
    cached: bool,
    progress: Progress | None,
) -> tuple[list[float | None], Judged]:
    pairs = {
        place: _Pair(row, answer.text, opponent)
        for place, (row, answer, opponent) in enumerate(
            zip(rows, found.answers, opponents, strict=True)
        )
        if answer is not None and opponent is not None
    }
    differing = {
        place: pair
        for place, pair in pairs.items()
        if pair.candidate.strip() != pair.opponent.strip()
    }
    turns = {
        2 * place + swapped: pair.turns(judge.rubric, bool(swapped))
        for place, pair in differing.items()
        for swapped in (0, 1)
    }
    replies = _replies(found.subject.name, turns, judge, cached, progress)
    verdicts = {
        place: _in_order(pair, *(winner_in(replies[2 * place + at].text) for at in (0, 1)))
        for place, pair in differing.items()
    }
    values = [
        None if place not in pairs else value_of(verdicts[place]) if place in verdicts else 0.5
        for place in range(len(rows))
    ]
    models = sorted({reply.model for reply in replies.values() if reply.model})
    return values, _tally(list(verdicts.values()), len(pairs) - len(differing), models)


Verdict = tuple[float | None, float | None, bool]
"""What the candidate has of the first asking and of the second, and whether it came first in the first."""


def _in_order(pair: _Pair, first: int | None, second: int | None) -> Verdict:
    def share(winner: int | None, ours: int) -> float | None:
        return None if winner is None else 0.5 if winner == 0 else float(winner == ours)

    return share(first, 1 if pair.first else 2), share(second, 2 if pair.first else 1), pair.first


def value_of(verdict: Verdict) -> float | None:
    """1 for a candidate that won from both places, 0 for one that lost from both, else 0.5; None where one is unreadable."""
    first, second, _ = verdict
    if first is None or second is None:
        return None
    return first if first == second else 0.5


def _tally(verdicts: Sequence[Verdict], identical: int, models: Sequence[str]) -> Judged:
    readable = [one for one in verdicts if value_of(one) is not None]
    first_won = [
        (share == 1) == candidate_first
        for one in readable
        for share, candidate_first in ((one[0], one[2]), (one[1], not one[2]))
        if share != 0.5
    ]
    return Judged(
        pairs=len(verdicts),
        identical=identical,
        unreadable=len(verdicts) - len(readable),
        consistent=sum(a == b for a, b, _ in readable) / len(readable) if readable else None,
        first_place=sum(first_won) / len(first_won) if first_won else None,
        models=tuple(models),
    )


def _replies(
    name: str, turns: Mapping[int, Turns], judge: Judge, cached: bool, progress: Progress | None
) -> Mapping[int, Reply]:
    """The judge's reply to each question, those known from before not asked again."""
    what = {
        "judge": judge.identity,
        "at": digest_of(judge.endpoint.url.encode()),
        # With their places, by which replies are kept.
        "asked": digest_of(canonical_bytes({"turns": [[at, *one] for at, one in turns.items()]})),
    }
    results = Results(what, fresh=not cached)
    replies = {
        place: reply
        for place, one in results.answers.items()
        if place in turns and (reply := _read(one.text)) is not None
    }
    count = _counter(name, len(turns), progress)
    for place, reply in list(replies.items()):
        count(place, reply)

    def keep(place: int, reply: Reply) -> None:
        replies[place] = reply
        results.answer({place: Answered(json.dumps([reply.model, reply.text]), 0)}, 0.0)
        count(place, reply)

    ask_all(judge.endpoint, {at: one for at, one in turns.items() if at not in replies}, keep)
    return replies


def _read(line: str) -> Reply | None:
    """A reply as it was kept; None where it wasn't kept whole."""
    try:
        model, text = json.loads(line)
    except (ValueError, TypeError):
        return None
    return Reply(str(text), str(model))


def _counter(name: str, questions: int, progress: Progress | None) -> Callable[[int, Reply], None]:
    """Counts replies; raises RemoteError as soon as too many pairs have one that can't be read."""
    pairs, done = questions // 2, 0
    bad: set[int] = set()

    def count(place: int, reply: Reply) -> None:
        nonlocal done
        done += 1
        if winner_in(reply.text) is None:
            bad.add(place // 2)
        if len(bad) > max(1, _UNREADABLE * pairs) or len(bad) == pairs:
            raise RemoteError(
                f"The judge's replies can't be read: those about {counted(len(bad), 'pair')} of {pairs}.",
                why=f"One of them is {shown(reply.text)}.",
                hint='It has to reply with {"why": "...", "winner": 1}. A larger model does; --fresh asks this one again.',
            )
        if progress:
            progress.update(f"judging {name}, {done} of {questions}")

    return count


def in_words(rows: Sequence[EvalRow]) -> list[str]:
    """What a reader should know of the judge before its verdicts: a line for each that was judged."""
    return [
        f"The judge on {row.name}: " + ", ".join(_parts(row.judged)) + "."
        for row in {row.name: row for row in rows}.values()
        if row.judged is not None
    ]


def _parts(judged: Judged) -> list[str]:
    told = [counted(judged.pairs, "pair")]
    if judged.identical:
        told.append(f"{judged.identical} more were the same answer twice")
    if judged.consistent is not None:
        told.append(f"{judged.consistent:.0%} with the same verdict from both places")
    if judged.first_place is not None:
        told.append(f"the first place won {judged.first_place:.0%} of what was decided")
    if judged.unreadable:
        told.append(f"unreadable: {judged.unreadable}")
    return told
