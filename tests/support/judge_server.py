"""A judge whose mind is known: an OpenAI-compatible server on loopback that decides by a rule, and keeps what it was asked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MARK = re.compile(r"hold the mark ([0-9a-f]{32})\.")


@dataclass(frozen=True)
class Case:
    """What a judge was shown: the texts between the marked lines, by their names."""

    system: str
    user: str
    mark: str
    texts: dict[str, str]

    @classmethod
    def of(cls, body: dict[str, Any]) -> Case:
        """Taken apart by the mark alone, as an attentive reader does."""
        system, user = (message["content"] for message in body["messages"])
        (mark,) = _MARK.findall(system)
        fence = rf"^\[([a-z]+(?: [12])?) {mark}\]\n(.*?)\n\[end of \1 {mark}\]$"
        texts = dict(re.findall(fence, user, re.DOTALL | re.MULTILINE))
        return cls(system, user, mark, texts)

    @property
    def question(self) -> str:
        return self.texts["user"]

    @property
    def answers(self) -> tuple[str, str]:
        return self.texts["answer 1"], self.texts["answer 2"]

    def place_of(self, answer: str) -> int:
        """1 or 2."""
        return self.answers.index(answer) + 1


def verdict(winner: object) -> str:
    """A reply as it should be."""
    return json.dumps({"why": "It is.", "winner": winner})


@dataclass
class JudgeServer:
    """`rule` says what is replied to a case; an int in place of words is refused with that status."""

    rule: Callable[[Case], str | int]
    url: str = ""
    model: str = "arbiter-7b"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    busy: int = 0
    """Connections that are open."""

    @property
    def cases(self) -> list[Case]:
        return [Case.of(body) for body in self.bodies]


@contextmanager
def judging(rule: Callable[[Case], str | int]) -> Iterator[JudgeServer]:
    """The server, while the block runs."""
    judge = JudgeServer(rule)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle(self) -> None:
            with lock:
                judge.busy += 1
            with suppress(ConnectionError):  # who asked has gone
                super().handle()
            with lock:
                judge.busy -= 1

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                judge.bodies.append(body)
                judge.headers.append(dict(self.headers))
                said = judge.rule(Case.of(body)) if self.path == "/v1/chat/completions" else 404
            if isinstance(said, int):
                self._send(said, {"error": {"message": f"no: {self.headers['Authorization']}"}})
                return
            message = {"role": "assistant", "content": said}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self._send(200, {"model": judge.model, "choices": choices})

        def _send(self, status: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name  # noqa: A002 - its name above
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
