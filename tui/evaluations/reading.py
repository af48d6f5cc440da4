"""What the table of evaluations asks of the hub. It blocks, so it is called in a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.errors import AdapterHubError
from adapterhub.store import Store
from adapterhub.tui.problem import Problem

if TYPE_CHECKING:  # numpy comes with it
    from adapterhub.evaluate.side_by_side import Known, Table


@dataclass(frozen=True)
class Seen:
    """The tables that there are, and of whom nothing could be read."""

    tables: tuple[Table, ...]
    commands: tuple[str, ...] = ()
    """For each the command line that would fill its gaps; empty where there is none."""
    problems: tuple[tuple[str, Problem], ...] = ()
    """Name and problem."""


def look(store: Store, names: Sequence[str]) -> Seen:
    """What these adapters were evaluated on, side by side. One that is damaged doesn't hide the others."""
    from adapterhub.evaluate.gaps import command
    from adapterhub.evaluate.side_by_side import side_by_side

    known, problems = [], []
    for name in names:
        try:
            known.append(_known(store, name))
        except Exception as error:  # noqa: BLE001 - what one adapter's files do must not end the screen
            problems.append((name, Problem.of(error)))
    tables = side_by_side(known, _suites(store))
    return Seen(tables, tuple(map(command, tables)), tuple(problems))


def _known(store: Store, name: str) -> Known:
    from adapterhub.evaluate.side_by_side import Known

    digest = store.resolve(name).digest
    return Known(name, digest, store.known_fingerprint(digest), store.attestations(digest))


def _suites(store: Store) -> dict[str, str]:
    """The digests of suites as they are today: those shipped, and those that gates ask for.

    No others: a suite's name in an evaluation may be any path that whoever wrote it thought of.
    """
    from adapterhub.evaluate.gates import suite_digest, suite_name
    from adapterhub.evaluate.suite import SHIPPED

    asked = [demand.suite for gate in store.settings.gates for demand in gate.demands]
    found = {}
    for name in {*SHIPPED, *filter(None, asked)}:
        try:
            found[suite_name(name)] = suite_digest(name)
        except (AdapterHubError, OSError):  # a file that is gone is no other version
            continue
    return found
