"""All there is to know about the Jobs place and about a run that is looked at; what happens makes a new one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from adapterhub.runs import RunRecord
from adapterhub.tui.problem import Problem


@dataclass(frozen=True)
class Jobs:
    """The runs, and what of them is wanted."""

    runs: tuple[RunRecord, ...] = ()
    loaded: bool = False
    only_running: bool = False
    selected: str | None = None
    marked: frozenset[str] = field(default_factory=frozenset)
    problem: Problem | None = None

    @property
    def visible(self) -> tuple[RunRecord, ...]:
        """Those that are listed."""
        if not self.only_running:
            return self.runs
        return tuple(run for run in self.runs if run.state == "running")

    @property
    def current(self) -> RunRecord | None:
        """The one under the cursor."""
        listed = self.visible
        return next(
            (run for run in listed if run.id == self.selected), listed[0] if listed else None
        )

    @property
    def running(self) -> int:
        return sum(run.state == "running" for run in self.runs)

    def read(self, runs: list[RunRecord]) -> Jobs:
        """The same with what the store says now."""
        marked = self.marked & {run.id for run in runs}
        return replace(self, runs=tuple(runs), loaded=True, marked=marked, problem=None)

    def mark(self, run: str) -> Jobs:
        """Marks a run, or takes its mark off."""
        return replace(self, marked=self.marked ^ {run})

    def trainings(self, run: RunRecord) -> tuple[str, ...]:
        """The trainings that opening `run` shows: itself, and those that are marked."""
        marked = (one.id for one in self.runs if one.kind == "train" and one.id in self.marked)
        return tuple(dict.fromkeys((run.id, *marked)))


@dataclass(frozen=True)
class Looked:
    """One run as it is now, and what came since the last look."""

    record: RunRecord | None = None
    problem: Problem | None = None
    events: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
