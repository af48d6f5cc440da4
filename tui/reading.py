"""What the screen asks of the store. Every function here may block, so it is called in a thread, never on the event loop.

One damaged adapter must not hide the others: damage is found name by name and becomes that row's `problem`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from adapterhub.cli.library import describe, details
from adapterhub.errors import AdapterHubError, StoreDamagedError, UsageError
from adapterhub.names import Name, parse_name
from adapterhub.store import Entry, Resolved, Store
from adapterhub.tui.about import in_words, problem_in_words
from adapterhub.tui.facts import Section
from adapterhub.tui.model import Problem, Row

Stamp = tuple[int, int, int] | None
"""Which file is there, how long and of when, as one `stat` tells it; None where there is none."""


def read_rows(store: Store) -> tuple[Row, ...]:
    """Every name in the store, damaged ones too. Raises only where the store as a whole can't be read."""
    return tuple(_row(store, name, digest) for name, digest in _refs(store))


def read_details(store: Store, row: Row, names: Mapping[str, str]) -> tuple[Section, ...]:
    """Everything known about an adapter, in sections. `names` gives a digest its name, where it has one."""
    if row.problem is not None:
        return problem_in_words(row, row.problem)
    try:
        resolved = Resolved(row.digest, store.manifest(row.digest), parse_name(row.name))
        return in_words(
            details(store, resolved), store.attestations(row.digest), names, added=row.added
        )
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


def _refs(store: Store) -> Iterator[tuple[Name, str | Problem]]:
    """Every name and its digest, or why that can't be told."""
    try:
        yield from store.refs.all()
        return
    except StoreDamagedError:
        pass  # one ref is damaged, and nobody says which are not: go through the names of the journal one by one
    for text in sorted({change.ref for change in store.log()}):
        try:
            name = parse_name(text)
            digest = store.refs.read(name)
        except StoreDamagedError as error:
            yield parse_name(text), Problem.of(error)
        except UsageError:
            continue  # a line somebody else wrote into the journal
        else:
            if digest is not None:
                yield name, digest


def _row(store: Store, name: Name, digest: str | Problem) -> Row:
    added = _added(store, name)
    if isinstance(digest, Problem):
        return Row(str(name), "", added, problem=digest)
    try:
        facts = describe(Entry(name, digest, store.manifest(digest), added))
    except (AdapterHubError, OSError) as error:
        return Row(str(name), digest, added, problem=Problem.of(error))
    targets = facts["targets"] or ()
    return Row(
        name=facts["name"],
        digest=digest,
        added=added,
        kind=facts["kind"],
        base=facts["base"] or "",
        rank=facts["rank"],
        alpha=facts["alpha"],
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        size=facts["size"],
    )


def _added(store: Store, name: Name) -> str:
    """When the name was last set, as `Entry.added` says it; empty when it vanished while we looked."""
    try:
        return datetime.fromtimestamp(store.layout.ref(name).stat().st_mtime, UTC).isoformat(
            timespec="seconds"
        )
    except OSError:
        return ""
