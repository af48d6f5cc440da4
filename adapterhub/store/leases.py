"""Leases: what a server, merge or export is using right now, so that no collection takes it away under them.

A lease is a small file that names its process. It goes when the work ends; one whose process is gone (killed, or from
before the machine was started) is stale and protects nothing.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from adapterhub.alive import boot, since, space
from adapterhub.canonical import is_digest
from adapterhub.errors import NotFoundError, StoreDamagedError
from adapterhub.fsio import is_read_only, write_file
from adapterhub.store.journal import now
from adapterhub.store.layout import Layout
from adapterhub.store.locks import locked
from adapterhub.store.trash import Trash


@dataclass(frozen=True)
class Lease:
    """Who uses which adapters. `boot`, `space` and `started` tell a process from a later one with the same number."""

    kind: str
    digests: tuple[str, ...]
    about: str
    created: str
    pid: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    host: str
    boot: str
    space: str
    started: int
    id: str = ""
    machine: str = ""
    """Tells machines of one name apart, where the system does."""

    def stale(self) -> str | None:
        """Why this lease protects nothing any more, or None. A process of another machine is taken to be alive."""
        if (self.host, self.machine) != (socket.gethostname(), _machine()):
            return None
        if self.boot != boot():
            return "the machine was started again since"
        if self.space != space():  # another container: its processes can't be seen from here
            return None
        if since(self.pid) != self.started:
            return f"its process {self.pid} is gone"
        return None


class Leases:
    """The leases of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    @contextmanager
    def held(self, kind: str, digests: Sequence[str], about: str) -> Iterator[None]:
        """Protects these adapters while the block runs. A store that can't be written needs no protection.

        Those that a collection has just taken come back from the trash, which may not last as long as the block.
        """
        if not digests:
            yield
            return
        lease = Lease(
            kind, tuple(digests), about, now(), os.getpid(), socket.gethostname(),
            boot(), space(), since(os.getpid()), f"{kind}-{secrets.token_hex(6)}", _machine(),
        )  # fmt: skip
        path = self._layout.leases / f"{lease.id}.json"
        try:
            with locked(self._layout.lock, exclusive=False):
                write_file(path, json.dumps(asdict(lease)).encode(), self._layout.tmp)
                for digest in digests:
                    with suppress(NotFoundError):  # whoever reads the adapter says so better
                        Trash(self._layout).restore(digest)
        except OSError as error:
            if not is_read_only(error):
                raise
            yield
            return
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def all(self) -> list[Lease]:
        """Every lease. StoreDamagedError for one that can't be read: what it protects is unknown."""
        found = []
        for path in self.paths():
            with suppress(FileNotFoundError):  # it has just ended
                found.append(self.read(path))
        return found

    def paths(self) -> list[Path]:
        """The files of all leases."""
        return sorted(self._layout.leases.glob("*.json")) if self._layout.leases.is_dir() else []

    def forget(self, pid: int) -> None:
        """Takes away what a process that was killed has left behind."""
        for path in self.paths():
            with suppress(OSError, StoreDamagedError):
                lease = self.read(path)
                if lease.pid == pid and lease.stale() is not None:
                    path.unlink()

    def read(self, path: Path) -> Lease:
        """One lease; StoreDamagedError where the file is none."""
        try:
            lease = msgspec.json.decode(path.read_bytes(), type=Lease)
            if not all(map(is_digest, lease.digests)):
                raise ValueError("it names what is no digest")
            return lease
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise StoreDamagedError(
                f"The lease {path.name} can't be read.",
                why=f"{path}: {error}. What it protects is unknown.",
                hint="Set it aside: adapterhub fsck --repair",
            ) from None

    def live(self) -> list[Lease]:
        """Those that protect something."""
        return [lease for lease in self.all() if lease.stale() is None]


def _machine() -> str:
    """Names this machine; empty where the system doesn't say."""
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return ""
