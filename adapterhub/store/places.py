"""Where on this machine an adapter's files have been seen: the folders they were added from and checked out to.

No part of any identity, and never trusted: a repair looks there for lost bytes and hashes what it finds.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from adapterhub.errors import AdapterHubError
from adapterhub.store.journal import append_lines
from adapterhub.store.layout import Layout


class Places:
    """`places.jsonl` of one store."""

    def __init__(self, layout: Layout) -> None:
        self._path = layout.places

    def remember(self, digest: str, folder: Path) -> None:
        """Notes that `folder` holds the adapter's files. Where that can't be written, nothing is lost but a hint."""
        line = {"digest": digest, "folder": os.fsdecode(folder.absolute())}
        if line["folder"] in self.of(digest):
            return
        with suppress(OSError, AdapterHubError):
            append_lines(self._path, json.dumps(line).encode() + b"\n", durable=False)

    def of(self, digest: str) -> list[str]:
        """The folders that held it, the latest first."""
        wanted = digest.encode()
        try:
            lines = self._path.read_bytes().split(b"\n")
        except OSError:
            return []
        found = []
        for line in reversed(lines):
            if wanted in line:
                with suppress(ValueError, KeyError, TypeError, RecursionError):
                    found.append(str(json.loads(line)["folder"]))
        return list(dict.fromkeys(found))
