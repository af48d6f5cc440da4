"""A server that computes with a real tiny model, answers like vLLM's /v1/completions, and can be told to misbehave.

Requests in flight together are its batch. It has a prefix cache that goes by name, salt and prompt, as vLLM's does.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from adapterhub.serve.verify import Served

BASE = "org/tiny"


def merged(base: Path, folder: Path | None) -> Any:
    """The base in float32, with the adapter's delta in its weights."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if folder is not None:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.requires_grad_(False)


class StandIn:
    """`models` by name. Everything else is healthy unless it is changed."""

    def __init__(self, base: Path, folders: dict[str, Path]) -> None:
        self.folders: dict[str, Path | None] = {BASE: None, **folders}
        self.models = {name: merged(base, folder) for name, folder in self.folders.items()}
        self.takes: dict[str, str] = {}
        """Who is computed with whose weights while others are in flight."""
        self.last_slot: str | None = None
        """vLLM 0.32 on a CPU: the base's rows take it; its decode rows even when they are alone."""
        self.noise = 0.0
        """Standard deviation of what is added to every logit."""
        self.limit = 128
        self.random = torch.Generator().manual_seed(7)
        self.in_flight: Counter[str] = Counter()
        self.most_together = 0
        self.cache: dict[Any, Any] = {}

    @property
    def served(self) -> list[Served]:
        return [Served(name, folder) for name, folder in self.folders.items()]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/completions", self._completions, methods=["POST"]),
        ]
        transport = httpx.ASGITransport(Starlette(routes=routes))
        async with httpx.AsyncClient(transport=transport, base_url="http://stand-in") as client:
            yield client

    async def _models(self, _: Request) -> Response:
        listed = [{"id": name, "max_model_len": self.limit} for name in self.models]
        return JSONResponse({"data": listed})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        name, prompt = body["model"], body["prompt"]
        if name not in self.models:
            return JSONResponse({"error": {"message": f"The model `{name}` does not exist."}}, 404)
        assert len(prompt) + body["max_tokens"] <= self.limit
        assert "prompt_logprobs" not in body  # kills vLLM's engine
        self.in_flight[name] += 1
        self.most_together = max(self.most_together, self.in_flight.total())
        try:
            await asyncio.sleep(0.002)  # those that were sent together are together
            choice = await self._answered(name, prompt, body)
        finally:
            self.in_flight[name] -= 1
        return Response(json.dumps({"choices": [choice]}))  # NaN as Python writes it

    def _weights(self, name: str, *, decode: bool) -> Any:
        others = self.in_flight.total() > self.in_flight[name]
        if name == BASE and self.last_slot and (decode or others):
            return self.models[self.last_slot]
        return self.models[self.takes[name] if others and name in self.takes else name]

    def _log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(logits.shape, generator=self.random)
        return (logits + self.noise * noise).log_softmax(-1)

    async def _answered(self, name: str, prompt: list[int], body: dict[str, Any]) -> dict[str, Any]:
        key = (name, body.get("cache_salt"), tuple(prompt[:-1]))
        if key not in self.cache:
            model = self._weights(name, decode=False)
            before = torch.tensor([prompt[:-1]])
            self.cache[key] = model(input_ids=before, use_cache=True).past_key_values
        past = copy.deepcopy(self.cache[key])
        seed = torch.Generator().manual_seed(body.get("seed", 0))
        token, tokens, top = prompt[-1], [], []
        for step in range(body["max_tokens"]):
            model = self._weights(name, decode=step > 0)
            out = model(input_ids=torch.tensor([[token]]), past_key_values=past, use_cache=True)
            row = self._log_probs(out.logits[0, -1])
            greedy = not body["temperature"]
            token = int(row.argmax() if greedy else torch.multinomial(row.exp(), 1, generator=seed))
            tokens.append(f"token_id:{token}")
            likely = {*row.topk(body["logprobs"]).indices.tolist(), token}
            top.append({f"token_id:{one}": float(row[one]) for one in likely})
            await asyncio.sleep(0)
        return {"logprobs": {"tokens": tokens, "top_logprobs": top}}
