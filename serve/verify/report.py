"""What was found: for people, for a table, and as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.serve.verify.effect import NOTHING, Difference, Tolerance
from adapterhub.serve.verify.reference import Agreement
from adapterhub.words import counted

COLUMNS = ("name", "effect", "transformers", "mixed", "verdict")


@dataclass(frozen=True)
class Fault:
    """Who is at fault, what was seen and what was expected, and the likely cause. `kind` is one word for programs."""

    who: str
    kind: str
    text: str
    cause: str = ""

    def __str__(self) -> str:
        """In a sentence or two."""
        return f"{self.who} {self.text}." + (f" Likely cause: {self.cause}." if self.cause else "")


@dataclass
class Checked:
    """What is known of one served name; `folder` is None for the base."""

    name: str
    folder: Path | None
    effect: Difference | None = None
    agreement: Agreement | None = None
    why_not: str = ""
    """Why it was not compared with transformers."""
    answers: int = 0
    mixed: Difference = NOTHING
    """The largest between an answer given among others and what it is alone."""
    regret: float = 0.0


@dataclass
class Report:
    """The outcome. `tolerance` is what was allowed; `noise` what batches of one name differed by."""

    dtype: str
    tolerance: Tolerance
    noise: Difference = NOTHING
    names: list[Checked] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    untold: list[tuple[str, str, Difference]] = field(default_factory=list)
    """Pairs that an answer can't tell apart, and by how much they differ."""
    left_out: list[str] = field(default_factory=list)
    rounds: int = 0
    requests: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is at fault. What couldn't be told is in `remarks`, `untold` and `left_out`."""
        return not self.faults

    def blame(self, who: str, kind: str, text: str, cause: str = "") -> None:
        """Adds a fault; of one kind and name the first is kept."""
        if not any((fault.who, fault.kind) == (who, kind) for fault in self.faults):
            self.faults.append(Fault(who, kind, text, cause))

    def rows(self) -> list[dict[str, Any]]:
        """One row a name, for a table with COLUMNS."""
        return [
            {
                "name": one.name,
                "effect": "(the base)" if one.folder is None else _effect(one.effect),
                "transformers": _agreement(one),
                "mixed": _mixed(one),
                "verdict": self._verdict(one.name),
            }
            for one in self.names
        ]

    def document(self) -> dict[str, Any]:
        """Everything, as JSON and for an attestation."""
        return {
            "ok": self.ok,
            "dtype": self.dtype,
            "tolerance": {"token": self.tolerance.token, "request": self.tolerance.request},
            "noise": self.noise.document(),
            "rounds": self.rounds,
            "requests": self.requests,
            "seconds": round(self.seconds, 2),
            "names": [self._document(one) for one in self.names],
            "faults": [
                {"who": one.who, "kind": one.kind, "text": one.text, "cause": one.cause}
                for one in self.faults
            ],
            "untold": [{"names": [a, b], **gap.document()} for a, b, gap in self.untold],
            "remarks": list(self.remarks),
            "left_out": list(self.left_out),
        }

    def _document(self, one: Checked) -> dict[str, Any]:
        found = one.agreement
        compared: Mapping[str, Any] = (
            {"not_compared": one.why_not}
            if found is None
            else {
                "agrees": not found.verdict,
                "off": found.off.document(),
                "limit": found.limit,
                "effect": found.expected.document(),
                "arrives": found.arrives,
            }
        )
        return {
            "name": one.name,
            "base": one.folder is None,
            "effect": one.effect.document() if one.effect else None,
            "transformers": compared,
            "mixed": {"answers": one.answers, **one.mixed.document(), "regret": one.regret},
            "verdict": self._verdict(one.name),
        }

    def _verdict(self, name: str) -> str:
        kinds = [fault.kind for fault in self.faults if fault.who == name]
        return ", ".join(kinds) if kinds else "ok"


def _effect(effect: Difference | None) -> str:
    return "" if effect is None else f"{effect.mean:.2g}, at most {effect.worst:.2g}"


def _agreement(one: Checked) -> str:
    found = one.agreement
    if found is None:
        return f"not compared: {one.why_not}" if one.why_not else "not compared"
    return found.verdict or f"agrees, off by {found.off.rms:.1g}"


def _mixed(one: Checked) -> str:
    return f"{counted(one.answers, 'answer')}, off by {one.mixed.worst:.1g}" if one.answers else ""
