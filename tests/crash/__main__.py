"""`python -m tests.crash`: sweeps commands and prints a table; exit 1 where the store was harmed.

python -m tests.crash --all                     every event and every line of every command, in all modes
python -m tests.crash --events 8 --lines 4      so many of each, evenly spread
python -m tests.crash "rm of several" --mode kill --wrong "written in place"
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import adapterhub.cli.keeping
import adapterhub.cli.library
import adapterhub.cli.refs  # noqa: F401 - imported before the forks
from tests.crash.commands import COMMANDS, make_ground
from tests.crash.running import Place
from tests.crash.sweep import MODES, Row, Sweep
from tests.crash.wrong import WRONG

SHOWN = 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash")
    names = [command.name for command in COMMANDS]
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(names))
    parser.add_argument("--all", action="store_true", help="every event and every line")
    parser.add_argument("--events", type=int, default=8, help="so many events of each command")
    parser.add_argument("--lines", type=int, default=4, help="so many lines of each command")
    parser.add_argument("--mode", action="append", choices=MODES, help="only these modes")
    parser.add_argument("--wrong", choices=sorted(WRONG), help="with a writer that is wrong")
    parser.add_argument("--folders", type=Path, help="the adapters to add, where there are some")
    parser.add_argument("--json", action="store_true", help="one JSON line for every row")
    chosen = parser.parse_args()
    if unknown := set(chosen.commands) - set(names):
        parser.error(f"no such command: {', '.join(sorted(unknown))}")
    rows: list[Row] = []
    began = time.monotonic()
    # In memory where the system has that: thousands of fsyncs on a disk would take minutes.
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="adapterhub-crash-", dir=memory if memory.is_dir() else None
    ) as folder:
        place = Place(Path(folder).resolve())
        ground = make_ground(place, chosen.folders)
        for command in COMMANDS:
            if chosen.commands and command.name not in chosen.commands:
                continue
            sweep = Sweep(
                command,
                ground,
                place,
                WRONG[chosen.wrong] if chosen.wrong else lambda: None,
            )
            events, lines = (None, None) if chosen.all else (chosen.events, chosen.lines)
            for row in sweep.run(chosen.mode or MODES, events, lines):
                rows.append(row)
                say(json.dumps(asdict(row)) if chosen.json else line(row))
    if not chosen.json:
        say(summary(rows, time.monotonic() - began))
    return 1 if any(row.violations for row in rows) else 0


def line(row: Row) -> str:
    """A row for people, with the first things that were wrong."""
    text = f"{row.command:24} {row.mode:18} {row.events:5} events {row.lines:6} lines {row.states:5} states "
    text += f"{len(row.violations):4} violations {row.seconds:7.1f} s"
    more = len(row.violations) - SHOWN
    shown = row.violations[:SHOWN] + ([f"... and {more} more"] if more > 0 else [])
    return "\n".join([text, *(f"    {violation}" for violation in shown)])


def summary(rows: list[Row], seconds: float) -> str:
    """All rows in a line."""
    points, wrong = sum(row.points for row in rows), sum(len(row.violations) for row in rows)
    return f"{points} points, {wrong} violations, {seconds:.0f} s"


def say(text: str) -> None:
    """A line to stdout; a buffer would be inherited, and written again, by every child."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
