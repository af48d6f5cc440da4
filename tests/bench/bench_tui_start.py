"""From start to first paint: the terminal UI on a store of 1,000 names, beside a bare Textual application with one table.

    python -m tests.bench.bench_tui_start [--rounds 9] [--names 1000]

Each start is a process of its own, in turns, so that whatever else the machine does hits both alike. Said are medians of wall
and processor time until the first screen with something on it has been drawn, and their ratio. The bar is 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.support.sample import write_adapter

_MEASURE = """
import json, os, sys, time


def run(app, ready):
    '''Runs without a terminal until what `ready` asks for is drawn.'''
    import asyncio
    async def start():
        async with app.run_test(size=(120, 40)) as pilot:
            while not ready():
                await asyncio.sleep(0.001)
            return time.time(), sum(os.times()[:2])
    ended, cpu = asyncio.run(start())
    print(json.dumps({"wall": ended - float(sys.argv[1]), "cpu": cpu}))
    sys.stdout.flush()
    os._exit(0)
"""
_BARE = """
from textual.app import App
from textual.widgets import DataTable
class Bare(App):
    def compose(self):
        yield DataTable()
    def on_mount(self):
        table = self.query_one(DataTable)
        table.add_columns("name", "base", "rank")
        for number in range(1000):
            table.add_row(f"name{number}", "base", "16")
app = Bare()
run(app, lambda: app.screen.is_mounted and any("name0" in strip.text for strip in app.screen._compositor.render_strips()))
"""
_OURS = """
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.hub import Hub
from adapterhub.tui.personal import read_choices
hub = Hub.of(Store.open())
app = AdapterHubApp(hub, read_choices(hub))
run(app, lambda: app.screen.is_mounted and any(WANTED in strip.text for strip in app.screen._compositor.render_strips()))
"""


def main() -> None:
    """Measures in turns and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--names", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "ADAPTERHUB_HOME": f"{folder}/home",
            "ADAPTERHUB_CACHE": f"{folder}/cache",
        }
        fill(Path(folder), options.names)
        programs = {
            "bare Textual with a table": _BARE,
            "the frame": _OURS.replace("WANTED", '"Library"'),
            "the adapters": _OURS.replace("WANTED", '"m/0000"'),
        }
        once = {name: start(program, environment) for name, program in programs.items()}  # warms up
        found: dict[str, list[dict[str, float]]] = {name: [] for name in once}
        for _ in range(options.rounds):
            for name, program in programs.items():
                found[name].append(start(program, environment))
    bare = found["bare Textual with a table"]
    print(f"{'until there is':<28}{'wall':>9}{'cpu':>9}{'wall ratio':>12}{'cpu ratio':>11}")
    for name, rounds in found.items():
        wall, cpu = (statistics.median(one[key] for one in rounds) for key in ("wall", "cpu"))
        ratios = (
            value / statistics.median(one[key] for one in bare)
            for value, key in ((wall, "wall"), (cpu, "cpu"))
        )
        shown = "".join(f"{ratio:>11.2f}x" for ratio in ratios)
        print(f"{name:<28}{wall:>8.3f}s{cpu:>8.3f}s{shown}")


def fill(folder: Path, names: int) -> None:
    """A store of so many names for one adapter."""
    store = Store.open(folder / "home")
    added = store.add_folder(write_adapter(folder / "one", base="org/base"), name="m/0000")
    found = store.resolve(f"@{added.digest.partition(':')[2][:16]}")
    for number in range(1, names):
        store.tag(found, parse_name(f"m/{number:04}"))


def start(program: str, environment: dict[str, str]) -> dict[str, float]:
    """Seconds of one start, as its process tells."""
    import time

    done = subprocess.run(
        [sys.executable, "-c", _MEASURE + program, str(time.time())],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    measured: dict[str, float] = json.loads(done.stdout)
    return measured


if __name__ == "__main__":
    main()
