"""What the screens know, as immutable values: which adapters there are, which are wanted, which one is looked at.

Widgets draw a `Library` and keep nothing of their own that matters; every change makes a new one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from adapterhub.errors import AdapterHubError, FormatError, StoreDamagedError


@dataclass(frozen=True)
class Problem:
    """An error in words, as the command line says them: what, why, and what to type next."""

    what: str
    why: str = ""
    hint: str = ""
    damage: bool = False
    """The store's bytes are wrong, rather than unknown to this version or out of reach."""

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """The words for `error`; anything that isn't ours is named for what it is, without a traceback."""
        if isinstance(error, AdapterHubError):
            return cls(
                error.what,
                error.why,
                error.hint,
                isinstance(error, StoreDamagedError | FormatError),
            )
        if isinstance(error, PermissionError):
            return cls(f"Not allowed: {error.filename}.", str(error.strerror))
        if isinstance(error, OSError):
            return cls(
                f"The store can't be read: {error.strerror or error}.", str(error.filename or "")
            )
        return cls(
            f"Something went wrong inside adapterhub: {type(error).__name__}: {error}",
            hint="Please report that, with what `adapterhub ls --debug` says.",
        )

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, self.hint) if part)


@dataclass(frozen=True)
class Row:
    """One name in the store. Where the adapter behind it can't be read, `problem` says why and the facts are empty."""

    name: str
    digest: str = ""
    added: str = ""
    kind: str = ""
    base: str = ""
    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    size: int | None = None
    problem: Problem | None = None

    @cached_property
    def searched(self) -> str:
        """What the filter looks through."""
        return " ".join((self.name, self.kind, self.base, *self.targets)).lower()

    def matches(self, words: Iterable[str]) -> bool:
        """Whether every one of these lower-case words occurs in the name, kind, base or targets."""
        return all(word in self.searched for word in words)


@dataclass(frozen=True)
class Library:
    """The state of the library screen."""

    rows: tuple[Row, ...] = ()
    query: str = ""
    selected: str = ""
    """The name the user last moved to. It is kept while a filter hides it."""
    problem: Problem | None = None
    """Why the store could not be read the last time; the rows are then those of before."""
    loaded: bool = False

    @cached_property
    def visible(self) -> tuple[Row, ...]:
        """The rows that the filter lets through."""
        words = self.query.lower().split()
        return tuple(row for row in self.rows if row.matches(words))

    @cached_property
    def current(self) -> Row | None:
        """The row the detail pane shows: the selected one, or the first where that is hidden."""
        return next(
            (row for row in self.visible if row.name == self.selected),
            next(iter(self.visible), None),
        )

    @property
    def position(self) -> int:
        """The place of `current` among the visible rows."""
        return self.visible.index(self.current) if self.current else 0

    @cached_property
    def names(self) -> dict[str, str]:
        """A name for each digest that has one."""
        return {row.digest: row.name for row in reversed(self.rows)}

    def read(self, rows: tuple[Row, ...]) -> Library:
        """After the store was read. When the selected name is gone, what took its place in the list is selected."""
        fresh = replace(self, rows=rows, problem=None, loaded=True)
        if self.current and self.selected not in {row.name for row in rows} and fresh.visible:
            successor = fresh.visible[min(self.position, len(fresh.visible) - 1)]
            return replace(fresh, selected=successor.name)
        return fresh
