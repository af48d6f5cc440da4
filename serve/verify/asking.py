"""One question to a server that speaks OpenAI's completions, by token ids: what comes next, and how likely.

Never asked for is `prompt_logprobs`, which would be one request for a whole text. vLLM 0.32 takes the rows of the prompt for rows of
the batch when it adds an adapter's part of the logits (lora/layers/logits_processor.py): on a CPU, where another request
is in the batch, the engine dies of it, and all tenants with it. So a text is scored by asking for its next token.

An answer may come from the prefix cache, which goes by adapter name, path and `cache_salt`; a new salt makes sure that it
is computed.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

TOP = 16
"""Likeliest tokens of a position that are compared; vLLM gives 20 at most, unless told otherwise."""

Seen = Mapping[int, float]
"""The likeliest tokens of one position: natural logarithms of their probabilities."""


@dataclass(frozen=True)
class Answer:
    """The tokens of an answer, and what was seen where each was chosen."""

    tokens: tuple[int, ...]
    seen: tuple[Seen, ...]


class UnansweredError(Exception):
    """Why a question has no usable answer, as the end of a sentence that begins with the name asked."""


class Server:
    """Asks through `client`; each request has `seconds`. `requests` counts them."""

    def __init__(self, client: httpx.AsyncClient, seconds: float) -> None:
        self._client, self._seconds = client, seconds
        self.requests = 0

    async def listed(self) -> dict[str, Mapping[str, Any]]:
        """What it says it serves, by name."""
        body = await self._ask("GET", "/v1/models", None)
        found = body.get("data")
        if not isinstance(found, list):
            raise UnansweredError("lists no models")
        return {str(model.get("id")): model for model in found if isinstance(model, dict)}

    async def next(self, name: str, prompt: Sequence[int]) -> Seen:
        """What `name` takes for likely after `prompt`, computed: a prefill and no more."""
        return (await self.answer(name, prompt, 1)).seen[0]

    async def answer(
        self,
        name: str,
        prompt: Sequence[int],
        length: int,
        *,
        sample: int | None = None,
        cached: bool = False,
    ) -> Answer:
        """`length` tokens after `prompt`, or fewer if it stops by itself: the likeliest ones, or drawn with the seed `sample`.

        `cached`: the server may use what it remembers of this prompt; else it can't.
        """
        choice = await self._complete(
            name,
            prompt,
            max_tokens=length,
            ignore_eos=True,
            temperature=0.0 if sample is None else 1.0,
            logprobs=TOP,
            return_tokens_as_token_ids=True,
            **({} if sample is None else {"seed": sample}),
            **({} if cached else {"cache_salt": secrets.token_hex(16)}),
        )
        try:
            found = choice["logprobs"]
            tokens = tuple(map(_id, found["tokens"]))
            seen = [_likeliest(row) for row in found["top_logprobs"]]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UnansweredError("gives no token ids with log-probabilities") from error
        if not tokens or len(seen) != len(tokens) or not all(seen):
            raise UnansweredError("gives no token ids with log-probabilities")
        if not all(math.isfinite(value) for row in seen for value in row.values()):
            raise UnansweredError("gives log-probabilities that are NaN or infinite")
        return Answer(tokens, tuple(seen))

    async def _complete(self, name: str, prompt: Sequence[int], **fields: Any) -> dict[str, Any]:
        body = {
            "model": name,
            "prompt": list(prompt),
            "temperature": 0.0,
            # what a generation_config.json may say otherwise
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            **fields,
        }
        choices = (await self._ask("POST", "/v1/completions", body)).get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise UnansweredError("answers with no choice")
        return choices[0]

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        self.requests += 1
        try:
            answer = await self._client.request(method, path, json=body, timeout=self._seconds)
        except httpx.TimeoutException as error:
            raise UnansweredError(f"gives no answer within {self._seconds:g} seconds") from error
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise UnansweredError(f"can't be asked: {why}") from error
        try:
            found = json.loads(answer.content)
        except ValueError as error:
            raise UnansweredError(f"answers with HTTP {answer.status_code} and no JSON") from error
        if answer.status_code != 200 or not isinstance(found, dict):
            raise UnansweredError(f"is refused with HTTP {answer.status_code}: {_message(found)}")
        return found


def _message(found: Any) -> str:
    """The words of an error body in OpenAI's form."""
    error = found.get("error") if isinstance(found, dict) else None
    text = error.get("message") if isinstance(error, dict) else found
    return str(text).strip().split("\n")[0][:200]


def _id(token: str) -> int:
    """`token_id:17` -> 17."""
    return int(token.removeprefix("token_id:"))


def _likeliest(row: Mapping[str, Any]) -> Seen:
    """The first of them. A drawn token comes along wherever it ranks; those between it and the last aren't shown."""
    found = sorted(((float(row[key]), _id(key)) for key in row), reverse=True)
    return {token: value for value, token in found[:TOP]}
