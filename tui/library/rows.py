"""One line of the library: a name, and what the catalogue says of the adapter behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from adapterhub.names import DEFAULT_TAG
from adapterhub.tui.problem import Problem

NO_NAMESPACE = "/"
"""Means the names without a namespace, where a namespace is expected."""


@dataclass(frozen=True, eq=False)
class Row:
    """One name in the store. Where the adapter behind it can't be read, `problem` says why and the facts are empty."""

    name: str
    digest: str = ""
    added: str = ""
    kind: str = ""
    base: str = ""
    rank: int | None = None
    targets: tuple[str, ...] = ()
    size: int | None = None
    event: str = ""
    method: str = ""
    metric: str = ""
    score: float | None = None
    """What the newest evaluation measured."""
    scored_on: str = ""
    """Digest of the rows that it measured it on: on other rows the number means something else."""
    problem: Problem | None = None

    @cached_property
    def path(self) -> str:
        """`namespace/name`, without the tag."""
        return self.name.partition(":")[0]

    @property
    def tag(self) -> str:
        """The tag, empty where it is the one that needs no saying."""
        return self.name.partition(":")[2]

    @property
    def namespace(self) -> str:
        """What comes before the name; empty where nothing does."""
        return self.path.rpartition("/")[0]

    def warm(self) -> Row:
        """The row with what the filter looks through already made, so that the first key needn't."""
        _ = self.path, self.lowered, self.others
        return self

    @cached_property
    def lowered(self) -> str:
        """The name as the filter looks through it."""
        return self.name.lower()

    @cached_property
    def others(self) -> str:
        """What else the filter looks through."""
        return " ".join((self.kind, self.base, *self.targets)).lower()

    def within(self, space: str) -> bool:
        """Whether it is in this namespace, or has this `namespace/name`; everything is in ""."""
        if space == NO_NAMESPACE:
            return not self.namespace
        return not space or space in (self.namespace, self.path)


@dataclass(frozen=True)
class Space:
    """A namespace, or a name with several tags, and how many rows it has."""

    path: str
    """What `Row.within` is asked."""
    label: str
    count: int
    parts: tuple[Space, ...] = ()


def spaces(rows: Iterable[Row]) -> tuple[Space, ...]:
    """The namespaces of `rows` in order; in each, the names that have several tags."""
    tags = Counter(row.path for row in rows)
    sizes: Counter[str] = Counter()
    several: dict[str, list[Space]] = {}
    for path, count in sorted(tags.items()):
        namespace, _, name = path.rpartition("/")
        sizes[namespace] += count
        if count > 1:
            several.setdefault(namespace, []).append(Space(path, name, count))
    return tuple(
        Space(
            namespace or NO_NAMESPACE,
            namespace or "(no namespace)",
            count,
            tuple(several.get(namespace, ())),
        )
        for namespace, count in sorted(sizes.items())
    )


def usual_rows(rows: Iterable[Row]) -> str:
    """The digest of the rows that most adapters were evaluated on, each adapter once."""
    told = {row.digest: row.scored_on for row in rows if row.score is not None}
    most = Counter(sorted(told.values())).most_common(1)
    return most[0][0] if most else ""


def full_name(path: str, tag: str) -> str:
    """A name from its path and tag."""
    return path if tag in ("", DEFAULT_TAG) else f"{path}:{tag}"
