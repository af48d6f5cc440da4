"""A server that speaks OpenAI's protocol: where it is, what it lists, and many questions in flight.

Every question is greedy and changes nothing over there, so one whose answer got lost may be asked again. The key stands
in the environment (`VLLM_API_KEY`, as for `serve`), is sent to the server that was named, and is never told to anybody.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from adapterhub.errors import RemoteError, UsageError

if TYPE_CHECKING:
    import httpx2

KEY = "VLLM_API_KEY"
"""The environment variable that holds the key."""
IN_FLIGHT = 16
"""Questions at once: enough to fill a batch, few enough to leave others their turn."""

_TRIES = 6
_CONNECT_SECONDS = 5.0
_SECONDS = 600.0
"""For an answer: loading an adapter from a cold disk may come before it."""
_LONGEST_PAUSE = 30.0
_MOST_BYTES = 2**24
_MOST_QUOTED = 300
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_EXAMPLES = "--server 8000, or --server http://127.0.0.1:8000"


class RefusedError(RemoteError):
    """The server answered, and not with 200: `status` says how."""

    def __init__(self, what: str, status: int, *, why: str = "", hint: str = "") -> None:
        super().__init__(what, why=why, hint=hint)
        self.status = status


@dataclass(frozen=True)
class Model:
    """A line of /v1/models. `root` is the digest of an adapter at a door of ours, and elsewhere a path or a name."""

    name: str
    root: str | None
    parent: str | None
    """What an adapter is on; None for a whole model."""
    max_model_len: int | None
    ours: bool
    """Listed by a door of adapterhub, in its own words."""
    about: Mapping[str, Any]
    """What such a door says of its base: `fingerprint`, `dtype`, `engine` and a digest of its `options`."""


Work = Callable[["httpx2.AsyncClient"], Awaitable[None]]


@dataclass(frozen=True)
class Server:
    """`url` without /v1. `models` is what the key may use there, by name, as it was when first asked."""

    url: str
    key: str | None = field(default=None, repr=False)
    models: Mapping[str, Model] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """Name and port."""
        return urlsplit(self.url).netloc

    @property
    def base(self) -> Model | None:
        """The base of a door of ours that says which weights it serves; None elsewhere."""
        found = [one for one in self.models.values() if one.ours and one.parent is None]
        known = len(found) == 1 and isinstance(found[0].about.get("fingerprint"), str)
        return found[0] if known else None

    @property
    def dtype(self) -> str:
        """What it computes in, by its own word; `unknown` where it says nothing."""
        return str(self.base.about.get("dtype")) if self.base else "unknown"

    def model(self, name: str) -> Model | None:
        """One that answers although it isn't listed, as earlier versions do at a door of ours; None where none does."""
        try:
            body = self.now("GET", f"/v1/models/{quote(name, safe='/@:')}")
        except RefusedError as refused:
            if refused.status in (403, 404):
                return None
            raise
        return _model(body)

    def now(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON of one answer. Raises RefusedError, and RemoteError where there is none."""
        found: list[Any] = []

        async def work(client: httpx2.AsyncClient) -> None:
            found.append(await self.ask(client, method, path, body))

        self.together([work])
        return found[0]

    def together(self, work: Iterable[Work]) -> None:
        """Does all of it, a few at a time, in its order. What the first one raises ends the others.

        An interrupt breaks off what is in flight.
        """
        asyncio.run(self._together(work))

    async def _together(self, work: Iterable[Work]) -> None:
        import httpx2

        waiting = iter(work)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        near = urlsplit(self.url).hostname in _LOOPBACK  # a proxy is for what is far away
        timeout = httpx2.Timeout(_SECONDS, connect=_CONNECT_SECONDS)

        async def turn(client: httpx2.AsyncClient) -> None:
            for one in waiting:
                await one(client)

        async with httpx2.AsyncClient(
            base_url=self.url, headers=headers, timeout=timeout, trust_env=not near
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(IN_FLIGHT):
                        group.create_task(turn(client))
            except ExceptionGroup as several:
                raise several.exceptions[0] from None

    async def ask(
        self,
        client: httpx2.AsyncClient,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        tries: int = _TRIES,
    ) -> Any:
        """The JSON of one answer; again where the connection broke or the server is busy. Raises as `now`."""
        import httpx2

        for left in reversed(range(tries)):
            pause = 2.0 ** (tries - left) / 32
            try:
                status, headers, text = await _exchanged(client, method, path, body)
            except httpx2.TimeoutException as error:
                raise self._away("It gave no answer in time.") from error
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                if not left:
                    raise self._away(str(error) or type(error).__name__) from error
            else:
                if status == 200:
                    return self._json(text)
                if not left or status not in (429, 503):
                    raise self._refused(status, text)
                asked = headers.get("retry-after", "").strip()
                pause = min(float(asked), _LONGEST_PAUSE) if asked.isdecimal() else 1.0
            await asyncio.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _json(self, text: bytes) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise RemoteError(
                f"What answers at {self.host} doesn't speak OpenAI's protocol.",
                why=f"It says: {self._quoted(text)}",
                hint=f"Name the server's own address: {_EXAMPLES}",
            ) from None

    def _away(self, why: str) -> RemoteError:
        return RemoteError(
            f"The server at {self.host} can't be reached.",
            why=self._quoted(why.encode()),
            hint="Is it running? (adapterhub server ls) The same command goes on where it was.",
        )

    def _refused(self, status: int, text: bytes) -> RefusedError:
        try:
            said = str(json.loads(text)["error"]["message"]).encode()
        except (ValueError, LookupError, TypeError, RecursionError):
            said = text
        hints = {
            401: f"Put the key into the environment: {KEY}=...",
            403: f"Put a key that may use it into the environment: {KEY}=...",
            404: f"Is it the right address, without a path? {_EXAMPLES}",
        }
        return RefusedError(
            f"The server at {self.host} refuses (HTTP {status}).",
            status,
            why=self._quoted(said) or "It doesn't say why.",
            hint=hints.get(status, "The same command goes on where it was."),
        )

    def _quoted(self, said: bytes) -> str:
        """Foreign words: on one line, without what steers a terminal, within bounds, without the key."""
        text = said[: 4 * _MOST_QUOTED].decode("utf-8", "replace")
        text = "".join(sign if sign.isprintable() else " " for sign in text)
        if self.key:
            text = text.replace(self.key, "(the key)")
        return " ".join(text.split())[:_MOST_QUOTED]


async def _exchanged(
    client: httpx2.AsyncClient, method: str, path: str, body: Mapping[str, Any] | None
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and text; of an endless text as much as there may be."""
    async with client.stream(method, path, json=body) as answer:
        text = bytearray()
        async for piece in answer.aiter_bytes():
            text += piece
            if len(text) > _MOST_BYTES:
                break
        return answer.status_code, answer.headers, bytes(text[:_MOST_BYTES])


def connect(where: str) -> Server:
    """The server at a port of this machine or at a URL, asked what it serves.

    Raises:
        UsageError: `where` is neither, or holds what must be kept secret; or what the environment holds is no key.
        RemoteError: it is out of reach, refuses, or isn't such a server.
    """
    server = Server(url_of(where, "--server", KEY, "/v1"), key_in(KEY))
    found: list[Any] = []

    async def work(client: httpx2.AsyncClient) -> None:
        found.append(await server.ask(client, "GET", "/v1/models", tries=1))

    server.together([work])
    data = found[0].get("data") if isinstance(found[0], dict) else None
    models = [model for one in data if (model := _model(one))] if isinstance(data, list) else []
    if not models:
        raise RemoteError(
            f"The server at {server.host} lists no models.",
            why="What can be asked there is read from /v1/models.",
            hint=f"A key may be restricted to none: {KEY}=... in the environment names another.",
        )
    return Server(server.url, server.key, {model.name: model for model in models})


def key_in(variable: str) -> str | None:
    """The key that this environment variable holds; None where it holds none.

    UsageError, which doesn't repeat it, where it couldn't stand in a header: what would refuse it there tells it whole.
    """
    key = os.environ.get(variable, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UsageError(
            f"What {variable} holds is no key.",
            why="It has blanks or signs no key has.",
            hint=f"Put the key alone into the environment, on one line: {variable}=...",
        )
    return key or None


def url_of(where: str, option: str, key: str, end: str) -> str:
    """The URL of a port of this machine or of an address, without `end`; `option` and the variable `key` are for errors."""
    text, examples = where.strip(), f"{option} 8000, or {option} http://127.0.0.1:8000"
    if text.isascii() and text.isdecimal():
        text = f"http://127.0.0.1:{text}"
    try:
        parts = urlsplit(text)
        known = bool(parts.scheme in ("http", "https") and parts.hostname and parts.port != 0)
    except ValueError:
        parts, known = urlsplit(""), False
    if not known:
        raise UsageError(f"{option} names neither a port nor a URL.", hint=examples)
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(
            "The server's address holds more than a host and a path.",
            why="What stands before an @ or after a ? may be secret, and others see commands.",
            hint=f"Put the key into the environment ({key}=...), and give the address alone.",
        )
    path = parts.path.rstrip("/").removesuffix(end)
    return f"{parts.scheme}://{parts.netloc}{path}"


def _model(one: Any) -> Model | None:
    """A line of the list, read as it may come from anywhere; None where it has no name."""
    if not isinstance(one, dict) or not isinstance(one.get("id"), str):
        return None
    root, parent, length = one.get("root"), one.get("parent"), one.get("max_model_len")
    about = one.get("adapterhub")
    return Model(
        name=one["id"],
        root=root if isinstance(root, str) else None,
        parent=parent if isinstance(parent, str) else None,
        max_model_len=length if type(length) is int and length > 0 else None,
        ours=one.get("owned_by") == "adapterhub",
        about=about if isinstance(about, dict) else {},
    )
