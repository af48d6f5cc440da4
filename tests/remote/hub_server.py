"""A Hub of our own on 127.0.0.1: real HTTP, real repositories in memory, and faults to order.

Two servers, as on the real one: the Hub itself (model info, /resolve/) and the storage that large files are redirected
to, which is another origin and must never see a token. Every request is kept.

    with HubServer() as hub:
        commit = hub.push("org/repo", {"adapter_config.json": b"..."})
        hub.fault("GET */adapter_config.json", Fault(status=503), times=1)
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LARGE = (".safetensors", ".bin")
"""Endings of the files that are kept as LFS objects, named by their sha256."""
SIGNATURE = "a-signature-nobody-may-see"


@dataclass(frozen=True)
class Asked:
    """One request: `what` is "METHOD /path", decoded."""

    what: str
    headers: Mapping[str, str]
    storage: bool


@dataclass(frozen=True)
class Fault:
    """What happens instead of the answer, or to it.

    Args:
        status: answer with this status, `code` (X-Error-Code), `message` and `headers`.
        cut: send only this fraction of the body, then close the connection.
        reset: close it as a crash does (TCP reset), not in an orderly way.
        other: send these bytes instead of the file's.
        before: called before the answer is made.
    """

    status: int | None = None
    code: str = ""
    message: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: float | None = None
    reset: bool = False
    other: bytes | None = None
    before: Callable[[], object] | None = None


@dataclass
class Repo:
    """A model repository: whole trees by commit, and branches and tags that point at them."""

    trees: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    needs: str | None = None
    """The token that may see it; None: everybody may."""
    gated: bool = False


class HubServer:
    """Start it with `with`; `url` is what HF_ENDPOINT has to be."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.asked: list[Asked] = []
        self._faults: list[tuple[str, Fault, int | None]] = []
        self._lock = threading.Lock()
        self._servers = [_Server(self, storage=False), _Server(self, storage=True)]

    def __enter__(self) -> HubServer:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        return self._servers[0].url

    @property
    def storage_url(self) -> str:
        return self._servers[1].url

    def push(self, name: str, files: Mapping[str, bytes], *refs: str) -> str:
        """A new commit with exactly these files; `refs` (by default main) point at it from now on. Returns its id."""
        repo = self.repos.setdefault(name, Repo())
        listing = repr(sorted((path, git_id(data)) for path, data in files.items()))
        commit = hashlib.sha1(f"{len(repo.trees)} {listing}".encode()).hexdigest()  # noqa: S324 - as git does
        repo.trees[commit] = dict(files)
        repo.refs.update(dict.fromkeys(refs or ("main",), commit))
        return commit

    def fault(self, pattern: str, fault: Fault, *, times: int | None = None) -> None:
        """From now on (for so many requests) this happens to requests "METHOD /path" that match the shell pattern."""
        with self._lock:
            self._faults.append((pattern, fault, times))

    def heal(self) -> None:
        """No more faults."""
        with self._lock:
            self._faults.clear()

    def requests(self, pattern: str = "*") -> list[Asked]:
        """What was asked so far, of what matches."""
        with self._lock:
            return [one for one in self.asked if fnmatchcase(one.what, pattern)]

    def heard(self, asked: Asked) -> Fault | None:
        """Keeps a request, and says what is to go wrong with it."""
        with self._lock:
            self.asked.append(asked)
            for place, (pattern, fault, times) in enumerate(self._faults):
                if fnmatchcase(asked.what, pattern) and times != 0:
                    if times is not None:
                        self._faults[place] = (pattern, fault, times - 1)
                    return fault
        return None

    def find(self, path: str, marker: str) -> tuple[str, Repo, str, str] | None:
        """Name, repository, revision and path of `/NAME/marker/REVISION/PATH`; of `/NAME` where no marker is asked for."""
        for name in sorted(self.repos, key=len, reverse=True):
            if path == f"/{name}" and not marker:
                return name, self.repos[name], "", ""
            start = f"/{name}/{marker}/"
            if marker and path.startswith(start):
                revision, _, rest = path.removeprefix(start).partition("/")
                return name, self.repos[name], unquote(revision), unquote(rest)
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, *, storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.storage = hub, storage

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is part of the tests; anything else will be seen as a wrong answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    @property
    def place(self) -> _Server:
        assert isinstance(self.server, _Server)
        return self.server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's signature
        """Nothing is printed."""

    def _answer(self) -> None:
        hub = self.place.hub
        parts = urlsplit(self.path)
        asked = Asked(
            f"{self.command} {unquote(parts.path)}", dict(self.headers), self.place.storage
        )
        fault = hub.heard(asked) or Fault()
        if fault.before is not None:
            fault.before()
        if fault.status is not None:
            self._refuse(fault.status, fault.code, fault.message, fault.headers)
        elif self.place.storage and (found := hub.find(parts.path, "storage")):
            self._stored(*found[1:], fault)
        elif parts.path.startswith("/api/models/"):
            self._info(parts.path.removeprefix("/api/models"), parse_qs(parts.query), fault)
        elif parts.path.startswith("/api/datasets/"):  # pushed as datasets/org/name
            self._info(parts.path.removeprefix("/api"), parse_qs(parts.query), fault)
        elif found := hub.find(parts.path, "resolve"):
            self._resolve(*found, fault)
        else:
            self._refuse(404, "RepoNotFound", "Repository not found")

    def _info(self, path: str, query: Mapping[str, list[str]], fault: Fault) -> None:
        found = self.place.hub.find(path, "revision") or self.place.hub.find(path, "")
        if found is None or not self._may_see(found[1]):
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        name, repo, revision, _ = found
        commit = _commit(repo, revision or "main")
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = []
        for path, data in sorted(repo.trees[commit].items()):
            one: dict[str, Any] = {"rfilename": path}
            if "blobs" in query:
                one |= {"size": len(data), "blobId": git_id(data)}
                if path.endswith(LARGE):
                    pointer = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
                    one |= {"lfs": pointer}
            siblings.append(one)
        gated = "manual" if repo.gated else False
        body = {
            "id": name.removeprefix("datasets/"),
            "sha": commit,
            "private": bool(repo.needs),
            "gated": gated,
        }
        data = json.dumps({**body, "siblings": siblings}).encode()
        return self._send(200, {"Content-Type": "application/json"}, data, fault)

    def _resolve(self, name: str, repo: Repo, revision: str, path: str, fault: Fault) -> None:
        if not self._may_see(repo):
            return self._refuse(401, "RepoNotFound", "Invalid username or password.")
        if repo.gated:
            return self._refuse(403, "GatedRepo", f"Access to model {name} is restricted.")
        commit = _commit(repo, revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        data = repo.trees[commit].get(path)
        if data is None:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if not path.endswith(LARGE):
            return self._send(200, {**headers, "ETag": f'"{git_id(data)}"'}, data, fault)
        place = f"/{quote(name)}/storage/{commit}/{quote(path)}?signature={SIGNATURE}"
        headers |= {
            "X-Linked-Etag": f'"{sha256(data)}"',
            "X-Linked-Size": str(len(data)),
            "Location": self.place.hub.storage_url + place,
        }
        return self._send(302, headers, b"", Fault())

    def _stored(self, repo: Repo, commit: str, path: str, fault: Fault) -> None:
        data = repo.trees[commit][path]
        self._send(200, {"ETag": f'"{sha256(data)}"', "Accept-Ranges": "bytes"}, data, fault)

    def _may_see(self, repo: Repo) -> bool:
        return repo.needs is None or self.headers.get("Authorization") == f"Bearer {repo.needs}"

    def _refuse(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        extra = {"X-Error-Code": code, "X-Error-Message": message}
        extra = {key: value for key, value in extra.items() if value}
        data = json.dumps({"error": message} if message else {}).encode()
        extra |= {"Content-Type": "application/json", **(headers or {})}
        self._send(status, extra, data, Fault())

    def _send(self, status: int, headers: Mapping[str, str], data: bytes, fault: Fault) -> None:
        data = data if fault.other is None else fault.other
        start, whole = 0, len(data)
        wanted = self.headers.get("Range", "")
        if status == 200 and wanted.startswith("bytes=") and wanted.endswith("-"):
            start, status = int(wanted[6:-1]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{whole - 1}/{whole}"}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(whole - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        end = whole if fault.cut is None else max(start, int(whole * fault.cut))
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(data[start:end])
            self.wfile.flush()
        if fault.cut is not None:
            self.close_connection = True
            if fault.reset:
                at_once = struct.pack("ii", 1, 0)  # on, and no time to deliver what is left
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                self.connection.close()
                return
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


def _commit(repo: Repo, revision: str) -> str | None:
    return revision if revision in repo.trees else repo.refs.get(revision)


def git_id(data: bytes) -> str:
    """How git names these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # noqa: S324 - as git does


def sha256(data: bytes) -> str:
    """How LFS names them."""
    return hashlib.sha256(data).hexdigest()
