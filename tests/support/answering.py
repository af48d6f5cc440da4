"""A server on loopback that answers OpenAI's routes with real models in float32, as vLLM 0.32 does, one token at a time.

It knows what an evaluation asks of it: `allowed_token_ids` narrow the choice and leave the likelihood as it was,
`prompt_logprobs` tell a row at once, `ignore_eos` and `stop_token_ids` say where an answer ends.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Answering:
    """What it has, what it was asked, and how it misbehaves. Fields may be changed while it runs."""

    def __init__(self, tokenizer: Any, models: Mapping[str, Any]) -> None:
        """`models`: by the name that each answers to."""
        self.tokenizer = tokenizer
        self.models = dict(models)
        self.cards: list[dict[str, Any]] = [{"id": name} for name in models]
        self.unlisted: dict[str, dict[str, Any]] = {}
        """Cards of versions that answer under /v1/models/NAME and aren't listed."""
        self.key: str | None = None
        self.routes = {
            "/v1/models",
            "/v1/completions",
            "/v1/chat/completions",
            "/tokenize",
            "/version",
        }
        self.knows = {"prompt_logprobs", "allowed_token_ids", "return_token_ids"}
        self.processed = False
        """Tells likelihoods among what was allowed, as `--logprobs-mode processed_logprobs` does."""
        self.odd: float | str | None = 0.0
        """Told in place of likelihoods, where it isn't 0."""
        self.busy = 0
        """So many questions are answered with 503 first."""
        self.left: int | None = None
        """So many completions are answered; then the connection breaks, each time."""
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.together = 0
        self.most_together = 0
        self.url = ""
        self._lock = threading.Lock()
        self._counting = threading.Lock()

    def counted(self) -> Counter[str]:
        """How often each path was asked."""
        return Counter(path for path, _ in self.asked)

    def completions(self, **fields: Any) -> list[dict[str, Any]]:
        """The completions asked for that have these fields."""
        return [
            body
            for path, body in self.asked
            if path == "/v1/completions" and all(body.get(key) == fields[key] for key in fields)
        ]

    def answer(self, path: str, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
        """Status and JSON; BrokenPipeError where the connection is to break."""
        with self._counting:
            self.asked.append((path, body))
            self.together += 1
            self.most_together = max(self.most_together, self.together)
        try:
            return self._answer(path, body, key)
        finally:
            with self._counting:
                self.together -= 1

    def _answer(self, path: str, body: dict[str, Any], key: str | None) -> tuple[int, Any]:
        if self.key is not None and key != f"Bearer {self.key}":
            return _error(401, f"{key} is not known here.")
        if path == "/v1/models":
            return 200, {"object": "list", "data": self.cards}
        if (name := path.removeprefix("/v1/models/")) in self.unlisted:
            return 200, self.unlisted[name]
        if path not in self.routes:
            return _error(404, f"There is no {path} here.")
        if path == "/version":
            return 200, {"version": "0.32.0"}
        if path == "/tokenize":
            return 200, {"tokens": self.tokens(body["prompt"])}
        if self.busy:
            self.busy -= 1
            return _error(503, "Come again.")
        if self.left is not None:
            if not self.left:
                raise BrokenPipeError
            self.left -= 1
        if body["model"] not in self.models:
            return _error(404, f"The model `{body['model']}` does not exist.")
        with self._lock:
            return 200, {"choices": [self._choice(path, body)]}

    def tokens(self, text: str) -> list[int]:
        """Of a text alone."""
        found: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return found

    def _choice(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        import torch

        model, chat = self.models[body["model"]], path == "/v1/chat/completions"
        if chat:
            prompt = self.tokenizer.apply_chat_template(
                body["messages"], add_generation_prompt=True, return_dict=True
            )["input_ids"]
        else:
            prompt = body["prompt"]
        stops = set(body.get("stop_token_ids") or ())
        if not body.get("ignore_eos"):
            stops.add(self.tokenizer.eos_token_id)
        allowed = body.get("allowed_token_ids") if "allowed_token_ids" in self.knows else None
        made: list[int] = []
        told: list[float] = []
        while len(made) < body["max_tokens"] and not (made and made[-1] in stops):
            values = logarithms(model, [*prompt, *made])[-1]
            narrowed = values
            if allowed is not None:
                narrowed = torch.full_like(values, -torch.inf)
                narrowed[allowed] = values[allowed]
            made.append(int(narrowed.argmax()))
            told.append(float((narrowed.log_softmax(-1) if self.processed else values)[made[-1]]))
        text = self.tokenizer.decode(made, skip_special_tokens=True)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop" if made[-1] in stops else "length",
        }
        if chat:
            return {**choice, "message": {"role": "assistant", "content": text}}
        choice["text"] = text
        if body.get("return_token_ids") and "return_token_ids" in self.knows:
            choice["token_ids"] = made
        if body.get("logprobs") is not None:
            odd = self.odd if self.odd != 0 else None
            choice["logprobs"] = {"token_logprobs": told if odd is None else [odd for _ in told]}
        if body.get("prompt_logprobs") is not None and "prompt_logprobs" in self.knows:
            rows = logarithms(model, prompt)[:-1]
            values = [float(row[token]) for row, token in zip(rows, prompt[1:], strict=True)]
            seen = [{str(t): {"logprob": v}} for t, v in zip(prompt[1:], values, strict=True)]
            choice["prompt_logprobs"] = [None, *seen]
        return choice


def logarithms(model: Any, tokens: Sequence[int]) -> Any:
    """log_softmax at every position, (T, vocabulary)."""
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([list(tokens)])).logits[0].log_softmax(-1)


def _error(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"message": message, "type": "x", "code": status}}


@contextmanager
def answering(base: Path, **adapters: Path) -> Iterator[Answering]:
    """A server of `base` under the name `org/tiny`, and of adapters on it, by name."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()

    models: dict[str, Any] = {"org/tiny": load()}
    for name, folder in adapters.items():
        models[name] = PeftModel.from_pretrained(load(), str(folder)).eval()
    here = Answering(AutoTokenizer.from_pretrained(base), models)
    for card in here.cards[1:]:
        card["parent"] = "org/tiny"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._respond({})

        def do_POST(self) -> None:
            self._respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def _respond(self, body: dict[str, Any]) -> None:
            try:
                status, found = here.answer(self.path, body, self.headers["Authorization"])
            except BrokenPipeError:
                self.close_connection = True
                return
            text = json.dumps(found).encode()
            with suppress(BrokenPipeError, ConnectionResetError):  # nobody waits for it any more
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
            """Nothing: the tests' output is theirs."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    here.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield here
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
