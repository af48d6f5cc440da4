"""One server from its start to its end: engine, door and control socket, in one event loop.

The door is there from the beginning and says "not yet" (503) until the engine runs, the adapters are loaded and, unless told
otherwise, each has been shown to answer as it was trained.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette

from adapterhub.errors import ExternalToolError
from adapterhub.runs import Run
from adapterhub.serve.client import SERVER_FILE
from adapterhub.serve.control import Control, Traffic, control_app
from adapterhub.serve.door.app import DoorSettings, door, drain
from adapterhub.serve.door.engine import VllmEngine
from adapterhub.serve.door.inlet import MOST_CONNECTIONS, BoundedProtocol, allow_many_connections
from adapterhub.serve.door.keys import Keys
from adapterhub.serve.door.metrics import Metrics
from adapterhub.serve.door.pool import EngineError, Pool
from adapterhub.serve.door.refusal import Refused
from adapterhub.serve.door.table import Table, Target
from adapterhub.serve.door.wire import Wire
from adapterhub.serve.invocation import ENGINE_SOCKET, Invocation
from adapterhub.serve.place import Place
from adapterhub.serve.plan import Plan
from adapterhub.serve.supervise import Patience, Supervisor
from adapterhub.serve.vllm import Protection
from adapterhub.serve.zero import zero_adapter
from adapterhub.store import Store

ZEROS = "base-through-zeros"
"""The engine's name for the adapter of zeros that stands for the base."""


@dataclass(frozen=True)
class Setup:
    """What a session is made of. `folder` is private and short of path: the sockets are in it."""

    store: Store
    plan: Plan
    invocation: Invocation
    run: Run
    folder: Path
    listener: socket.socket
    protection: Protection
    keys: Path | None = None
    pinned: tuple[str, ...] = ()
    settings: DoorSettings = field(default_factory=DoorSettings)
    patience: Patience = field(default_factory=Patience)
    ready_timeout: float = 600.0

    @property
    def engine_socket(self) -> Path:
        """Where vLLM listens."""
        return self.folder / ENGINE_SOCKET

    @property
    def control_socket(self) -> Path:
        """Where the owner's commands are heard."""
        return self.folder / "control.sock"


@dataclass(frozen=True)
class Said:
    """What the session tells its caller. `starting` gets seconds and the log's last line."""

    starting: Callable[[float, str], None]
    loading: Callable[[str], None]
    checked: Callable[[httpx.AsyncClient], Any]
    """Called with a client of the control socket's routes before the door opens; its errors end the session."""
    ready: Callable[[float], None]
    note: Callable[[str], None]


class Session:
    """One server. `serve` returns when it was told to stop, and raises when the engine can't be kept up."""

    def __init__(self, setup: Setup, said: Said) -> None:
        self._setup = setup
        self._said = said
        self._place = Place("http://vllm", setup.engine_socket)
        self._supervisor = Supervisor(
            setup.invocation,
            self._place,
            setup.run,
            ready_timeout=setup.ready_timeout,
            patience=setup.patience,
        )
        self._upstream = httpx.AsyncClient(
            base_url="http://vllm",
            transport=Wire(setup.engine_socket),
            trust_env=False,
        )
        self._engine = VllmEngine(self._upstream)
        self._metrics = Metrics()
        self._own_metrics = Metrics()
        plan = setup.plan
        self._pool = Pool(
            self._engine,
            setup.store.view,
            plan.loaded,
            ZEROS if setup.protection == "zeros" else plan.base_name,
            self._metrics,
        )
        self._table = Table(plan.base_name)
        for adapter in plan.adapters:
            self._table.set(adapter.label, [Target(adapter.digest)])
        self._apps: list[Starlette] = []
        self._were_loaded: list[str] = []
        self._state = "starting"

    async def serve(self) -> None:
        """Serves until a signal says stop; a second one skips the wait for running answers.

        Raises:
            ExternalToolError: the engine didn't start, would not load an adapter, or died too often.
        """
        setup = self._setup
        allow_many_connections()
        with _stopping() as stop, ExitStack() as leases:
            control = Control(
                self.state,
                setup.store,
                setup.plan,
                self._table,
                self._pool,
                self._supervisor,
                setup.run,
                leases,
                Traffic(self._metrics, self._own_metrics, setup.protection, setup.keys is not None),
            )
            public = self._door(Keys.load(setup.keys, self._said.note), self._metrics)
            inner = self._door(Keys.load(None), self._own_metrics)
            own = control_app(control, inner)
            self._apps = [public, inner]
            public.state.down = True  # answers 503 until all is shown to be well
            servers = {
                _server(public): setup.listener,
                _server(own): _unix_listener(setup.control_socket),
            }
            running = [
                asyncio.create_task(server.serve(sockets=[listener]))
                for server, listener in servers.items()
            ]
            said = setup.run.path / SERVER_FILE
            where = {"url": setup.plan.url, "control": str(setup.control_socket)}
            _write_private(said, {"pid": os.getpid(), **where})
            work = asyncio.create_task(self._work(own))
            stopped = asyncio.create_task(stop.first.wait())
            try:
                await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if work.done():
                    work.result()  # it only ends with an error
            finally:
                self._state = "stopping"
                at_once = work.done() or public.state.down
                work.cancel()
                stopped.cancel()
                await asyncio.gather(work, stopped, return_exceptions=True)
                if not at_once:
                    self._said.note(
                        "Letting running answers finish. Ctrl-C again ends them at once."
                    )
                await self._close(list(servers), running, stop, at_once=at_once)
                await self._supervisor.stop()
                await self._upstream.aclose()
                said.unlink()

    def state(self) -> str:
        """What it is doing, in a word."""
        return self._state

    async def _work(self, own: Starlette) -> None:
        """Starts the engine, fills it, opens the door and keeps the engine up. Ends only with an error."""
        setup = self._setup
        seconds = await self._supervisor.start(self._said.starting)
        await self._fill()
        self._state = "verifying"
        await self._check(own)
        self._open(True)
        names = [model.name for model in self._table.models()]
        setup.run.event("open", url=setup.plan.url, names=names)
        self._said.ready(seconds)
        raise await self._supervisor.watch(self._lost, self._again)

    async def _fill(self) -> None:
        """Loads the adapter of zeros, the pinned, and as many others as there is room for."""
        await self._load_zeros()
        plan, problems = self._setup.plan, []
        pinned = {a.digest for a in plan.adapters if set(a.names) & set(self._setup.pinned)}
        for adapter in sorted(plan.adapters, key=lambda a: a.digest not in pinned)[: plan.loaded]:
            self._said.loading(adapter.label)
            try:
                if adapter.digest in pinned:
                    await self._pool.pin(adapter.digest)
                else:
                    await self._pool.load(adapter.digest)
            except Refused as refused:
                problems.append(f"{adapter.label}: {refused.message}")
        if problems:
            raise ExternalToolError(
                f"vLLM would not load {len(problems)} of {len(plan.adapters)} adapters.",
                why="\n  ".join(problems),
                hint=f"The whole log: {self._supervisor.log}",
            )

    async def _load_zeros(self) -> None:
        if self._setup.protection != "zeros":
            return
        folder = await asyncio.to_thread(
            zero_adapter, self._setup.plan.base, self._setup.folder / ZEROS
        )
        try:
            await self._engine.load(ZEROS, folder)
        except EngineError as error:
            raise ExternalToolError(
                "vLLM would not load the adapter of zeros that keeps the base's answers apart from the adapters'.",
                why=str(error),
                hint="Install adapterhub beside vLLM, so that its plugin does it; or serve with --direct.",
            ) from error

    async def _check(self, own: Starlette) -> None:
        transport = httpx.ASGITransport(own)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            await self._said.checked(client)

    def _door(self, keys: Keys, metrics: Metrics) -> Starlette:
        return door(self._table, self._pool, self._upstream, keys, metrics, self._setup.settings)

    def _lost(self) -> None:
        """The engine is dead: nothing is loaded any more, and who comes now is asked to come again."""
        self._were_loaded = [held.digest for held in self._pool.held]
        self._pool.reset()
        self._open(False)
        self._said.note("vLLM died. Starting it again.")

    async def _again(self) -> None:
        """The engine is back."""
        await self._load_zeros()
        for digest in self._were_loaded:
            with suppress(Refused):  # who asks for it is told
                await self._pool.load(digest)
        self._open(True)
        self._said.note("vLLM serves again.")

    def _open(self, is_open: bool) -> None:
        self._state = "serving" if is_open else "restarting"
        for app in self._apps:
            app.state.down = not is_open

    async def _close(
        self,
        servers: Sequence[uvicorn.Server],
        running: Sequence[asyncio.Task[None]],
        stop: _Stop,
        *,
        at_once: bool,
    ) -> None:
        """Takes no new request, waits for those under way, and closes the sockets."""
        second = asyncio.create_task(stop.second.wait())
        drained = asyncio.create_task(self._drain())
        if not at_once:
            await asyncio.wait({drained, second}, return_when=asyncio.FIRST_COMPLETED)
        for server in servers:
            server.should_exit = True
            server.force_exit = not drained.done()
        drained.cancel()
        second.cancel()
        await asyncio.gather(drained, second, *running, return_exceptions=True)

    async def _drain(self) -> None:
        await asyncio.gather(*map(drain, self._apps))


@dataclass
class _Stop:
    """Set by the first and the second signal to stop."""

    first: asyncio.Event = field(default_factory=asyncio.Event)
    second: asyncio.Event = field(default_factory=asyncio.Event)

    def signal(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@contextmanager
def _stopping() -> Iterator[_Stop]:
    """Ctrl-C, SIGTERM and a closed terminal as events, for as long as the block runs."""
    loop, stop = asyncio.get_running_loop(), _Stop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        loop.add_signal_handler(number, stop.signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


class _Quiet(uvicorn.Server):
    """Leaves signals to the session."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Takes none."""
        yield


def _server(app: Starlette) -> uvicorn.Server:
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # stderr is ours
    return _Quiet(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http=BoundedProtocol,
            limit_concurrency=MOST_CONNECTIONS,
            proxy_headers=False,
            timeout_graceful_shutdown=2,  # for what is written already; answers have been waited for
            server_header=False,
        )
    )


def _unix_listener(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o600)
    return listener


def _write_private(path: Path, document: dict[str, Any]) -> None:
    """Written whole and readable by its owner alone."""
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(document))
    draft.chmod(0o600)
    draft.replace(path)
