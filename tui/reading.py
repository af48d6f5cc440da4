"""What the screen asks of the store. Every function here may block, so it is called in a thread, never on the event loop.

One damaged adapter must not hide the others: damage is found name by name and becomes that row's `problem`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapterhub.cli.library import describe, details
from adapterhub.errors import AdapterHubError
from adapterhub.names import Name, parse_name
from adapterhub.store import Entry, Resolved, Store
from adapterhub.tui.about import in_words, problem_in_words
from adapterhub.tui.facts import Section
from adapterhub.tui.model import Problem, Row

Stamp = tuple[int, int, int] | None
"""Which file is there, how long and of when, as one `stat` tells it; None where there is none."""


def read_rows(store: Store) -> tuple[Row, ...]:
    """Every name in the store, in order, damaged ones too. Raises only where the store as a whole can't be read."""
    damaged: list[Row] = []

    def keep(name: Name, error: AdapterHubError) -> None:
        damaged.append(Row(str(name), problem=Problem.of(error)))

    rows = [_row(store, entry) for entry in store.entries(keep)]
    return tuple(sorted(rows + damaged, key=lambda row: row.name))


def read_details(store: Store, row: Row, names: Mapping[str, str]) -> tuple[Section, ...]:
    """Everything known about an adapter, in sections. `names` gives a digest its name, where it has one."""
    if row.problem is not None:
        return problem_in_words(row, row.problem)
    try:
        resolved = Resolved(row.digest, store.manifest(row.digest), parse_name(row.name))
        known = store.attestations(row.digest)
        return in_words(row, details(store, resolved), known, names)
    except Exception as error:  # noqa: BLE001 - what one adapter's files do must not end the screen
        return problem_in_words(row, Problem.of(error))


def names_stamp(store: Store) -> Stamp:
    """Changes whenever a name does."""
    return _stamp(store.layout.journal)


def knowledge_stamp(store: Store, digest: str) -> Stamp:
    """Changes whenever something more is known about the adapter `digest`."""
    return _stamp(store.layout.attestations(digest))


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns)


def _row(store: Store, entry: Entry) -> Row:
    facts = describe(entry)
    targets = facts["targets"] or ()
    return Row(
        name=facts["name"],
        digest=facts["digest"],
        added=facts["added"],
        kind=facts["kind"],
        base=_base(store, entry),
        rank=facts["rank"],
        alpha=facts["alpha"],
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        size=facts["size"],
    )


def _base(store: Store, entry: Entry) -> str:
    try:
        return store.base_label(entry.digest, entry.manifest) or ""
    except AdapterHubError:  # a damaged attestation: the detail pane says so
        return ""
