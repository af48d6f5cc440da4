"""Following a training's events. Everything here may block, so it is called in a thread, one call at a time."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from adapterhub.runs import Follower, RunRecord, read_run
from adapterhub.store import Store
from adapterhub.trainer.doctor import diagnose, during, trainings
from adapterhub.trainer.history import History, recipe_of
from adapterhub.tui.trainings.model import Watched

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Following:
    """One run, of which more is known with every look."""

    def __init__(self, runs: Path, run: str, letter: str) -> None:
        self._runs, self._run, self._letter = runs, run, letter
        self._follower = Follower(runs / run)
        self._history = History()
        self._seen: Watched | None = None

    def look(self) -> Watched:
        """What is known now; the same object where nothing has happened since."""
        news = self._follower.new()
        for event in news:
            if event.get("event") == "started":  # the file is read from its beginning
                self._history = History()
            other = event.get("run")
            if event.get("event") == "continued" and isinstance(other, str):
                return self._follow(other)
            self._history.take(event)
        record = self._record()
        if not news and self._seen is not None and self._seen.record == record:
            return self._seen
        if not self._history.recipe:
            self._history.recipe = recipe_of(self._runs / self._run)
        history = self._history.snapshot()
        running = record is not None and record.state == "running"
        found = during(history) if running else diagnose(history)
        findings = tuple(found) if history.steps else ()
        self._seen = Watched(self._run, self._letter, record, history, findings)
        return self._seen

    def _record(self) -> RunRecord | None:
        try:
            return read_run(self._runs / self._run)
        except Exception:  # noqa: BLE001 - the run is gone, or no run; the screen says so
            return None

    def _follow(self, other: str) -> Watched:
        """The run that this one goes on with is the one to look at."""
        path = self._runs / other
        if path.parent != self._runs or other == self._run:
            return self._seen or Watched(self._run, self._letter, self._record(), self._history)
        self._run, self._follower, self._history = other, Follower(path), History()
        return self.look()


def follow(runs: Path, ids: tuple[str, ...], first: int = 0) -> tuple[Following, ...]:
    """A follower for each run, with letters from A on, or from a later one."""
    return tuple(
        Following(runs, run, letter) for run, letter in zip(ids, _LETTERS[first:], strict=False)
    )


def others(store: Store, shown: Collection[str]) -> dict[str, str]:
    """The trainings that aren't shown, newest first: what they are called in a list, and their ids."""
    runs = [run for run in reversed(trainings(store)) if run.name not in shown]
    return {f"{recipe_of(run).get('name', '?')}  {run.name}": run.name for run in runs}
