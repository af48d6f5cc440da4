"""The terminal UI in a real browser: drawn, typed into, and nothing fetched from anywhere else."""

from __future__ import annotations

import asyncio
import os
import subprocess
from io import BytesIO
from pathlib import Path

import pytest

from tests.support.chromium import PROGRAM, Page, chromium
from tests.tui.test_web import command

__all__ = ["command"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no chromium on this machine (Debian: chromium)"),
]

# xterm.js draws on canvases: the text is in its buffer, which the page keeps to itself. So the test reads what came over
# the socket, and looks at the picture.
_LISTEN = """
window.heard = "";
const Plain = WebSocket;
window.WebSocket = class extends Plain {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", (event) => {
      if (typeof event.data !== "string") window.heard += new TextDecoder().decode(event.data);
    });
  }
};
"""


def colours(picture: bytes) -> int:
    """Of how many colours a picture is."""
    image = pytest.importorskip("PIL.Image").open(BytesIO(picture)).convert("RGB")
    return len(image.getcolors(1 << 24) or [])


async def test_a_person_with_the_address_sees_the_library_and_types(
    command: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    _, address = command
    async with chromium(tmp_path / "profile") as page:
        await page.do("Page.addScriptToEvaluateOnNewDocument", source=_LISTEN)
        await page.open(address)
        await page.until("window.heard.includes('legal/terms')")
        await page.until("document.querySelector('.xterm-screen canvas') !== null")
        assert await page.evaluate("location.search") == "", "the token has left the address"
        await page.press("?")
        await page.until("window.heard.includes('esc closes')")
        await asyncio.sleep(1)  # what was heard is drawn with the next frames
        picture = await page.picture()
        keep(picture)
        assert colours(picture) > 20, "text is drawn, with smooth edges, in several colours"
        nothing_from_elsewhere(page, address)


async def test_a_person_without_it_sees_nothing(
    command: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    _, address = command
    async with chromium(tmp_path / "profile") as page:
        await page.open(address.partition("?")[0])
        await page.until("document.body.innerText.includes('Open the address')")
        assert not await page.evaluate("document.querySelector('#terminal') !== null")


def nothing_from_elsewhere(page: Page, address: str) -> None:
    home = address.partition("?")[0]
    away = [url for url in page.requested if not url.startswith((home, home.replace("http", "ws"), "data:"))]  # fmt: skip
    assert not away
    assert not page.logged, "no script failed, and the policy forbade nothing that is needed"


def keep(picture: bytes) -> None:
    """Where a person wants to look at it."""
    if where := os.environ.get("ADAPTERHUB_PICTURES"):
        (Path(where) / "web.png").write_bytes(picture)
