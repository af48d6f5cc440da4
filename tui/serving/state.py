"""What the Serve place knows, as immutable values: the plan that is being made, and every server that was seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from adapterhub.tui.problem import Problem

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord
    from adapterhub.serve.prospect import Prospect
    from adapterhub.serve.watching import Look

PLAN = ""
"""In the place of a run: the plan of a new server."""

Values = Mapping[str, str | bool]


@dataclass(frozen=True)
class Planned:
    """A server that might be started. `found` is what the last look at it said; `stale`: the plan has changed since."""

    names: tuple[str, ...] = ()
    values: Values = field(default_factory=dict)
    found: Prospect | None = None
    problem: Problem | None = None
    """Why nothing could be looked at, or what is wrong with the settings."""
    stale: bool = True
    line: str = ""
    """What would be typed to start it."""

    @property
    def startable(self) -> bool:
        """Whether nothing that is known speaks against a start."""
        return not self.stale and self.found is not None and self.found.startable


@dataclass(frozen=True)
class Serving:
    """The servers, and which of them is looked at. Those that ended while they were shown stay until they are left."""

    looks: tuple[Look, ...] = ()
    looked: bool = False
    shown: str = PLAN
    ended: Mapping[str, tuple[Look, RunRecord | None]] = field(default_factory=dict)
    problem: Problem | None = None
    """Why the servers could not be looked for."""

    @property
    def all(self) -> tuple[Look, ...]:
        """Those that run, and those that ended while they were looked at."""
        running = {look.run for look in self.looks}
        return (*self.looks, *(look for run, (look, _) in self.ended.items() if run not in running))

    @property
    def current(self) -> Look | None:
        """The server that is looked at; None where it is the plan."""
        return next((look for look in self.all if look.run == self.shown), None)

    @property
    def how_it_ended(self) -> RunRecord | None:
        """Of the server that is looked at, where it has ended."""
        return self.ended.get(self.shown, (None, None))[1]

    def seen(self, looks: tuple[Look, ...]) -> tuple[Serving, tuple[Look, ...]]:
        """After another look, and the servers that are gone since the last one."""
        gone = tuple(look for look in self.looks if look.run not in {other.run for other in looks})
        ended = {**self.ended, **{look.run: (look, None) for look in gone}}
        fresh = replace(self, looks=looks, looked=True, ended=ended, problem=None)
        if not self.looked and looks and self.shown == PLAN:
            fresh = replace(fresh, shown=looks[-1].run)
        return fresh, gone

    def told(self, run: str, record: RunRecord | None) -> Serving:
        """After it is known how a server ended."""
        if run not in self.ended:
            return self
        return replace(self, ended={**self.ended, run: (self.ended[run][0], record)})

    def show(self, run: str) -> Serving:
        """Another one is looked at; one that has ended is forgotten when it is left."""
        kept = {key: value for key, value in self.ended.items() if key != self.shown or key == run}
        return replace(self, shown=run, ended=kept)
