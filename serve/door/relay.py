"""An answer of the engine on its way to the client: as it comes, with the name that was asked for.

A chunk of a stream costs next to nothing: bytes in, bytes out. `"model":"<name>"` can be replaced as bytes, because a
quote inside a JSON string is always escaped, so those bytes are nowhere but in a field of that name. Only whole events
leave; the rest of one that was cut by the network waits for its end.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import msgspec
from starlette.types import Receive

_END = b"\n\n"
_DONE = b"data: [DONE]"
_NO_CHOICES = b'"choices":[]'
_ERROR = b'data: {"error"'


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a prompt, and of what was written."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class _Answer(msgspec.Struct):
    """What is read of an answer or a chunk."""

    choices: list[Any] | None = None
    usage: Usage | None = None


_decode = msgspec.json.Decoder(_Answer).decode


class Names:
    """The engine's name of a model in its answers, and the one that the client used."""

    def __init__(self, engine: str, asked: str) -> None:
        self._engine = engine.encode()
        self._asked = msgspec.json.encode(asked)[1:-1]
        self._field = b'"model":' + msgspec.json.encode(engine)
        self._instead = b'"model":' + msgspec.json.encode(asked)

    def in_answer(self, body: bytes) -> bytes:
        """The model fields of whole events or of a whole answer."""
        return body.replace(self._field, self._instead)

    def in_error(self, body: bytes) -> bytes:
        """Every mention: vLLM's errors name the model in the middle of a sentence."""
        return body.replace(self._engine, self._asked)

    def is_unknown(self, body: bytes) -> bool:
        """Whether a 404 is about the model, and not about the path."""
        return self._engine in body


class Events:
    """A stream of events, read in pieces of any size."""

    def __init__(self, names: Names, keep_usage: bool) -> None:
        self._names = names
        self._in_answer = names.in_answer
        self._keep_usage = keep_usage
        self._held = bytearray()
        self._last = b""
        self.usage: Usage | None = None
        self.failed = False
        """Whether one of the events is an error."""
        self.count = 0
        """Events so far, the one with the usage and [DONE] included."""

    def feed(self, chunk: bytes) -> bytes:
        """The events that end in this piece, as the client gets them; often none, or one."""
        if not self._held and chunk.endswith(_END):
            whole = chunk
        else:
            self._held += chunk
            end = self._held.rfind(_END, max(0, len(self._held) - len(chunk) - 1))
            if end < 0:
                return b""
            whole = bytes(self._held[: end + 2])
            del self._held[: end + 2]
        self._last = whole
        self.count += whole.count(_END)
        if _NO_CHOICES in whole:
            whole = self._without_usage(whole)
        if _ERROR in whole:
            self.failed = True
            return self._names.in_error(whole)
        return self._in_answer(whole)

    @property
    def complete(self) -> bool:
        """Whether the stream came to its proper end."""
        return not self._held and self._last.rstrip().endswith(_DONE)

    def _without_usage(self, whole: bytes) -> bytes:
        """Notes the token counts, and takes the event that carries them away where the client didn't ask for it."""
        kept = []
        for event in whole.split(_END):
            usage = _usage_chunk(event) if _NO_CHOICES in event else None
            if usage is not None:
                self.usage = usage
                if not self._keep_usage:
                    continue
            kept.append(event)
        return _END.join(kept)


def _usage_chunk(event: bytes) -> Usage | None:
    """The counts, where an event has them and no choices: the last one before [DONE]."""
    try:
        answer = _decode(event.strip().removeprefix(b"data:"))
    except ValueError:
        return None
    return answer.usage if answer.choices == [] else None


def usage_of(body: bytes) -> Usage | None:
    """The counts of an answer that came as a whole; None where it has none."""
    try:
        return _decode(body).usage
    except ValueError:
        return None


class Leash:
    """Ends the work of a request when its client goes away, or when nothing has moved for too long.

    The block raises TimeoutError then, and `gone` says whether it was the client. Nothing is done a chunk but to note
    the time in `moved`; `started` begins to watch it.
    """

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._timeout = asyncio.timeout(seconds)
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.Task[None] | None = None
        self._look: asyncio.TimerHandle | None = None
        self._between = 0.0
        self.gone = False
        self.moved = 0.0

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._watch = asyncio.create_task(self._wait_for_end())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._look is not None:
            self._look.cancel()
        if self._watch is not None:
            self._watch.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def started(self, between: float) -> None:
        """The first bytes are here: from now on there may be `between` seconds between two of them."""
        self._timeout.reschedule(None)
        self._between = between
        self.moved = self._loop.time()
        self._look = self._loop.call_later(between, self._check)

    def _check(self) -> None:
        left = self.moved + self._between - self._loop.time()
        if left > 0:
            self._look = self._loop.call_later(left, self._check)
        else:
            self._end()

    async def _wait_for_end(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        self._end()

    def _end(self) -> None:
        if not self._timeout.expired():
            self._timeout.reschedule(self._loop.time())
