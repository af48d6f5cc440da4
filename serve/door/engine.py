"""The engine behind the door, as the pool needs it: vLLM's routes for loading and forgetting adapters."""

from __future__ import annotations

import json
from pathlib import Path

import httpx

from adapterhub.serve.door.pool import EngineAwayError, EngineError

LOAD_SECONDS = 300.0
"""Reading an adapter takes well under a second from a disk; from a cold network file system it may take long."""


class VllmEngine:
    """Loads adapters through `client`, which is bound to vLLM's socket."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def load(self, name: str, folder: Path) -> None:
        """Makes the adapter in `folder` answer to `name`; EngineError says why not."""
        body = {"lora_name": name, "lora_path": str(folder)}
        try:
            answer = await self._client.post(
                "/v1/load_lora_adapter", json=body, timeout=LOAD_SECONDS
            )
        except httpx.HTTPError as error:
            raise EngineAwayError(
                f"it can't be reached ({str(error) or type(error).__name__})"
            ) from error
        # A name is one content for ever, so a name that is there already is right: an earlier load was told too late.
        if answer.status_code != 200 and "already been loaded" not in answer.text:
            raise EngineError(_message(answer))

    async def unload(self, name: str) -> None:
        """Forgets `name`. Whatever goes wrong is ignored: the name is never given out again before it is loaded."""
        try:
            await self._client.post("/v1/unload_lora_adapter", json={"lora_name": name})
        except httpx.HTTPError:
            return


def _message(answer: httpx.Response) -> str:
    try:
        return str(json.loads(answer.text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"it answered {answer.status_code}"
