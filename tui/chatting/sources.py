"""Who answers: a running server, or transformers in a process of its own. Everything here blocks and is for threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Lock
from typing import TYPE_CHECKING, Protocol

from adapterhub.store import Store
from adapterhub.tui.chatting.state import BASE, Options
from adapterhub.words import human_size

if TYPE_CHECKING:
    from adapterhub.evaluate.chat_process import ChatProcess
    from adapterhub.serve.questions import Speakers

Heard = Callable[[str], None]
Turns = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Finished:
    """How an answer ended: stop, length or halted; `tokens` where they were told."""

    ended: str
    seconds: float
    tokens: int | None


class Source(Protocol):
    """Somebody who can be asked."""

    together: bool
    """Whether several answer at the same time."""

    @property
    def about(self) -> str:
        """Who it is, and what that takes."""
        ...

    def answer(
        self, name: str, turns: Turns, options: Options, heard: Heard, halted: Event
    ) -> Finished:
        """Asks `name`; `heard` gets the pieces. Ends early once `halted` is set."""
        ...

    def halt(self) -> None:
        """The answers under way are not wanted any more."""

    def close(self) -> None:
        """Nobody asks any more: what it holds is let go."""


class ServerSource:
    """A running server, asked through its control socket."""

    together = True

    def __init__(self, speakers: Speakers) -> None:
        self.speakers = speakers

    @property
    def about(self) -> str:
        """Where it listens."""
        texts = (
            ""
            if self.speakers.converses
            else "; its base has no chat template: texts are continued"
        )
        return f"Through the server at {self.speakers.server.url}{texts}"

    def answer(
        self, name: str, turns: Turns, options: Options, heard: Heard, halted: Event
    ) -> Finished:
        """As `Source`."""
        from adapterhub.serve.questions import ask

        tokens: list[int] = []
        said = [{"role": role, "content": content} for role, content in turns]
        began = time.monotonic()
        pieces = ask(
            self.speakers.server, self.speakers.models[name], turns[-1][1],
            said if self.speakers.converses else [],
            max_tokens=options.max_tokens, temperature=options.temperature, used=tokens.append,
        )  # fmt: skip
        for piece in pieces:
            if halted.is_set():
                break
            heard(piece)
        used = tokens[-1] if tokens else None
        ended = "length" if used is not None and used >= options.max_tokens else "stop"
        return Finished("halted" if halted.is_set() else ended, time.monotonic() - began, used)

    def halt(self) -> None:
        """Nothing more: whoever reads stops reading, which ends the answer."""

    def close(self) -> None:
        """It holds nothing."""


class LocalSource:
    """transformers, with the base in memory once for everybody. It is started by the first question."""

    together = False

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        base: str | None,
        room: str,
        tell: Callable[[str], None],
    ) -> None:
        """`tell` is told what it does before it can answer."""
        self._store, self._names, self._base = store, names, base
        self._room, self._tell = room, tell
        self._process: ChatProcess | None = None
        self._lock = Lock()
        self._closed = False

    @property
    def started(self) -> bool:
        """Whether the base is loaded, or being loaded."""
        return self._process is not None

    @property
    def about(self) -> str:
        """What it takes, or has taken."""
        return self._room

    def answer(
        self, name: str, turns: Turns, options: Options, heard: Heard, halted: Event
    ) -> Finished:
        """As `Source`."""
        process = self._process or self._started()
        if halted.is_set():
            return Finished("halted", 0.0, 0)
        try:
            found = process.ask(
                name,
                turns,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                heard=heard,
            )
        finally:
            if not process.alive and self._process is process:  # the next question starts another
                self._process = None
                process.close()
        return Finished(found.ended, found.seconds, found.tokens)

    def halt(self) -> None:
        """After the token that is being made."""
        if self._process is not None:
            self._process.halt()

    def close(self) -> None:
        """Ends the process, loading or answering, and so frees its memory."""
        with self._lock:
            self._closed = True
            process, self._process = self._process, None
        if process is not None:
            process.close()

    def _started(self) -> ChatProcess:
        from adapterhub.errors import AdapterHubError, ConflictError
        from adapterhub.evaluate.chat_process import ChatProcess

        self._tell("Starting transformers …")
        with self._lock:
            if self._closed:
                raise ConflictError("Nobody asks any more.")
            self._process = process = ChatProcess(self._store, self._names, self._base)
        try:
            found = process.prepare()
            free = "" if found.free is None else f", {human_size(found.free)} are free"
            takes = f"{found.base} in {found.dtype}: {human_size(found.bytes)}{free}"
            self._tell(f"Loading {takes} …")
            process.load()
        except AdapterHubError:
            self._process = None
            process.close()
            raise
        texts = "" if found.converses else "; it has no chat template: texts are continued"
        self._room = f"Through transformers here, {takes}{texts}. It is let go when you leave."
        self._tell(self._room)
        return process


def find(
    store: Store,
    names: Sequence[str],
    tell: Callable[[str], None],
    *,
    here: bool,
    base: str | None = None,
) -> Source:
    """A server that serves everybody, else (or where `here` is wished for) transformers. Raises where a name isn't known."""
    from importlib.util import find_spec

    if not here and find_spec("httpx") is not None:
        from adapterhub.serve.questions import find_speakers

        speakers = find_speakers(store, names)
        if speakers is not None:
            return ServerSource(speakers)
    return LocalSource(store, names, base, _room(store, names, base), tell)


def _room(store: Store, names: Sequence[str], explicit: str | None) -> str:
    """What transformers would take, told before it takes it."""
    from adapterhub.evaluate.chat import weights_size
    from adapterhub.free_memory import free_on_host

    adapters = [store.resolve(name) for name in names if name != BASE]
    why = "No running server serves all of these. With the first question "
    if not adapters and explicit is None:
        return f"{why}it must be known which base: add an adapter, or name one with b in a column."
    base = store.bases.open(explicit) if explicit else store.base_for(adapters[0])
    whole, half = (human_size(weights_size(base, dtype)) for dtype in ("float32", "bfloat16"))
    free = free_on_host()
    told = "" if free is None else f"; {human_size(free)} are free"
    return f"{why}{base.label} is loaded here, once for all: {whole} in float32, {half} in 16 bits{told}."
