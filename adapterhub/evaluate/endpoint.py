"""A chat endpoint elsewhere that speaks OpenAI's protocol: many questions at temperature 0, one reply to each.

Neither its address nor its key is told to anybody: errors name the host alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from adapterhub.errors import RemoteError, UsageError
from adapterhub.evaluate.server import RefusedError, Server, Work, key_in, url_of
from adapterhub.words import shown

if TYPE_CHECKING:
    import httpx2

KEY = "ADAPTERHUB_JUDGE_KEY"
"""The environment variable that holds the key. None other is read: a key of one vendor is no other's business."""
MAX_TOKENS = 1024
"""Of a reply, what is thought before it included."""

_CHAT = "/chat/completions"
_LONGEST_NAME = 200
_KEPT = "The same command goes on where it was: what was judged is kept."

Turns = Sequence[Mapping[str, str]]
"""A conversation: `role` and `content` of each message."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model is asked. `url` is what `/chat/completions` comes after."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """What replies depend on, but for where it stands: an address is nobody else's business."""
        return {"api": "openai chat completions", "model": self.model, "max_tokens": MAX_TOKENS}


@dataclass(frozen=True)
class Reply:
    """What was said, and by what model in the server's own words."""

    text: str
    model: str


def endpoint_at(where: str, model: str) -> Endpoint:
    """The endpoint at a port or an address as people have it: with or without /v1 and /chat/completions.

    UsageError where it is none, or holds what must be kept secret.
    """
    url = url_of(where, "--judge", KEY, _CHAT)
    if not model.strip():
        raise UsageError("The judge's model has no name.", hint="--judge-model NAME")
    return Endpoint(url if urlsplit(url).path else f"{url}/v1", model.strip(), key_in(KEY))


def ask_all(
    endpoint: Endpoint,
    questions: Mapping[int, Turns],
    on_reply: Callable[[int, Reply], None],
) -> None:
    """Asks every question; `on_reply` is told each reply, with the question's place, as soon as it came.

    RemoteError where the server is out of reach, refuses, or doesn't speak the protocol; replies that came were told.
    What `on_reply` raises ends the asking.
    """
    server = Server(endpoint.url, endpoint.key)

    def asking(place: int, turns: Turns) -> Work:
        async def work(client: httpx2.AsyncClient) -> None:
            on_reply(place, await _reply(server, client, endpoint.model, turns))

        return work

    if questions:
        server.together(asking(place, turns) for place, turns in questions.items())


async def _reply(server: Server, client: httpx2.AsyncClient, model: str, turns: Turns) -> Reply:
    question = {
        "model": model,
        "messages": list(turns),
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "stream": False,
    }
    try:
        body = await server.ask(client, "POST", _CHAT, question)
    except RefusedError as refused:
        hints = {
            401: f"Put the key into the environment: {KEY}=...",
            403: f"Put a key that may use the model into the environment: {KEY}=...",
            404: "Is it the right address (often it ends in /v1), and does it have the model of --judge-model?",
        }
        raise RemoteError(
            f"The judge at {server.host} refuses (HTTP {refused.status}).",
            why=refused.why,
            hint=hints.get(refused.status, _KEPT),
        ) from None
    except RemoteError as error:
        raise RemoteError(
            f"The judge at {server.host} can't be asked.",
            why=f"{error.what} {error.why}",
            hint=f"Is it running, and the address right? {_KEPT}",
        ) from None
    try:
        said = body["choices"][0]["message"].get("content")
        name = body.get("model")
    except (LookupError, TypeError, AttributeError):
        raise RemoteError(
            f"The judge at {server.host} doesn't answer as an OpenAI-compatible chat endpoint does.",
            why=f"It says: {shown(body)}",
            hint="Is it the right address? Often it ends in /v1.",
        ) from None
    # Some say nothing in words: a refusal, a call of a tool. That is a reply, too.
    return Reply(said if isinstance(said, str) else "", str(name or "")[:_LONGEST_NAME])
