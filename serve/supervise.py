"""Keeps one engine running: started, watched, started again with growing pauses when it dies, and given up in the end.

An engine that never becomes ready isn't tried twice: its arguments are wrong, and its log says how. One that has served
and dies is worth another start; one that dies again and again is not.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from adapterhub.errors import ExternalToolError
from adapterhub.runs import Run
from adapterhub.serve.invocation import Invocation
from adapterhub.serve.launch import Server, start, waiting
from adapterhub.serve.place import Place

POLL_SECONDS = 0.25
HEALTH_SECONDS = 2.0
"""Between two looks at /health. vLLM answers 503 there when its engine has died, before its own process ends."""

UNHEALTHY_SECONDS = 60.0
"""For how long /health may fail to answer in time before the engine is taken for dead: a long prompt can hold it up."""


@dataclass(frozen=True)
class Patience:
    """How often an engine is started again: at most `starts` times within `seconds`, after pauses that double from `pause`."""

    starts: int = 5
    seconds: float = 600.0
    pause: float = 1.0


class Supervisor:
    """One engine. `server` is its process while there is one; `restarts` counts those that followed the first."""

    def __init__(
        self,
        invocation: Invocation,
        place: Place,
        run: Run,
        *,
        ready_timeout: float,
        patience: Patience = Patience(),
    ) -> None:
        self._invocation = invocation
        self._place = place
        self._run = run
        self._ready_timeout = ready_timeout
        self._patience = patience
        self._starts: deque[float] = deque()
        self.log = run.path / "vllm.log"
        self.server: Server | None = None
        self.restarts = 0

    async def start(self, tell: Callable[[float, str], None] = lambda *_: None) -> float:
        """Starts the engine and waits until it is ready; returns the seconds it took.

        Raises:
            ExternalToolError: it ended, or wasn't ready in time.
        """
        if self._place.uds is not None:
            self._place.uds.unlink(missing_ok=True)  # of one that was killed
        began = time.monotonic()
        starting = asyncio.ensure_future(asyncio.to_thread(start, self._invocation, self.log))
        try:
            self.server = server = await asyncio.shield(starting)
        except asyncio.CancelledError:
            self.server = await starting  # so that `stop` has something to stop
            raise
        self._run.event("launched", pid=server.pid)
        steps = waiting(server, self._place, (), seconds=self._ready_timeout, tell=tell)
        while (pause := await asyncio.to_thread(next, steps, None)) is not None:  # noqa: ASYNC110 - another process
            await asyncio.sleep(pause)
        seconds = round(time.monotonic() - began, 1)
        self._run.event("ready", seconds=seconds)
        return seconds

    async def watch(
        self, lost: Callable[[], None], again: Callable[[], Awaitable[None]]
    ) -> ExternalToolError:
        """Returns when the engine is given up, with the reason. `lost` is called when it dies, `again` when it is back."""
        while True:
            error = await self._death()
            lost()
            await self.stop()
            self._run.event("engine_died", why=error.what)
            while True:
                pause = self._pause()
                if pause is None:
                    self._run.event("given_up", restarts=self.restarts)
                    return error
                await asyncio.sleep(pause)
                self.restarts += 1
                try:
                    await self.start()
                    await again()
                    break
                except ExternalToolError as failed:
                    error = failed
                    await self.stop()

    async def stop(self) -> None:
        """Ends the engine and all it started. Nothing happens where none runs."""
        server, self.server = self.server, None
        if server is not None:
            await asyncio.to_thread(server.stop)

    def _pause(self) -> float | None:
        """Seconds to wait before the next start; None where there were too many."""
        now = time.monotonic()
        while self._starts and now - self._starts[0] > self._patience.seconds:
            self._starts.popleft()
        if len(self._starts) >= self._patience.starts:
            return None
        self._starts.append(now)
        return float(self._patience.pause * 2 ** (len(self._starts) - 1))

    async def _death(self) -> ExternalToolError:
        """Waits until the engine is dead, and says how it died."""
        assert self.server is not None
        answered = asked = time.monotonic()
        while self.server.alive:
            await asyncio.sleep(POLL_SECONDS)
            if time.monotonic() - asked < HEALTH_SECONDS:
                continue
            status = await asyncio.to_thread(self._place.health)
            asked = time.monotonic()
            if status is not None and status < 500:
                answered = asked
            elif status is not None:
                return ExternalToolError(
                    f"vLLM's engine has died (/health: {status}).", why=f"The log: {self.log}"
                )
            elif asked - answered > UNHEALTHY_SECONDS:
                return ExternalToolError(
                    f"vLLM hasn't answered for {UNHEALTHY_SECONDS:g} seconds.",
                    why=f"The log: {self.log}",
                )
        return self.server.ended("while it served")
