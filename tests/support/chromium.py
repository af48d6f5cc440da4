"""A headless Chromium, driven over its own debugging socket: open a page, type, look at what is drawn."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
_SECONDS = 60.0


class Page:
    """The browser's one page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.requested: list[str] = []
        """Addresses that the page asked for."""
        self.logged: list[str] = []
        """What it complained of."""

    async def do(self, method: str, **parameters: object) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        number = next(self._ids)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json(timeout=_SECONDS)
            if message.get("id") == number:
                assert "error" not in message, message
                found: dict[str, Any] = message["result"]
                return found
            self._hear(message)

    def _hear(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Network.requestWillBeSent":
            self.requested.append(parameters["request"]["url"])
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.logged.append(parameters["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.logged.append(str(parameters["exceptionDetails"]))

    async def open(self, address: str) -> None:
        """Leads the page there."""
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.do(f"{domain}.enable")
        await self.do("Page.navigate", url=address)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = await self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, expression: str) -> None:
        """Waits until the expression is true."""
        async with asyncio.timeout(_SECONDS):
            while not await self.evaluate(expression):  # noqa: ASYNC110 - a page sets no event
                await asyncio.sleep(0.2)

    async def press(self, key: str) -> None:
        """Types a character."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" else {}
            await self.do("Input.dispatchKeyEvent", type=kind, key=key, **text)

    async def picture(self) -> bytes:
        """What is drawn, as PNG."""
        return base64.b64decode((await self.do("Page.captureScreenshot"))["data"])


@asynccontextmanager
async def chromium(profile: Path, width: int = 1200, height: int = 700) -> AsyncIterator[Page]:
    """A browser with a profile of its own (made by it), and its page; ended with the block."""
    assert PROGRAM is not None
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        "--headless",
        "--no-sandbox",  # in a container nobody may make another
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        f"--window-size={width},{height}",
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        "about:blank",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "HOME": str(profile)},
        start_new_session=True,
    )
    try:
        port = await _port(profile)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json") as answer:
                pages = [one for one in await answer.json() if one["type"] == "page"]
            async with session.ws_connect(
                pages[0]["webSocketDebuggerUrl"], max_msg_size=0
            ) as socket:
                yield Page(socket)
    finally:
        process.terminate()
        await process.wait()


async def _port(profile: Path) -> int:
    file = profile / "DevToolsActivePort"
    async with asyncio.timeout(_SECONDS):
        while not (file.exists() and file.read_text().strip()):  # noqa: ASYNC110 - nor does a file
            await asyncio.sleep(0.1)
    return int(file.read_text().split()[0])
