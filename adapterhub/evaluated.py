"""An attested evaluation, read and said in words: its numbers, each beside the base's, with what lies between which values.

The attestation may have been written by anybody, or by a newer version: what isn't as expected is left out. Names in it
(of measures, parts and suites) are the writer's own, to be cleaned by whoever shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.perplexity import growth, loss_in_words
from adapterhub.tolerant import finite, inner, mapping, text
from adapterhub.words import counted, human_size, short

if TYPE_CHECKING:
    from adapterhub.manifest import Attestation

PAIR = "pair"
"""The event of an attestation that two trainings were compared; see `adapterhub.evaluate.pair`."""
PERPLEXITY = "perplexity"
_MOST_ROWS = 2**53
"""More are a lie, and no number that everybody can keep."""
_VERDICTS = ("better", "same", "worse")


@dataclass(frozen=True)
class Difference:
    """A number less another model's on the same rows, and between which values it lies."""

    estimate: float
    low: float
    high: float
    verdict: str | None
    """better, same or worse; None where more is neither better nor worse."""


@dataclass(frozen=True)
class Number:
    """One measure: the mean over the rows, and less the base's. A perplexity's difference is that of the losses."""

    value: float
    versus_base: Difference | None


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation found about one adapter."""

    created: str
    suite: str | None
    harness: str | None
    """The task of lm-evaluation-harness, where it was one."""
    data: str | None
    """The digest of all rows of the data."""
    rows_digest: str | None
    """Of the rows that were evaluated."""
    rows: int | None
    trained_on: int
    """Of the rows, those that the adapter is known to have been trained on."""
    base: str | None
    """The fingerprint of the base it was attached to."""
    base_perplexity: float | None
    numbers: Mapping[str, Number]
    """The perplexity, where it is known, and each measure."""
    parts: Mapping[str, Mapping[str, Number]]
    baselines: Mapping[str, Mapping[str, Number]]
    """Of the base, told a system prompt (`prompted`) or what was retrieved (`retrieved`)."""
    judged: Mapping[str, Any]
    """How a judge came by its verdicts, where there was one."""
    settings: Mapping[str, Any]
    versions: Mapping[str, Any]

    @property
    def task(self) -> str | None:
        """What its rows are called: a suite or a task; None for a data file's."""
        return self.suite if self.suite is not None else self.harness

    @property
    def on(self) -> str:
        """`the suite forgetting`, `the task arc_easy`, or `data 4f1c8a02ffff`."""
        if self.task is not None:
            return f"the {'suite' if self.suite is not None else 'task'} {self.task}"
        return f"data {short(self.data)}" if self.data is not None else "rows unknown"

    @property
    def place(self) -> str:
        """On how many rows of what: `12 held-out rows of data 4f1c8a02ffff`."""
        if self.rows is None:
            return self.on
        if self.trained_on:
            return f"{counted(self.rows, 'row')} of {self.on}, {self.trained_on} of them trained on"
        held_out = "held-out " if self.settings.get("split") == "held_out" else ""
        return f"{counted(self.rows, f'{held_out}row')} of {self.on}"


def evaluation_of(item: Attestation) -> Evaluation | None:
    """The evaluation that an attestation tells of; None where it is of another kind, or holds no number."""
    return evaluation_in(item.body, item.created) if item.type == "eval" else None


def evaluation_in(body: Mapping[str, Any], created: str) -> Evaluation | None:
    """The same of the body of an `eval` attestation."""
    result, data = inner(body, "result"), inner(body, "data")
    numbers = _numbers(result)
    if not numbers:
        return None
    rows = finite(result.get("rows"))
    parts, baselines = (
        {str(name): known for name, one in inner(result, key).items() if (known := _numbers(one))}
        for key in ("parts", "baselines")
    )
    return Evaluation(
        created=created,
        suite=text(body.get("suite")),
        harness=text(body.get("harness")),
        data=text(data.get("digest")),
        rows_digest=text(data.get("rows_digest")) or text(data.get("digest")),
        rows=int(rows) if rows is not None and 0 < rows < _MOST_ROWS else None,
        trained_on=int(min(max(finite(data.get("trained_on")) or 0, 0), _MOST_ROWS)),
        base=text(inner(body, "base").get("fingerprint")),
        base_perplexity=finite(result.get("base_perplexity")),
        numbers=numbers,
        parts=parts,
        baselines=baselines,
        judged=inner(result, "judged"),
        settings=inner(body, "settings"),
        versions=inner(body, "versions"),
    )


def in_words(found: Evaluation) -> Iterator[tuple[str, str]]:
    """What an evaluation says, a label and a text each: the perplexity, what it is beside the base's, measures, parts."""
    for name, number in found.numbers.items():
        if name != PERPLEXITY:
            yield name, number_in_words(name, number)
            continue
        base = f" (base {said(found.base_perplexity)})" if found.base_perplexity is not None else ""
        yield name, said(number.value) + base
        if number.versus_base is not None:
            yield "against base", difference_in_words(name, number.versus_base)
    for kind, numbers in found.baselines.items():
        yield f"base, {kind}", part_in_words(numbers)
    if told := [
        f"{key.replace('_', ' ')} {said(value)}"
        for key, value in found.judged.items()
        if finite(value) is not None
    ]:
        yield "judged", ", ".join(told)
    for name, numbers in found.parts.items():
        yield f"· {name or 'the rest'}", part_in_words(numbers)


def part_in_words(numbers: Mapping[str, Number]) -> str:
    """`perplexity 77 (worse, +36.6% (+6.32 to +87.9)), passed 0.17`."""
    return ", ".join(f"{name} {number_in_words(name, one)}" for name, one in numbers.items())


def number_in_words(measure: str, number: Number) -> str:
    """`0.5 (better, +0.1 (+0.02 to +0.18))`."""
    versus = number.versus_base
    beside = f" ({difference_in_words(measure, versus)})" if versus is not None else ""
    return said(number.value) + beside


def difference_in_words(measure: str, found: Difference) -> str:
    """`better, +0.1 (+0.02 to +0.18)`; of losses as of perplexities, `better, -13.5% (-15 to -12.1)`."""
    if measure == PERPLEXITY:
        word = found.verdict or "differs"
        return loss_in_words(word, found.estimate, found.low, found.high)
    word = f"{found.verdict}, " if found.verdict else ""
    return f"{word}{found.estimate:+.3g} ({found.low:+.3g} to {found.high:+.3g})"


def pair_in_words(body: Mapping[str, Any]) -> str:
    """What was found about QLoRA beside LoRA: `as qlora beside @1f2e…: equivalent, +0.2% (-0.1 to +0.5), …`."""
    found = difference(body.get("versus"))
    told = [text(body.get("word")) or "unknown"]
    if found is not None:
        changes = [100 * growth(one) for one in (found.estimate, found.low, found.high)]
        told.append("perplexity of qlora {:+.3g}% ({:+.3g} to {:+.3g})".format(*changes))
    if (margin := finite(body.get("margin"))) is not None:
        told.append(f"margin {100 * margin:.3g}%")
    if (rows := body.get("rows")) is not None:
        told.append(f"on {said(rows)} rows")
    for method in ("qlora", "lora"):
        cost = inner(inner(body, "cost"), method)
        seconds, memory = finite(cost.get("seconds")), finite(cost.get("peak_memory"))
        spent = [f"{said(seconds)} s"] if seconds is not None else []
        spent += [human_size(memory)] if memory is not None else []
        if spent:
            told.append(f"{method} took {' and '.join(spent)}")
    other = short(text(body.get("other")) or "?")
    return f"as {said(body.get('as'))} beside @{other}: {', '.join(told)}"


def difference(found: object) -> Difference | None:
    """A comparison as it is attested; None where it isn't whole."""
    table = mapping(found)
    estimate, low, high = (finite(table.get(key)) for key in ("difference", "low", "high"))
    if estimate is None or low is None or high is None:
        return None
    word = table.get("verdict")
    return Difference(estimate, low, high, word if word in _VERDICTS else None)


def said(value: object) -> str:
    """A number to four digits; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _numbers(place: object) -> dict[str, Number]:
    """Of the whole data, or of a part."""
    table = mapping(place)
    told = {PERPLEXITY: (table.get(PERPLEXITY), table.get("versus_base"))}
    for name, measure in inner(table, "measures").items():
        one = measure if isinstance(measure, Mapping) else {"value": measure}
        told.setdefault(str(name), (one.get("value"), one.get("versus_base")))
    return {
        name: Number(value, difference(versus))
        for name, (raw, versus) in told.items()
        if (value := finite(raw)) is not None
    }
