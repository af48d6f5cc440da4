"""What was found wrong with data: each problem with its kind, its weight, its words, and the rows it is about."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from adapterhub.errors import FormatError
from adapterhub.words import some

Severity = Literal["refuse", "warn"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, and where: each group is one case, of one row or of several that belong together."""

    kind: str
    severity: Severity
    words: str
    groups: tuple[tuple[str, ...], ...] = ()

    @property
    def rows(self) -> tuple[str, ...]:
        """All rows concerned, each as `file:number`."""
        return tuple(dict.fromkeys(row for group in self.groups for row in group))

    @property
    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "words": self.words,
            "rows": list(self.rows),
            "groups": [list(group) for group in self.groups if len(group) > 1],
        }

    def shown(self, most: int = 6) -> str:
        """The first few cases, each file named once: `data.json:3 = 17, 40 = 41, more.json:2 = 5 and 6 more`."""
        before = ""
        cases = []
        for group in self.groups[:most]:
            case = []
            for row in group:
                file, _, number = row.rpartition(":")
                case.append(number if file == before else row)
                before = file
            cases.append(" = ".join(case))
        return some(cases + [""] * (len(self.groups) - len(cases)), most)


@dataclass(frozen=True)
class Health:
    """All problems that were found, those that forbid training first."""

    problems: tuple[Problem, ...]

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Health:
        """The problems in their order, but those that forbid training first."""
        return cls(tuple(sorted(problems, key=lambda problem: problem.severity != "refuse")))

    @property
    def refused(self) -> tuple[Problem, ...]:
        """What forbids training."""
        return tuple(problem for problem in self.problems if problem.severity == "refuse")

    def require(self) -> None:
        """FormatError with the first problem that forbids training."""
        for problem in self.refused:
            raise FormatError(
                problem.words,
                why=problem.shown(),
                hint="Correct or delete these rows; nothing is dropped silently.",
            )
