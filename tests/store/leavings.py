"""What killed processes leave in a store, written with none of the product's code."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.store.watching import at


class KilledError(BaseException):
    """Where a process dies: nothing handles it."""


def leave_temporary(home: Path, data: bytes) -> None:
    """Half a copy, of a writer that was killed."""
    (home / "store" / "tmp" / f".{os.getpid()}.{secrets.token_hex(6)}.tmp").write_bytes(data)


def leave_files(home: Path, shelf: str, files: Mapping[str, bytes]) -> None:
    """Files on a shelf that nothing leads to yet. Those that are there stay."""
    for digits, data in files.items():
        path = at(home / "store" / shelf, digits)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            path.chmod(0o444)


def leave_lease(home: Path, lease: Mapping[str, Any]) -> None:
    """The lease of a process that is gone: another has its number now."""
    path = home / "store" / "leases" / f"gone-{secrets.token_hex(6)}.json"
    path.write_text(json.dumps({**lease, "started": 12345}))


def leave_torn_line(home: Path) -> None:
    """The beginning of a line that was being appended."""
    with (home / "store" / "log" / "refs.jsonl").open("ab") as file:
        file.write(b'{"time": "2026-01-01T00:0')


def leave_operation(
    home: Path,
    moves: Sequence[tuple[str, str | None, str | None]],
    *,
    now: str,
    applied: int,
    torn: bool,
) -> None:
    """The lines of an operation without their end, and its first `applied` refs changed; perhaps its last line is half.

    Args:
        moves: refs' paths below refs/, what they said, what they are to say.
    """
    journal, operation = home / "store" / "log" / "refs.jsonl", secrets.token_hex(6)
    lines = b"".join(
        json.dumps(
            {"time": now, "who": "gone@here", "op": "rm", "ref": _name(ref), "before": before,
             "after": after, "why": "killed", "id": operation, "about": ""}
        ).encode() + b"\n"
        for ref, before, after in moves
    )  # fmt: skip
    whole, newline, _ = journal.read_bytes().rpartition(
        b"\n"
    )  # writers begin behind the last whole line
    journal.write_bytes(whole + newline + (lines[:-9] if torn else lines))
    for ref, _, after in moves[:applied]:
        path = home / "store" / "refs" / ref
        if after is None:
            path.unlink()
            for folder in (path.parent, path.parent.parent):
                if not any(folder.iterdir()):
                    folder.rmdir()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{after}\n")


def _name(ref: str) -> str:
    namespace, name, tag = ref.split("/")
    path = name if namespace == "_" else f"{namespace}/{name}"
    return path if tag == "latest" else f"{path}:{tag}"


@contextmanager
def killed_after(renames: int) -> Iterator[None]:
    """The process dies instead of renaming another file or folder of the store."""
    real, left = Path.rename, [renames]

    def rename(path: Path, target: Path) -> Path:
        if not left[0]:
            raise KilledError
        left[0] -= 1
        return real(path, target)

    with mock.patch.object(Path, "rename", rename):
        try:
            yield
        except KilledError:
            pass
