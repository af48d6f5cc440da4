"""An export killed at its file operations, and without power there; and the same command with --resume after each.

A program of its own, since it forks a child for every point and must have no threads:

    python -m tests.export.killing BASE ADAPTER SCRATCH --points 30

BASE is a base in several shards. Prints one JSON object: how many points there were, how often shards were there to go on
with, and all that was wrong.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.crash.commands import must
from tests.crash.events import Fault
from tests.crash.power import Disk, State
from tests.crash.running import Outcome, Place
from tests.crash.sweep import POWER, spread

TARGET = "out/model"
PARTIAL = "out/.model.partial"


@dataclass
class Found:
    """What a sweep came to."""

    points: int = 0
    states: int = 0
    resumed: int = 0
    """States in which finished shards were there."""
    wrong: list[str] = field(default_factory=list)


@dataclass
class Sweep:
    """One export on a disk that holds the store and `out/`; the base lies elsewhere and is never written."""

    place: Place
    base: Path
    overwrite: bool

    def __post_init__(self) -> None:
        self.words = [
            *("export", "one", "--base", str(self.base), "-o", str(self.place.disk / TARGET)),
            *("--no-verify", "--workers", "1", "--memory", "1kB"),  # one thread, so that points are the same every time
            *(["--overwrite"] if self.overwrite else []),
        ]  # fmt: skip

    def run(self, adapter: Path, points: int) -> Found:
        """Kills it at so many points, evenly spread."""
        found = Found()
        self.place.put({})
        must(self.place, ["add", str(adapter), "--name", "one"])
        if self.overwrite:
            (self.place.disk / TARGET).mkdir(parents=True)
            (self.place.disk / TARGET / "mine.txt").write_text("precious")
        self.before = self.place.get()
        self.place.preload(self.words)
        self.place.put(self.before)
        whole = self.place.run(self.words)
        assert whole.code == 0, whole.said
        self.whole = _below(self.place.get(), TARGET)
        for at in spread(whole.account.events, points):
            self.place.put(self.before)
            killed = self.place.run(self.words, fault=Fault("kill", at))
            state = self.place.get()
            found.points += 1
            if killed.code != -9:
                found.wrong.append(f"event {at}: no kill but exit {killed.code}: {killed.said}")
            for mode, left in self._disks(state, killed, at):
                self._judge(left, f"{mode}, event {at} ({killed.account.struck})", found)
        return found

    def _disks(self, state: State, killed: Outcome, at: int) -> Iterator[tuple[str, State]]:
        """What the disk may hold: what the kernel still writes, or what power leaves."""
        yield "kill", state
        for mode, (lost, fates) in POWER.items():
            disk = Disk(self.before)
            disk.take_in(killed.account.log)
            cut = disk.cut(state, lost=lost, fates=fates, draw=random.Random(at))
            if cut != state:
                yield mode, cut

    def _judge(self, left: State, point: str, found: Found) -> None:
        found.states += 1
        there = _below(left, TARGET)
        old = _below(self.before, TARGET)
        aside = any(_below(left, name) == old for name in left if ".model.old" in name)
        if there not in (self.whole, old) and not (self.overwrite and not there and aside):
            found.wrong.append(f"{point}: the target holds {sorted(there)}")
        self.place.put(left)
        if there == self.whole:
            shutil.rmtree(self.place.disk / TARGET)
        found.resumed += f"{PARTIAL}/state.json" in left
        done = self.place.run([*self.words, "--resume"])
        after = self.place.get()
        if done.code != 0:
            found.wrong.append(f"{point}: --resume gives {done.code}: {done.said}")
        elif _below(after, TARGET) != self.whole:
            found.wrong.append(f"{point}: --resume gives other bytes")
        elif PARTIAL in after:
            found.wrong.append(f"{point}: something is left: {sorted(_below(after, PARTIAL))}")


def _below(state: State, folder: str) -> dict[str, bytes | None]:
    """The files and folders in `folder`, by their paths there."""
    return {
        name.removeprefix(f"{folder}/"): entry.data
        for name, entry in state.items()
        if name.startswith(f"{folder}/")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base", type=Path)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--points", type=int)
    parser.add_argument("--overwrite", action="store_true")
    chosen = parser.parse_args()
    sweep = Sweep(Place(chosen.scratch), chosen.base, chosen.overwrite)
    sys.stdout.write(json.dumps(asdict(sweep.run(chosen.adapter, chosen.points))))


if __name__ == "__main__":
    main()
