"""Runs a command again and again, each time with a fault at another point, and has the store judged.

A killed run gives more than one disk: what the kernel still writes (kill), and what power cuts at that moment leave. On
each of them the store is looked at, another command writes, and the same command runs again; then the power goes too,
since what a second command acknowledges must not stand on what the first one left un-flushed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tests.crash.commands import Command, Ground, must
from tests.crash.events import Fault, Kind, Record
from tests.crash.judge import (
    Seen,
    after_failure,
    harm,
    lasting,
    shortfall,
    shown_by_ls,
    spoken,
    told,
)
from tests.crash.power import Disk, Fate, State
from tests.crash.running import Place
from tests.store.watching import problems, refs

LATER = "power later"
"""The mode for power that goes after the next command has succeeded."""
POWER: dict[str, tuple[float, tuple[Fate, ...]]] = {
    "power": (0, ("cut",)),
    "power, zeros": (0, ("zeros",)),
    "power, lost names": (1, ("cut",)),
    "power, some lost": (0.5, ("kept", "cut", "part", "zeros", "rubbish")),
}
"""Mode -> the share of un-flushed changes of names that are lost, and what may become of un-flushed bytes."""
CRASHES = ("kill", *POWER, LATER)
FAILURES: tuple[Kind, ...] = ("interrupt", "full")
MODES = (*CRASHES, *FAILURES)
_LS, _FSCK = ["ls", "--json"], ["fsck", "--read-data"]


@dataclass
class Row:
    """One command in one mode: how many points, of which events and lines, and what was wrong at them."""

    command: str
    mode: str
    events: int = 0
    lines: int = 0
    states: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def points(self) -> int:
        return self.events + self.lines


@dataclass
class Sweep:
    """One command, on a store made ready for it.

    Args:
        spoil: makes the product worse before the command itself runs, never before what follows it.
    """

    command: Command
    ground: Ground
    place: Place
    spoil: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self._words = self.ground.words(self.command.words)
        self._probe = self.ground.words(self.command.probe())
        self.place.put({} if self.command.empty else self.ground.life)
        for words in self.command.before:
            must(self.place, self.ground.words(words))
        self._base = self.place.get()
        for line in (_LS, _FSCK, self._probe, self._words):
            self.place.preload(line)
        if self.command.cut_short:
            self._base = self._halfway(self.ground.words(self.command.cut_short))
        self._before = self._seen(self._base)
        self._probed = self._after([self._probe])
        self._whole = self._after([self._words])
        self._both = self._after([self._words, self._probe])

    def run(self, modes: Sequence[str], events: int | None, lines: int | None) -> list[Row]:
        """A row for each mode. At so many events and lines, evenly spread; None is all."""
        rows = {mode: Row(self.command.name, mode) for mode in modes}
        if any(mode in CRASHES for mode in modes):
            self._crash(rows, events, lines)
        for kind in FAILURES:
            if kind in rows:
                self._fail(kind, rows[kind], events)
        return list(rows.values())

    def _crash(self, rows: dict[str, Row], events: int | None, lines: int | None) -> None:
        self._start()
        done = self.place.run(self._words, lines=lines != 0, spoil=self.spoil)
        if done.code != 0:
            raise RuntimeError(f"without a fault it gives {done.code}: {done.said}")
        end = "after the end"
        self._judge(rows, self.place.get(), done.account.log, end, ended=True, line=False)
        for at in spread(done.account.events, events):
            self._kill(rows, Fault("kill", at))
        judged: set[tuple[int, ...]] = set()
        for at in spread(done.account.lines, lines):
            self._kill(rows, Fault("kill", at, lines=True), judged)

    def _kill(
        self, rows: dict[str, Row], fault: Fault, judged: set[tuple[int, ...]] | None = None
    ) -> None:
        """Args: judged: between two events only files grow; what was judged at these lengths isn't judged again."""
        began = time.monotonic()
        self._start()
        done = self.place.run(self._words, fault=fault, spoil=self.spoil)
        state = self.place.get()
        point = f"{'line' if fault.lines else 'event'} {fault.at} ({done.account.struck})"
        if done.code != -9:
            for row in rows.values():
                row.violations.append(f"{point}: no kill but exit {done.code}: {done.said[:300]}")
        if "kill" in rows:
            rows["kill"].seconds += time.monotonic() - began
        if judged is not None:
            lengths = sorted(len(entry.data) for entry in state.values() if entry.data is not None)
            key = (done.account.events, *lengths)
            if key in judged:
                count(rows, line=True)
                return
            judged.add(key)
        self._judge(rows, state, done.account.log, point, ended=False, line=fault.lines)

    def _judge(
        self,
        rows: dict[str, Row],
        state: State,
        log: Sequence[Record],
        point: str,
        *,
        ended: bool,
        line: bool,
    ) -> None:
        """All disks that a crash at one point can leave."""
        known: list[tuple[State, list[str]]] = []
        for mode, found in self._disks(rows, state, log, point):
            row, began = rows[mode], time.monotonic()
            wrong = next((wrong for there, wrong in known if there == found), None)
            if wrong is None:
                disk = Disk(found)
                if mode == "kill":
                    disk = Disk(self._base)
                    disk.take_in(log)
                wrong, later = self._verdict(found, disk, ended=ended)
                known.append((found, wrong))
                row.states += 1
                if LATER in rows:
                    rows[LATER].violations += [f"{mode} {point}: {what}" for what in later]
                    rows[LATER].states += 1
            row.violations += [f"{point}: {what}" for what in wrong]
            row.seconds += time.monotonic() - began
        count(rows, line=line)

    def _disks(
        self, rows: dict[str, Row], state: State, log: Sequence[Record], point: str
    ) -> Iterator[tuple[str, State]]:
        if "kill" in rows:
            yield "kill", state
        for mode, (lost, fates) in POWER.items():
            if mode in rows:
                disk = Disk(self._base)
                disk.take_in(log)
                draw = random.Random(f"{self.command.name} {point}")
                yield mode, disk.cut(state, lost=lost, fates=fates, draw=draw)

    def _verdict(self, state: State, disk: Disk, *, ended: bool) -> tuple[list[str], list[str]]:
        """What is wrong with the store of `state`, and what a power cut after the next command would spoil."""
        self.place.put(state)
        now, home = Seen.of(self.place.home), self.place.home
        wrong = [*problems(home), *harm(now, self._before, self._whole)]
        if ended:
            wrong += [f"acknowledged, but {what}" for what in shortfall(now, self._whole)]
        wrong += self._looks(now)
        if wrong:  # what follows would only say it again
            return wrong, []
        wrong, later = self._next(disk.copy(), ended)
        if self.command.again or (not wrong and now.refs != self._whole.refs):
            self.place.put(state)
            wrong_again, later_again = self._repeat(disk)
            wrong, later = wrong + wrong_again, later + later_again
        return wrong, later

    def _looks(self, now: Seen) -> list[str]:
        """Commands that only read agree that all is well, and change nothing."""
        wrong = []
        names = set(map(spoken, now.refs))
        done = self.place.run(_LS)
        if done.code != 0:
            wrong.append(f"ls gives {done.code}: {done.said.strip()[:300]}")
        elif shown_by_ls(done.out) != names:
            wrong.append(f"ls shows {sorted(shown_by_ls(done.out))}, the refs are {sorted(names)}")
        wrong += self._checked()
        if Seen.of(self.place.home) != now:
            wrong.append("looking at the store has changed it")
        return wrong

    def _checked(self) -> list[str]:
        """The product's own judgement; left-over temporary files are no damage."""
        done = self.place.run(_FSCK)
        said = " ".join((done.said + done.out).split())
        return [] if done.code == 0 else [f"fsck gives {done.code}: {said[:600]}"]

    def _next(self, disk: Disk, ended: bool) -> tuple[list[str], list[str]]:
        """Another command that writes: the crashed one is then done or undone, and stays so."""
        done = self.place.run(self._probe)
        now = Seen.of(self.place.home)
        if done.code != 0:
            return [f"then {self._probe[0]} gives {done.code}: {done.said.strip()[:300]}"], []
        wrong = [f"after the next command {what}" for what in problems(self.place.home)]
        ends = (self._both,) if ended else (self._probed, self._both)
        if now.refs not in [end.refs for end in ends]:
            wrong.append(f"after the next command it is half done: {told(now.refs)}")
        wrong += [
            f"after the next command there is no {name}"
            for name in sorted(self._before.held(trash=True) - now.held(trash=True))
        ]
        if now.journal[: len(self._before.journal)] != self._before.journal:
            wrong.append("after the next command the journal has lost lines")
        wrong += [f"after the next command {what}" for what in self._checked()]
        if wrong:
            return wrong, []
        left = self._power_later(disk, done.account.log)
        later = [*problems(self.place.home), *lasting(left, now, self._before)]
        return [], [f"after the next command: {what}" for what in later]

    def _repeat(self, disk: Disk) -> tuple[list[str], list[str]]:
        """The same command again reaches the end that the first one was to reach, and stays there."""
        done = self.place.run(self._words)
        now = Seen.of(self.place.home)
        if done.code != 0:
            return [f"the same again gives {done.code}: {done.said.strip()[:300]}"], []
        wrong = [f"after the same again {what}" for what in problems(self.place.home)]
        wrong += [f"after the same again {what}" for what in shortfall(now, self._whole)]
        if wrong:
            return wrong, []
        left = self._power_later(disk, done.account.log)
        later = [*problems(self.place.home), *lasting(left, now, now)]
        return [], [f"after the same again: {what}" for what in later]

    def _power_later(self, disk: Disk, log: Sequence[Record]) -> Seen:
        """The store after a power cut that spares only what was flushed."""
        disk.take_in(log)
        cut = disk.cut(self.place.get(), lost=1, fates=("cut",), draw=random.Random(0))
        return self._seen(cut)

    def _fail(self, kind: Kind, row: Row, events: int | None) -> None:
        """The command is interrupted or finds the disk full, at every point: it says so and cleans up."""
        began = time.monotonic()
        self._start()
        spared = {ref: at for ref, at in self._probed.refs.items() if spoken(ref) != "probe"}
        possible = self.place.run(self._words, fault=Fault(kind, 0)).account.events
        for at in spread(possible, events):
            self._start()
            done = self.place.run(self._words, fault=Fault(kind, at))
            home, point = self.place.home, f"event {at} ({done.account.struck})"
            wrong = after_failure(
                kind, done.code, done.said, home, self._before, self._whole, spared
            )
            now = Seen.of(home)
            wrong += self._looks(now)
            if self.command.again or now.journal == self._before.journal:
                wrong += self._repeat(Disk(self.place.get()))[0]
            row.violations += [f"{point}: {what}" for what in wrong]
            row.events += 1
            row.states += 1
        row.seconds += time.monotonic() - began

    def _halfway(self, words: Sequence[str]) -> State:
        """What a kill leaves in the middle of a command that changes several refs."""
        at, start = 0, self._seen(self._base).refs
        end = self._after([words]).refs
        while True:
            at += 1
            self._start()
            if self.place.run(words, fault=Fault("kill", at)).code == 0:
                raise RuntimeError(f"{' '.join(words)} is never half done")
            if refs(self.place.home) not in (start, end):
                return self.place.get()

    def _after(self, commands: Sequence[Sequence[str]]) -> Seen:
        self._start()
        for words in commands:
            must(self.place, words)
        return Seen.of(self.place.home)

    def _seen(self, state: State) -> Seen:
        self.place.put(state)
        return Seen.of(self.place.home)

    def _start(self) -> None:
        """The disk as the command finds it."""
        self.place.forget()
        self.place.put(self._base)


def count(rows: dict[str, Row], *, line: bool) -> None:
    """One point more for everything that a kill stands for."""
    for mode, row in rows.items():
        if mode in CRASHES and line:
            row.lines += 1
        elif mode in CRASHES:
            row.events += 1


def spread(possible: int, wanted: int | None) -> range:
    """So many of 1..possible, evenly spread and never none; all where `wanted` is None."""
    if wanted == 0:
        return range(0)
    stride = max(1, -(-possible // wanted)) if wanted else 1
    return range(1 + (possible - 1) % stride // 2, possible + 1, stride)
