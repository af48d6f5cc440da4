"""A browser's window: a process of its own, what the page may tell it, and its end, which comes whatever it does."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiohttp import web
from textual_serve.app_service import AppService
from textual_serve.download_manager import DownloadManager

MOST_COLUMNS, MOST_ROWS = 500, 200
"""What an application draws at most: its memory grows with both."""
_LEAVING_SECONDS = 1.0
_DRIVER = "adapterhub.tui.window_driver:WebDriver"


class Window(AppService):
    """`program` behind a websocket."""

    def __init__(
        self, program: Sequence[str], socket: web.WebSocketResponse, downloads: DownloadManager
    ) -> None:
        async def close() -> None:
            await socket.close()

        super().__init__(
            program[0],
            write_bytes=socket.send_bytes,
            write_str=socket.send_str,
            close=close,
            download_manager=downloads,
        )
        self._program = program

    @property
    def pid(self) -> int | None:
        """Of its process, once there is one."""
        return None if self._process is None else self._process.pid

    async def heed(self, message: str) -> object:
        """Does what the page says; returns what to answer, if anything. ValueError where it says nothing known."""
        match _read(message):
            case ["stdin", str(text)]:
                await self.send_bytes(text.encode())
            case ["resize", {"width": int(width), "height": int(height)}]:
                await self.set_terminal_size(width, height)
            case ["ping", token]:
                return ["pong", token]
            case ["blur", *_]:
                await self.blur()
            case ["focus", *_]:
                await self.focus()
            case _:
                raise ValueError("no message of the page")
        return None

    async def set_terminal_size(self, width: int, height: int) -> None:
        await super().set_terminal_size(*bounded(width, height))

    async def on_data(self, payload: bytes) -> None:
        """Draws. What nobody sees any more is dropped: an application that can't write couldn't leave either."""
        with suppress(ConnectionError, RuntimeError):
            await super().on_data(payload)

    async def stop(self) -> None:
        """Ends the process: it is asked to, then told, then killed."""
        process = self._process
        if process is None:
            return
        try:
            if not (await self._ask_to_leave() and await _left(process)):
                with suppress(ProcessLookupError):
                    process.terminate()
                await _left(process)
        finally:
            self.kill()

    async def _ask_to_leave(self) -> bool:
        """Whether it closes its stdout within a moment."""
        with suppress(TimeoutError, ConnectionError, RuntimeError):
            await asyncio.wait_for(super().stop(), _LEAVING_SECONDS)
            return True
        return False

    def kill(self) -> None:
        """Ends the process at once, if it still runs."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    def _build_environment(self, width: int = 80, height: int = 24) -> dict[str, str]:
        return {**super()._build_environment(width, height), "TEXTUAL_DRIVER": _DRIVER}

    async def _open_app_process(self, width: int = 80, height: int = 24) -> Process:
        """Starts the program itself, without a shell. Ctrl-C in the server's terminal is for the server."""
        self._process = await asyncio.create_subprocess_exec(
            *self._program,
            stdin=PIPE, stdout=PIPE, stderr=PIPE,
            env=self._build_environment(*bounded(width, height)),
            start_new_session=True,
        )  # fmt: skip
        self._stdin = self._process.stdin
        return self._process


def bounded(width: int, height: int) -> tuple[int, int]:
    """The size that is nearest to this and can be drawn."""
    return min(max(width, 1), MOST_COLUMNS), min(max(height, 1), MOST_ROWS)


def _read(message: str) -> Any:
    try:
        return json.loads(message)
    except RecursionError:
        raise ValueError("too deep") from None


async def _left(process: Process) -> bool:
    """Whether it ends within a moment."""
    with suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), _LEAVING_SECONDS)
    return process.returncode is not None
