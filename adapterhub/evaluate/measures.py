"""What an answer is measured by beside its likelihood: each a number a row, of which the mean is told.

A measure is named on the command line as `exact`, `contains`, `contains=TEXT`, `lacks=TEXT`, `regex=PATTERN`, `json`,
`schema=FILE` or `length`. All but `length` are 1 for an answer that has it and 0 for one that hasn't.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.canonical import digest_of
from adapterhub.errors import UsageError
from adapterhub.fsio import typed_path
from adapterhub.words import did_you_mean

_PATTERN_SECONDS = 1.0
"""For one answer; a pattern that takes longer has gone astray."""

Judge = Callable[[str, str], float | None]
"""(answer, reference) -> the number; None where it can't be told here."""


@dataclass(frozen=True)
class Measure:
    """One measure. `identity` tells it from another of the same name: a file's content, not its path."""

    name: str
    judge: Judge
    identity: str
    share: bool = True
    """A share of answers, of which more is better; else a plain number."""


def parse_measure(text: str) -> Measure:
    """The measure that was typed. UsageError where it is none, or where what it names can't be read."""
    name, given, argument = text.partition("=")
    make = _MAKERS.get(name)
    if make is None:
        raise UsageError(
            f"'{name}' is no measure.",
            why=did_you_mean(name, _MAKERS) or f"There are: {', '.join(_MAKERS)}.",
            hint="--measure exact --measure schema=ticket.json",
        )
    return make(text, argument if given else None)


def _exact(text: str, argument: str | None) -> Measure:
    _refuse_argument(text, argument)
    return Measure(text, lambda answer, wanted: float(_plain(answer) == _plain(wanted)), text)


def _contains(text: str, argument: str | None) -> Measure:
    def judge(answer: str, wanted: str) -> float:
        return float(_plain(wanted if argument is None else argument) in _plain(answer))

    return Measure(text, judge, text)


def _lacks(text: str, argument: str | None) -> Measure:
    if not argument:
        raise UsageError("'lacks' needs a text.", hint="--measure 'lacks=As an AI'")
    return Measure(text, lambda answer, wanted: float(_plain(argument) not in _plain(answer)), text)


def _regex(text: str, argument: str | None) -> Measure:
    import regex

    if not argument:
        raise UsageError(
            "'regex' needs a pattern.", hint=r"--measure 'regex=order \d+', found anywhere"
        )
    try:
        pattern = regex.compile(argument, regex.DOTALL)
    except regex.error as error:
        raise UsageError(f"'{argument}' is no pattern.", why=str(error)) from error

    def judge(answer: str, wanted: str) -> float:
        try:
            return float(pattern.search(answer, timeout=_PATTERN_SECONDS) is not None)
        except TimeoutError as error:
            raise UsageError(
                f"The pattern '{argument}' takes too long.",
                why=f"One answer took it over {_PATTERN_SECONDS:g} s.",
                hint="Nested repetitions such as (a+)+ are the usual reason.",
            ) from error

    return Measure(text, judge, text)


def _json(text: str, argument: str | None) -> Measure:
    _refuse_argument(text, argument)
    return Measure(text, lambda answer, wanted: float(_document(answer) is not _NO_JSON), text)


def _schema(text: str, argument: str | None) -> Measure:
    from jsonschema import exceptions, validators

    if not argument:
        raise UsageError("'schema' needs a file.", hint="--measure schema=ticket.schema.json")
    path = typed_path(argument)
    try:
        data = path.read_bytes()
        schema = json.loads(data)
        kind = validators.validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, RecursionError, exceptions.SchemaError) as error:
        told = error.message if isinstance(error, exceptions.SchemaError) else str(error)
        raise UsageError(f"{argument} is no JSON schema.", why=told) from error
    validator = kind(schema)

    def judge(answer: str, wanted: str) -> float:
        document = _document(answer)
        return float(document is not _NO_JSON and validator.is_valid(document))

    return Measure(f"schema={path.name}", judge, f"schema={digest_of(data)}")


def _length(text: str, argument: str | None) -> Measure:
    _refuse_argument(text, argument)
    return Measure(text, lambda answer, wanted: float(len(answer.split())), text, share=False)


_MAKERS: Mapping[str, Callable[[str, str | None], Measure]] = {
    "exact": _exact,
    "contains": _contains,
    "lacks": _lacks,
    "regex": _regex,
    "json": _json,
    "schema": _schema,
    "length": _length,
}

MADE = frozenset(_MAKERS)
"""Measures that `parse_measure` makes, by what comes before their `=`."""
KINDS = MADE | {"perplexity", "passed", "judge"}
"""What else is called a measure; those of the harness have a `/`."""

_NO_JSON = object()


def _document(answer: str) -> Any:
    """The answer as JSON: the whole of it, since that is what a program would read."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        return json.loads(answer.strip(), parse_constant=refuse)
    except (ValueError, RecursionError):
        return _NO_JSON


def _plain(text: str) -> str:
    """Without differences of blanks, which nobody means."""
    return " ".join(text.split())


def _refuse_argument(text: str, argument: str | None) -> None:
    if argument is not None:
        name = text.partition("=")[0]
        raise UsageError(f"The measure {name} takes no value.", hint=f"--measure {name}")
