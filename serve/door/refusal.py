"""A request that is not answered, in the shape that OpenAI's clients read errors in."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

BUSY_SECONDS = 5
"""What `Retry-After` says where nobody knows better."""


class Refused(Exception):  # noqa: N818 - an answer to a client, not a fault of ours
    """Why a request gets no answer, and with which HTTP status.

    Args:
        message: what is wrong, for a person.
        kind: OpenAI's `type`: invalid_request_error, rate_limit_error, ...
        code: one word that programs can compare; OpenAI's own where it has one.
        param: the field of the request it is about.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON data."""
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def as_response(self, headers: dict[str, str] | None = None) -> Response:
        """The whole answer; `headers` come on top of its own."""
        return Response(
            json.dumps(self.body),
            self.status,
            {**self.headers, **(headers or {})},
            media_type="application/json",
        )

    def as_event(self) -> bytes:
        """The error as the last event of a stream that has begun already."""
        return f"data: {json.dumps(self.body)}\n\n".encode()


def busy(message: str, *, seconds: float = BUSY_SECONDS, code: str = "unavailable") -> Refused:
    """503: the same request may succeed in so many seconds."""
    return Refused(
        503,
        message,
        kind="overloaded_error",
        code=code,
        headers={"Retry-After": str(max(1, round(seconds)))},
    )
