"""Which versions the engine holds right now: loaded on first use, the least recently used put out, never one in use.

Loading is shared: requests that ask for one version at the same time wait for one load, and a client that goes away
doesn't stop it for the others. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from adapterhub.errors import AdapterHubError
from adapterhub.serve.door.refusal import Refused, busy
from adapterhub.serve.naming import engine_name
from adapterhub.words import short

WAIT_SECONDS = 60.0
"""How long a request waits for room when every adapter the engine can hold is in use."""


class Engine(Protocol):
    """What loads adapters."""

    async def load(self, name: str, folder: Path) -> None:
        """Makes the adapter in `folder` answer to `name`, which it may know already. Raises EngineError."""

    async def unload(self, name: str) -> None:
        """Forgets `name`; never fails: one it doesn't know is fine, and one it keeps is only memory."""


class EngineError(Exception):
    """The engine refused; the text is its own."""


class EngineAwayError(EngineError):
    """The engine can't be reached: it starts, or starts again."""


class Watcher(Protocol):
    """Who wants to know what is loaded; the door's metrics."""

    def loaded(self, digest: str, seconds: float) -> None:
        """It was loaded, which took `seconds`."""

    def evicted(self, digest: str) -> None:
        """It was put out to make room, or taken away."""


@dataclass
class Held:
    """One version: how many requests use it, when it was last asked for (monotonic seconds), whether it must stay."""

    digest: str
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    pinned: bool = False
    loading: asyncio.Task[None] | None = None
    instead_of: str | None = None
    """The version whose place it took; the engine forgets that one before it loads this one."""

    @property
    def ready(self) -> bool:
        """Whether the engine has it."""
        return self.loading is not None and self.loading.done()

    @property
    def idle(self) -> bool:
        """Whether it may be put out."""
        return not self.users and not self.pinned and (self.loading is None or self.loading.done())


class Pool:
    """At most `capacity` versions in the engine.

    `folder` finds a version's immutable folder (it is called in a thread, for the folder may have to be made first);
    `base` is the engine's name for the base, or for the adapter of zeros that stands for it.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Callable[[str], Path],
        capacity: int,
        base: str,
        watcher: Watcher,
    ) -> None:
        self._engine = engine
        self._folder = folder
        self.capacity = capacity
        self.base = base
        self._watcher = watcher
        self._held: dict[str, Held] = {}
        self._changed = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    @property
    def held(self) -> list[Held]:
        """What is loaded or being loaded, the most recently used last."""
        return sorted(self._held.values(), key=lambda held: held.used)

    @asynccontextmanager
    async def using(self, digest: str | None) -> AsyncIterator[str]:
        """The engine's name for a version (None: the base), which stays loaded while the block runs.

        Raises:
            Refused: the engine won't load it (502), or all that it can hold stays in use for too long (503).
        """
        if digest is None:
            yield self.base
            return
        held = await self._taken(digest)
        try:
            yield engine_name(digest)
        finally:
            self._let_go(held)

    async def load(self, digest: str) -> None:
        """Loads a version ahead of its first request. Raises Refused, as `using`."""
        async with self.using(digest):
            pass

    async def pin(self, digest: str) -> None:
        """Loads a version and keeps it from being put out. Raises Refused, as `using`."""
        async with self.using(digest):
            self._held[digest].pinned = True

    def unpin(self, digest: str) -> None:
        """It may be put out again."""
        if (held := self._held.get(digest)) is not None:
            held.pinned = False
            self._tell_waiting()

    def forget(self, digest: str) -> None:
        """The engine says that it doesn't know this version after all: the next use loads it again."""
        if (held := self._held.get(digest)) is not None and held.ready:
            held.loading = None

    async def drop(self, digest: str) -> None:
        """Takes a version out as soon as nobody uses it."""
        while (held := self._held.get(digest)) is not None:
            if held.users or (held.loading is not None and not held.ready):
                await self._changed.wait()
                continue
            del self._held[digest]
            self._watcher.evicted(digest)
            async with self._one_at_a_time:
                await self._engine.unload(engine_name(digest))
            self._tell_waiting()

    def reset(self) -> None:
        """The engine was started anew and holds nothing. Pins and users stay."""
        for held in list(self._held.values()):
            held.loading = None
            if not held.users and not held.pinned:
                del self._held[held.digest]
        self._tell_waiting()

    async def _taken(self, digest: str) -> Held:
        """The version, loaded, and counted as used by one more."""
        held = self._held.get(digest) or await self._place_for(digest)
        held.users += 1
        held.used = time.monotonic()
        try:
            if held.loading is None:
                held.loading = asyncio.create_task(self._load(held))
                held.loading.add_done_callback(_heard)
            await asyncio.shield(held.loading)
        except BaseException:
            self._let_go(held)
            raise
        return held

    def _let_go(self, held: Held) -> None:
        held.users -= 1
        held.used = time.monotonic()
        self._tell_waiting()

    async def _place_for(self, digest: str) -> Held:
        """A place for a version, which another had to leave for where all were taken."""
        deadline = time.monotonic() + WAIT_SECONDS
        while digest not in self._held:
            if len(self._held) < self.capacity:
                self._held[digest] = Held(digest)
            elif (idle := next((held for held in self.held if held.idle), None)) is not None:
                del self._held[idle.digest]
                self._watcher.evicted(idle.digest)
                self._held[digest] = Held(digest, instead_of=idle.digest)
            else:
                await self._wait_until(deadline)
        return self._held[digest]

    async def _wait_until(self, deadline: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                await self._changed.wait()
        except TimeoutError:
            raise busy(
                f"All {self.capacity} adapters that fit are in use, and none became free in {WAIT_SECONDS:g} seconds.",
                code="no_place_for_adapter",
            ) from None

    async def _load(self, held: Held) -> None:
        """The work of one load; every request that waits for it gets its error.

        Loads take turns in the order they were asked for, so a version that is put out and asked for again at once is
        forgotten before it is loaded.
        """
        started = time.monotonic()
        try:
            async with self._one_at_a_time:
                if held.instead_of is not None:
                    await self._engine.unload(engine_name(held.instead_of))
                    held.instead_of = None
                folder = await asyncio.to_thread(self._folder, held.digest)
                await self._engine.load(engine_name(held.digest), folder)
        except BaseException as error:
            if held.loading is asyncio.current_task():  # else the engine was started anew meanwhile
                held.loading = None
                if self._held.get(held.digest) is held and not held.pinned:
                    del self._held[held.digest]
            self._tell_waiting()
            if isinstance(error, EngineAwayError):
                raise busy("The engine is starting.", code="engine_starting") from error
            if isinstance(error, EngineError | AdapterHubError | OSError):
                what = f"Version {short(held.digest)} can't be loaded: {_in_short(error)}"
                raise Refused(502, what, kind="engine_error", code="adapter_refused") from error
            raise
        self._watcher.loaded(held.digest, time.monotonic() - started)
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        """Wakes everyone who waits for a change; each looks again."""
        self._changed.set()
        self._changed = asyncio.Event()


def _in_short(error: Exception) -> str:
    """What a client may know: no path of this machine."""
    if isinstance(error, AdapterHubError):
        return error.what
    return error.strerror or "it can't be read" if isinstance(error, OSError) else str(error)


def _heard(task: asyncio.Task[None]) -> None:
    """Every request may have gone away before the load failed: its error is nobody's then."""
    if not task.cancelled():
        task.exception()
