"""All there is to know about the History place; what happens makes a new one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from adapterhub.store.journal import Operation
from adapterhub.tui.problem import Problem

MOST = 1000
"""Operations that are listed; a filter finds the others."""


@dataclass(frozen=True)
class Past:
    """What was done, newest first, and what of it is wanted."""

    operations: tuple[Operation, ...] = ()
    loaded: bool = False
    query: str = ""
    selected: int = 0
    """How many operations were done since the one under the cursor."""
    problem: Problem | None = None

    @property
    def visible(self) -> tuple[tuple[int, Operation], ...]:
        """Those that are listed, with how many were done since."""
        wanted = self.query.casefold().split()
        found = [
            (since, done)
            for since, done in enumerate(self.operations)
            if all(_has(done, word) for word in wanted)
        ]
        return tuple(found[:MOST])

    @property
    def current(self) -> Operation | None:
        """The one under the cursor."""
        return self.operations[self.selected] if self.selected < len(self.operations) else None

    @property
    def can_redo(self) -> bool:
        """Whether what was done last was an undo."""
        return bool(self.operations) and self.operations[0].op == "undo"

    def read(self, operations: list[Operation]) -> Past:
        """The same with what the journal says now; the cursor stays on its operation."""
        new = len(operations) - len(self.operations)
        followed = self.loaded and self.selected > 0  # who looks at the newest goes on doing so
        selected = min(self.selected + new, len(operations) - 1) if followed else 0
        selected = max(0, selected)
        return replace(
            self, operations=tuple(operations), loaded=True, selected=selected, problem=None
        )

    def find(self, query: str) -> Past:
        """The same, showing what has these words."""
        found = replace(self, query=query).visible
        places = [since for since, _ in found]
        selected = self.selected if self.selected in places or not places else places[0]
        return replace(self, query=query, selected=selected)


def _has(operation: Operation, word: str) -> bool:
    """Whether it changed a name with these letters in it, or is of this kind, or by this person."""
    names = (change.ref.casefold() for change in operation.refs)
    return word in (operation.op, operation.who.casefold()) or any(word in name for name in names)
