"""The tenant router against a server on a real socket: whose adapter, whose key, and how many connections stay open."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from tenant_router import TenantRouter

TENANTS = {
    "acme": ("support/acme", "key-acme"),
    "initech": ("support/initech", "key-initech"),
    "stranger": ("support/acme", "key-unknown"),
}


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> type[TenantRouter]:
    """The class, out of the folder of examples."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    found: type[TenantRouter] = import_module("tenant_router").TenantRouter
    return found


@dataclass
class Server:
    """What was asked: (connection, key, body) each, and how many connections were closed."""

    url: str = ""
    asked: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    closed: list[int] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    seen = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            key = self.headers["Authorization"].removeprefix("Bearer ")
            seen.asked.append((self.client_address[1], key, body))
            known = key in {key for _, key in list(TENANTS.values())[:2]}
            said = {
                "choices": [{"message": {"role": "assistant", "content": f"I am {body['model']}"}}]
            }
            data = json.dumps(said if known else {"error": {"message": "no"}}).encode()
            self.send_response(200 if known else 401)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def finish(self) -> None:
            super().finish()
            seen.closed.append(self.client_address[1])

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        seen.url = f"http://127.0.0.1:{running.server_address[1]}"
        thread = Thread(target=running.serve_forever)
        thread.start()
        yield seen
        running.shutdown()
        thread.join()


def test_each_tenant_is_answered_by_its_own_adapter_under_its_own_key(
    server: Server, make: type[TenantRouter]
) -> None:
    router = make(server.url, TENANTS)
    assert router.ask("acme", "Late?", max_tokens=8) == "I am support/acme"
    assert router.ask("initech", "Late?") == "I am support/initech"
    router.close()
    (one, key, body), (other, other_key, _) = server.asked
    assert (key, other_key) == ("key-acme", "key-initech")
    assert one != other
    assert body == {
        "model": "support/acme",
        "messages": [{"role": "user", "content": "Late?"}],
        "max_tokens": 8,
    }


def test_connections_are_used_again_and_the_least_recently_used_close(
    server: Server, make: type[TenantRouter]
) -> None:
    router = make(server.url, {**TENANTS, "third": TENANTS["acme"]}, most_open=2)
    for tenant in ("acme", "initech", "acme", "third", "acme", "initech"):
        router.ask(tenant, "Late?")
    assert list(router.clients) == ["acme", "initech"]
    router.close()
    assert not router.clients
    ports = [port for port, _, _ in server.asked]
    assert ports[0] == ports[2] == ports[4]  # acme was never the least recently used
    assert len(set(ports)) == 4  # initech's were closed for the third tenant's, and opened anew


def test_a_refusal_and_an_unknown_tenant_are_errors(
    server: Server, make: type[TenantRouter]
) -> None:
    router = make(server.url, TENANTS)
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        router.ask("stranger", "Late?")
    with pytest.raises(KeyError):
        router.ask("nobody", "Late?")
    router.close()


def test_it_is_short() -> None:
    path = EXAMPLES / "tenant_router.py"
    assert len(path.read_text().splitlines()) <= 30
