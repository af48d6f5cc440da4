"""One question to a running server, its answer as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from adapterhub.errors import ExternalToolError, NotFoundError
from adapterhub.serve.client import Running, servers
from adapterhub.serve.naming import BASE, version_name
from adapterhub.store import Store

_ANSWER_SECONDS = 600.0


def ask(
    server: Running,
    model: str,
    text: str,
    turns: Sequence[dict[str, str]],
    *,
    max_tokens: int,
    temperature: float,
    used: Callable[[int], None] = lambda _: None,
) -> Iterator[str]:
    """The pieces of `model`'s answer to `turns` (role, content); without any, of what goes on after `text`.

    `used` is told how many tokens the answer has, once it is whole. Who stops asking for pieces ends the answer.

    Raises:
        NotFoundError: the server knows no such model.
        ExternalToolError: it refuses, or breaks off; its own words.
    """
    body = {
        "model": model,
        **({"messages": list(turns)} if turns else {"prompt": text}),
        "max_tokens": max_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        with (
            server.client() as client,
            client.stream(
                "POST",
                "/v1/chat/completions" if turns else "/v1/completions",
                json=body,
                timeout=_ANSWER_SECONDS,
            ) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise _refusal(answer.status_code, answer.json())
            for line in answer.iter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    event = json.loads(line.removeprefix("data: "))
                    if usage := event.get("usage"):
                        used(int(usage.get("completion_tokens") or 0))
                    yield from _pieces(event)
    except httpx.HTTPError as error:
        raise ExternalToolError(
            f"The server at {server.url} broke off.", why=f"{str(error) or type(error).__name__}."
        ) from error


@dataclass(frozen=True)
class Speakers:
    """A server that serves everybody who is to be asked. `models`: what it calls each."""

    server: Running
    models: Mapping[str, str]
    converses: bool
    """Whether it can be asked in turns."""


def find_speakers(store: Store, names: Sequence[str]) -> Speakers | None:
    """The first running server that serves all of `names`, as the store means them; None where there is none."""
    wanted = {name: None if name == BASE else store.resolve(name).digest for name in names}
    for server in servers(store):
        try:
            status = server.status()
        except ExternalToolError:
            continue
        models = {name: _model(status, digest) for name, digest in wanted.items()}
        known = {name: model for name, model in models.items() if model is not None}
        if status["state"] == "serving" and len(known) == len(models):
            return Speakers(server, known, server.has_template())
    return None


def _model(status: Mapping[str, Any], digest: str | None) -> str | None:
    """What a server calls a version, or the base; None where it doesn't serve it now."""
    if digest is None:
        return str(status["base"]["name"])
    for alias in status["aliases"]:
        if any(target["digest"] == digest for target in alias["targets"]):
            return version_name(alias["name"], digest)
    return None


def _pieces(event: dict[str, Any]) -> Iterator[str]:
    if "error" in event:
        raise _refusal(500, event)
    for choice in event["choices"]:
        if piece := choice["text"] if "text" in choice else choice["delta"].get("content"):
            yield piece


def _refusal(status: int, body: dict[str, Any]) -> NotFoundError | ExternalToolError:
    kind = NotFoundError if status == 404 else ExternalToolError
    return kind(str(body["error"]["message"]), hint="`adapterhub server ls` shows what is served.")
