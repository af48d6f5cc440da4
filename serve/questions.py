"""One question to a running server, its answer as it comes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from adapterhub.errors import ExternalToolError, NotFoundError
from adapterhub.serve.client import Running

_ANSWER_SECONDS = 600.0


def ask(
    server: Running,
    model: str,
    text: str,
    turns: Sequence[dict[str, str]],
    *,
    max_tokens: int,
    temperature: float,
) -> Iterator[str]:
    """The pieces of `model`'s answer to `turns` (role, content); without any, of what goes on after `text`.

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
                    yield from _pieces(json.loads(line.removeprefix("data: ")))
    except httpx.HTTPError as error:
        raise ExternalToolError(
            f"The server at {server.url} broke off.", why=f"{str(error) or type(error).__name__}."
        ) from error


def _pieces(event: dict[str, Any]) -> Iterator[str]:
    if "error" in event:
        raise _refusal(500, event)
    for choice in event["choices"]:
        if piece := choice["text"] if "text" in choice else choice["delta"].get("content"):
            yield piece


def _refusal(status: int, body: dict[str, Any]) -> NotFoundError | ExternalToolError:
    kind = NotFoundError if status == 404 else ExternalToolError
    return kind(str(body["error"]["message"]), hint="`adapterhub server ls` shows what is served.")
