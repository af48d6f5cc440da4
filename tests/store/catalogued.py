"""What a catalogue says, in forms that can be compared: with the refs, and with a catalogue made from nothing."""

from __future__ import annotations

import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest

from adapterhub.names import Name
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.catalogue.search import Query, search
from tests.store.watching import refs

Names = dict[str, str | None]


def names(catalogue: Catalogue) -> Names:
    """What the catalogue lists."""
    return catalogue.ask(lambda db: dict(db.execute("SELECT label, digest FROM names")))


def truth(home: Path) -> Names:
    """What the refs say, read without the product's code."""
    found: Names = {}
    for path, text in refs(home).items():
        namespace, name, tag = path.split("/")
        found[str(Name("" if namespace == "_" else namespace, name, tag))] = text.strip()
    return found


def everything(catalogue: Catalogue) -> dict[str, Any]:
    """All that the catalogue knows of the store, without the numbers that SQLite gave the rows."""
    queries = {
        "names": "SELECT label, names.digest, added, names.error, adapters.digest FROM names LEFT JOIN adapters ON id = adapter",
        "files": "SELECT a.digest, path, f.digest, f.size FROM files f JOIN adapters a ON a.id = adapter",
        "parents": "SELECT digest, position, parent, name, how, at FROM parents JOIN adapters ON id = adapter",
        "based": """SELECT digest, b.fingerprint, b.repo, b.revision, b.how, b.at FROM based b
                    JOIN adapters ON id = adapter""",
        "search": "SELECT digest, names, about FROM search JOIN adapters ON id = search.rowid",
        "touched": "SELECT * FROM touched",
    }

    def dump(db: sqlite3.Connection) -> dict[str, Any]:
        found = {table: sorted(map(repr, db.execute(query))) for table, query in queries.items()}
        cursor = db.execute("SELECT * FROM adapters")
        columns = [column[0] for column in cursor.description]
        rows = [dict(zip(columns, row, strict=True)) for row in cursor]
        found["adapters"] = sorted(repr({**row, "id": 0, "shape": 0}) for row in rows)
        return found

    return catalogue.ask(dump)


def rebuilt(catalogue: Catalogue) -> dict[str, Any]:
    """The same from nothing, in another file."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADAPTERHUB_CACHE", folder)
        return everything(Catalogue(catalogue.layout))


def found(catalogue: Catalogue, text: str) -> list[str]:
    """The names that a search finds."""
    return [row.name for row in catalogue.ask(lambda db: search(db, Query(text=text), {}))]


def merged(*parents: str) -> dict[str, Any]:
    """What a merge of these digests says about its result."""
    named = [{"digest": digest, "name": f"was-{n}"} for n, digest in enumerate(parents)]
    return {"event": "merged", "recipe": {"method": "ties"}, "parents": named}
