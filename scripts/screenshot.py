"""Draws the terminal UI on a store and writes the picture for README: the same store gives the same bytes.

    python scripts/screenshot.py --home demo-work/home --select demo/ties

There is no terminal in it: Textual's pilot runs the real application, waits until the store is read, and exports SVG.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from textual.pilot import Pilot

from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.themes import DEFAULT

OUTPUT = Path(__file__).parents[1] / "docs" / "images" / "library.svg"


def main() -> None:
    """Reads the command line, writes the picture, says where."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, help="the store (default: $ADAPTERHUB_HOME)")
    parser.add_argument(
        "--output",
        type=Path,
        default=OUTPUT,
        help="the file to write (default: docs/images/library.svg)",
    )
    parser.add_argument("--size", default="132x36", help="columns x lines")
    parser.add_argument("--select", default="", metavar="NAME", help="the adapter to look at")
    options = parser.parse_args()
    columns, lines = map(int, options.size.split("x"))
    store = Store.open(options.home)
    names = sorted(map(str, store.refs.names()))
    if not names:
        sys.exit(f"screenshot: the store at {store.home} is empty; make one with: make demo")
    if options.select and options.select not in names:
        sys.exit(f"screenshot: there is no {options.select}; there are {', '.join(names)}")
    down = names.index(options.select) if options.select else 0
    picture = asyncio.run(draw(store, (columns, lines), down))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(picture, encoding="utf-8")
    print(options.output)


async def draw(store: Store, size: tuple[int, int], down: int, *, merge: Sequence[str] = ()) -> str:
    """The SVG of the application on `store` in a terminal of `size` (columns, lines).

    The cursor is `down` rows down in the library; or it is the merge form of the adapters `merge`.
    """
    os.environ.pop("NO_COLOR", None)
    app = AdapterHubApp(store)
    app.theme = DEFAULT  # whatever TEXTUAL_THEME says
    async with app.run_test(size=size) as pilot:
        await _settle(pilot)
        await pilot.press(*["down"] * down)
        await _settle(pilot)
        if merge:
            app.visit("merge", names=tuple(merge))
            await _settle(pilot)
        return app.export_screenshot(title="adapterhub")


async def _settle(pilot: Pilot[None]) -> None:
    for _ in range(
        4
    ):  # the list's answer asks for the details, and those wait for the cursor to stay
        await pilot.pause(0.4)
        await pilot.app.workers.wait_for_complete()
    await pilot.pause()


if __name__ == "__main__":
    main()
