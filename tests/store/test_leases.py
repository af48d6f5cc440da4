"""Leases: what runs protects what it uses for as long as its process lives, and not a moment longer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapterhub.errors import StoreDamagedError
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.garbage import collect
from tests.store.ageing import everything
from tests.store.watching import unchanged
from tests.support.adapters import AdapterMaker

_HOLDER = """
import sys, time
from pathlib import Path
from adapterhub.store import Store
with Store.open(Path(sys.argv[1])).leases.held("serve", [sys.argv[2]], "at a port"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def digest(store: Store, make_adapter: AdapterMaker) -> str:
    """An adapter that no name leads to."""
    digest = store.add_folder(make_adapter("tone")).digest
    store.remove([parse_name("tone")])
    return digest


@contextmanager
def held_elsewhere(home: Path, digest: str) -> Iterator[subprocess.Popen[str]]:
    """Another process with a lease."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(home), digest],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def swept(store: Store) -> bool:
    return collect(store, grace=0, trash_grace=86400).trash is not None


def lease(store: Store) -> Path:
    (path,) = store.layout.leases.iterdir()
    return path


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_lease_names_its_work_and_ends_with_it(store: Store, digest: str) -> None:
    with store.leases.held("merge", [digest], "into both"):
        (held,) = store.leases.live()
        assert (held.kind, held.digests, held.about) == ("merge", (digest,), "into both")
        assert (held.pid, held.host) == (os.getpid(), socket.gethostname())
        assert not swept(store)
    assert store.leases.all() == []
    assert swept(store)


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_a_lease_ends_when_the_work_fails_or_is_interrupted(
    end: type[BaseException], store: Store, digest: str
) -> None:
    with pytest.raises(end), store.leases.held("merge", [digest], "into both"):
        raise end
    assert list(store.layout.leases.iterdir()) == []


def test_two_leases_of_one_process_protect_until_the_last_ends(store: Store, digest: str) -> None:
    with store.leases.held("serve", [digest], "one"):
        with store.leases.held("serve", [digest], "two"):
            assert len(store.leases.live()) == 2
        assert not swept(store)
    assert swept(store)


@pytest.mark.parametrize(
    ("number", "left"), [(signal.SIGINT, False), (signal.SIGKILL, True)], ids=["ctrl-c", "killed"]
)
def test_a_lease_protects_while_its_process_lives(
    number: signal.Signals, left: bool, store: Store, digest: str
) -> None:
    with held_elsewhere(store.home, digest) as process:
        assert not swept(store)
        process.send_signal(number)
        process.wait()
    assert lease(store).exists() if left else list(store.layout.leases.iterdir()) == []
    assert [held.stale() for held in store.leases.all()] == (
        [f"its process {process.pid} is gone"] if left else []
    )
    assert swept(store)


def test_a_process_that_is_dead_and_not_yet_buried_protects_nothing(
    store: Store, digest: str
) -> None:
    """In a container whose first process buries nobody, the dead stay in the table for ever."""
    with held_elsewhere(store.home, digest) as process:
        assert len(store.leases.live()) == 1
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert ") Z " in Path(f"/proc/{process.pid}/stat").read_text()
        assert store.leases.live() == []


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"boot": "another start"}, "the machine was started again since"),
        ({"started": 7}, "its process {pid} is gone"),
        ({"pid": 2**22 + 1}, "its process 4194305 is gone"),
        ({"host": "elsewhere", "boot": "another", "pid": 2**22 + 1}, None),
        ({"machine": "a twin by name", "boot": "another"}, None),
        ({"space": "pid:[1]", "pid": 2**22 + 1}, None),
        ({"added in a later version": True}, None),
    ],
    ids=[
        "another boot",
        "another process with its number",
        "no process",
        "another host",
        "another machine of the same name",
        "another container",
        "unknown fields",
    ],
)
def test_whether_a_lease_is_stale(
    fields: dict[str, object], why: str | None, store: Store, digest: str
) -> None:
    with store.leases.held("serve", [digest], "at a port"):
        change(lease(store), **fields)
        (held,) = store.leases.all()
        assert held.stale() == (why.format(pid=os.getpid()) if why else None)
        assert swept(store) == (why is not None)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "\0", '{"kind": "serve"}', '{"pid": "one"}', "\xff"]
)
def test_a_lease_that_cannot_be_read_is_named_and_nothing_is_collected(
    text: str, store: Store, digest: str
) -> None:
    with store.leases.held("serve", [digest], "at a port"):
        pass
    path = store.layout.leases / "serve-1.json"
    path.write_bytes(text.encode("latin-1"))
    with unchanged(store.home), pytest.raises(StoreDamagedError, match=r"serve-1\.json"):
        store.leases.live()
    before = everything(store.home)
    with pytest.raises(StoreDamagedError, match="Nothing was collected"):
        swept(store)
    assert everything(store.home) == before


def test_a_half_written_lease_is_no_lease(store: Store, digest: str) -> None:
    """It is written beside, and appears whole."""
    store.layout.leases.mkdir()
    (store.layout.leases / ".serve-1.json.tmp").write_text("{")
    assert store.leases.live() == []
