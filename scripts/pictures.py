"""Writes the two pictures of README, the library and the merge form, on a store of examples: always the same bytes.

make pictures
"""

import asyncio
import runpy
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from adapterhub.store import Store  # noqa: E402
from tests.support.sample import DAY, NOON, fill, set_added  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SIZE = (132, 36)
CLOCKS = ("adapterhub.store.attestations.now", "adapterhub.store.journal.now")


def main() -> None:
    """Fills a store, stops the clocks, and draws."""
    draw = runpy.run_path(str(ROOT / "scripts" / "screenshot.py"))["draw"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for clock in CLOCKS:
            stack.enter_context(patch(clock, lambda *_: "2026-01-01T12:00:00+00:00"))
        stack.enter_context(patch("adapterhub.tui.library.reading.now", lambda: NOON + 20.0 * DAY))
        store = Store.open(folder / "home")
        fill(store, folder)
        for place, (name, _) in enumerate(store.refs.all()):
            set_added(store, str(name), NOON + place * DAY)
        for picture, merge in (("library", ()), ("merge", ("support/tone", "legal/terms"))):
            path = IMAGES / f"{picture}.svg"
            path.write_text(asyncio.run(draw(store, SIZE, 0, merge=merge)), encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
