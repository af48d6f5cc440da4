"""Suites: questions that come with their checks, shipped with the project or written by anybody in YAML.

A suite is a mapping with `about` and `parts`; a part is a list of texts (scored as prose) and of entries {ask, answer,
check or tests}. `check` is a measure (adapterhub.evaluate.measures), by default that the answer holds `answer`; `tests` are
calls of the code in the answer, and what should come out, tried in the sandbox. `forgetting` is what a model knew before it was trained.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.data.rows import Message, Row
from adapterhub.errors import FormatError, NotFoundError, UsageError
from adapterhub.evaluate.measures import Measure, parse_measure
from adapterhub.evaluate.sandbox import run_code
from adapterhub.fsio import typed_path
from adapterhub.words import did_you_mean
from adapterhub.yamltext import parse_yaml

_FENCED = re.compile(r"```(?:python|py)?\s*\n(.*?)```", re.DOTALL)
SHIPPED = ("forgetting", "injections")


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    ask: str
    answer: str
    check: str | None = None
    tests: dict[str, Any] | None = None


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    about: str
    parts: dict[str, list[_Entry | str]]


@dataclass(frozen=True)
class Suite:
    """The rows of a suite, the part that each is in, and by what its answer is checked ("" for prose)."""

    name: str
    rows: tuple[Row, ...]
    parts: tuple[str, ...]
    checks: tuple[str, ...]

    @property
    def digest(self) -> str:
        """`sha256:<hex>` over everything in it that a number depends on: questions, answers, checks and parts."""
        entries = zip(self.rows, self.parts, self.checks, strict=True)
        told = [[row.digest, part, check] for row, part, check in entries]
        return digest_of(canonical_bytes({"entries": told}))


def load_suite(name: str) -> Suite:
    """The suite shipped under this name, or the one in a YAML file, which is called by the file's own name.

    NotFoundError where there is none, FormatError and UsageError name what is wrong in it.
    """
    path = files("adapterhub.evaluate") / "suites" / f"{name}.yaml"
    if name not in SHIPPED:
        path = typed_path(name)
        if not path.is_file():
            raise NotFoundError(
                f"There is no suite '{name}'.",
                why=did_you_mean(name, SHIPPED) or f"There are: {', '.join(SHIPPED)}.",
                hint="--suite forgetting, or a YAML file of your own",
            )
        if path.name in SHIPPED:
            raise UsageError(
                f"{name} is called as one that is shipped.",
                why="What is attested of it would pass for the other.",
                hint=f"Call it {path.name}.yaml, or by a name of its own.",
            )
    try:
        document = msgspec.convert(parse_yaml(path.read_bytes(), name), _Document)
    except msgspec.ValidationError as error:
        raise FormatError(f"{name} is no suite.", why=str(error)) from error
    rows: list[Row] = []
    parts: list[str] = []
    checks: list[str] = []
    for part, entries in document.parts.items():
        for entry in entries:
            number = len(rows) + 1
            if isinstance(entry, str):
                rows.append(Row((), entry, number, name))
                checks.append("")
            else:
                turns = (Message("user", entry.ask), Message("assistant", entry.answer))
                rows.append(Row(turns, None, number, name))
                checks.append(_check(entry))
            parts.append(part)
    called = name if name in SHIPPED else path.name
    return Suite(called, tuple(rows), tuple(parts), tuple(checks))


def _check(entry: _Entry) -> str:
    if entry.tests is not None:
        return f"tests={json.dumps(entry.tests)}"
    check = entry.check if entry.check is not None else f"contains={entry.answer}"
    parse_measure(check)
    return check


def _passes(answer: str, check: str) -> float | None:
    kind, _, argument = check.partition("=")
    if kind != "tests":
        return _measure(check).judge(answer, "")
    ran = run_code(code_in(answer), json.loads(argument))
    return float(ran.passed) if ran.confined else None


PASSED = Measure("passed", _passes, "passed")
"""The share of answers that pass the check of their own entry, which it takes for the reference."""


@cache
def _measure(check: str) -> Measure:
    return parse_measure(check)


def code_in(answer: str) -> str:
    """The first fenced block of an answer, or all of it where there is none."""
    found = _FENCED.search(answer)
    return found[1] if found else answer
