"""How fast the library shows 10,000 adapters: `make bench-tui`. No test: nothing here passes or fails.

From the start of the process, imports and all, to the first paint of the list; then what a key costs until the screen is
drawn again. Processor time is that of the thread that draws, which other work on the machine doesn't lengthen.
The catalogue is warm, as it is on every day but the first; what a cold one costs is told too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE = (140, 45)
QUERY = "adapter-77 rank:>=16"
TIMES = 5
PACE_SECONDS = 0.1
"""Between two keys, as somebody types."""
SPELLED = {"space": " ", "colon": ":", "greater_than_sign": ">", "equals_sign": "=", "minus": "-"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--count", type=int, default=10_000, help="adapters in the store")
    options.add_argument(
        "--once", type=float, help="(for the program itself: when the process was started)"
    )
    options.add_argument("--home", type=Path, help="a store that is there already")
    given = options.parse_args()
    if given.once is not None:
        asyncio.run(start(given.home, given.once))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADAPTERHUB_CACHE"] = str(Path(folder) / "cache")
        home = given.home or Path(folder) / "home"
        if given.home is None:
            from tests.bench.bench_store import write_store

            write_store(home, given.count)
        print(f"start, cold catalogue   {once(home):7.2f} s")
        warm = [once(home) for _ in range(TIMES)]
        print(
            f"start, warm catalogue   {statistics.median(warm):7.2f} s   ({min(warm):.2f} to {max(warm):.2f})"
        )
        asyncio.run(keys(home))


def once(home: Path) -> float:
    """Seconds from the start of a process to the first paint."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_tui",
        "--home",
        str(home),
        "--once",
        repr(time.time()),
    ]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


async def start(home: Path, began: float) -> None:
    """Opens the application, and tells when the list was there."""
    from adapterhub.store import Store
    from adapterhub.tui.app import AdapterHubApp
    from adapterhub.tui.screens.library import LibraryScreen

    app = AdapterHubApp(Store.open(home))
    async with app.run_test(size=SIZE):
        while not (isinstance(app.screen, LibraryScreen) and app.screen.state.rows):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        painted = asyncio.Event()
        app.screen.call_after_refresh(painted.set)
        await painted.wait()
        print(time.time() - began)


async def keys(home: Path) -> None:
    """What keys cost, from the press until the list is drawn again."""
    from textual.events import Key

    from adapterhub.store import Store
    from adapterhub.tui.app import AdapterHubApp
    from adapterhub.tui.screens.library import LibraryScreen
    from adapterhub.tui.widgets.adapter_table import AdapterTable

    app = AdapterHubApp(Store.open(home))
    async with app.run_test(size=SIZE) as pilot:
        while not (isinstance(app.screen, LibraryScreen) and app.screen.state.rows):
            await pilot.pause(0.02)
        screen = app.screen
        print(f"{len(screen.state.rows)} adapters at {SIZE[0]}x{SIZE[1]}")

        async def felt(name: str) -> tuple[float, float]:
            """Milliseconds of one key: by the clock, and of the processor in the thread that draws."""
            before, painted = screen.state, asyncio.Event()
            began, busy = time.perf_counter(), time.thread_time()
            app.post_message(Key(name, SPELLED.get(name, name if len(name) == 1 else None)))
            while screen.state is before and time.perf_counter() - began < 5:  # noqa: ASYNC110
                await asyncio.sleep(0)
            screen.query_one(AdapterTable).call_after_refresh(painted.set)
            await painted.wait()
            return (time.perf_counter() - began) * 1000, (time.thread_time() - busy) * 1000

        async def pressed(what: str, names: list[str]) -> None:
            found = []
            for name in names:
                found.append(await felt(name))
                await asyncio.sleep(PACE_SECONDS)
            wall, busy = zip(*found, strict=True)
            print(
                f"{what:22} {statistics.median(wall):7.1f} ms a key, at most {max(wall):.1f}"
                f"   (processor {statistics.median(busy):.1f}, at most {max(busy):.1f})"
            )

        await pilot.pause(2)
        await pilot.press("slash")
        keys_of = {character: key for key, character in SPELLED.items()}
        letters = [keys_of.get(one, one) for one in QUERY]
        await pressed("typing a filter", letters)
        await pressed("taking it back", ["backspace"] * len(letters))
        await pilot.press("enter")
        await pressed("moving", ["j"] * 20 + ["k"] * 20)
        await pressed("pages", ["pagedown"] * 10)
        await pressed("marking", ["space"] * 10)
        await pressed("sorting", ["s"] * 9)


if __name__ == "__main__":
    main()
