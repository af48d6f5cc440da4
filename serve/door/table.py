"""What the names of a running server mean: an alias, its versions, and where it pointed before.

A request is routed once, when it arrives, so an alias that moves while answers are written mixes no versions. Every
change replaces the whole mapping at once; readers on the event loop never see half of one.
"""

from __future__ import annotations

import difflib
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.names import MIN_DIGEST_PREFIX
from adapterhub.serve.naming import engine_name, version_name

HISTORY = 8
"""Earlier meanings of an alias that are kept for rolling back; their versions can still be asked for by digest."""


@dataclass(frozen=True)
class Target:
    """One version that an alias may mean, and its share of the requests: weight over the sum of weights."""

    digest: str
    weight: float = 1.0


@dataclass(frozen=True)
class Alias:
    """A public name. `targets` has several entries where requests are split; `earlier` is newest first."""

    name: str
    targets: tuple[Target, ...]
    created: int
    earlier: tuple[tuple[Target, ...], ...] = ()
    left: tuple[str, ...] = ()
    """Versions that were rolled back from, newest first: they too mean the same weights for ever."""

    @property
    def digests(self) -> set[str]:
        """The versions it means now and meant before."""
        meant = {target.digest for targets in (self.targets, *self.earlier) for target in targets}
        return meant | set(self.left)


@dataclass(frozen=True)
class Model:
    """A line of /v1/models. `digest` is None for the base, and for an alias that is split."""

    name: str
    digest: str | None
    alias: bool
    created: int


@dataclass(frozen=True)
class Route:
    """Who answers a request for `name`; `digest` None is the base."""

    name: str
    digest: str | None


class Table:
    """Aliases by name. `base` is the public name of the base."""

    def __init__(self, base: str, started: int | None = None) -> None:
        self.base = base
        self._started = int(time.time()) if started is None else started
        self._aliases: dict[str, Alias] = {}
        self._versions: dict[str, set[str]] = {}
        """By what stands before the @ of a version's name."""

    @property
    def aliases(self) -> tuple[Alias, ...]:
        """Every alias, in the order they came."""
        return tuple(self._aliases.values())

    def digests(self) -> set[str]:
        """Every version that can be asked for."""
        return set().union(*self._versions.values())

    def models(self) -> list[Model]:
        """The base, then every alias and the versions it means now, each once."""
        found = {self.base: Model(self.base, None, False, self._started)}
        for alias in self._aliases.values():
            digest = alias.targets[0].digest if len(alias.targets) == 1 else None
            found[alias.name] = Model(alias.name, digest, True, alias.created)
            for target in alias.targets:
                version = version_name(alias.name, target.digest)
                found.setdefault(version, Model(version, target.digest, False, alias.created))
        return list(found.values())

    def route(self, model: str, sticky: str) -> Route | None:
        """Who answers, or None for an unknown name. Where an alias is split, equal `sticky` goes to equal versions."""
        if model == self.base:
            return Route(model, None)
        if (alias := self._aliases.get(model)) is not None:
            return Route(model, _chosen(alias, sticky))
        digest = self._version(model)
        return None if digest is None else Route(model, digest)

    def like(self, model: str) -> list[str]:
        """Names that a mistyped one may have meant, best first."""
        return difflib.get_close_matches(model, [one.name for one in self.models()], 3)

    def set(self, name: str, targets: Sequence[Target]) -> Alias:
        """Makes `name` mean `targets` from now on; what it meant before can be rolled back to."""
        before = self._aliases.get(name)
        if before is None:
            alias = Alias(name, tuple(targets), int(time.time()))
        elif before.targets == tuple(targets):
            return before
        else:
            earlier = (before.targets, *before.earlier)[:HISTORY]
            alias = replace(before, targets=tuple(targets), earlier=earlier)
        self._replace({**self._aliases, name: alias})
        return alias

    def rollback(self, name: str) -> Alias | None:
        """Makes `name` mean what it meant before; None where it never meant anything else."""
        before = self._aliases[name]
        if not before.earlier:
            return None
        left = dict.fromkeys([*(target.digest for target in before.targets), *before.left])
        alias = replace(
            before,
            targets=before.earlier[0],
            earlier=before.earlier[1:],
            left=tuple(left)[:HISTORY],
        )
        self._replace({**self._aliases, name: alias})
        return alias

    def remove(self, name: str) -> Alias:
        """Takes the name and its versions away."""
        gone = self._aliases[name]
        self._replace({other: alias for other, alias in self._aliases.items() if other != name})
        return gone

    def _replace(self, aliases: dict[str, Alias]) -> None:
        versions: dict[str, set[str]] = {}
        for alias in aliases.values():
            versions.setdefault(version_name(alias.name, ""), set()).update(alias.digests)
        self._aliases, self._versions = aliases, versions

    def _version(self, model: str) -> str | None:
        """The digest meant by `tone@1f2e3d` or more of it, unless that is none's or several's beginning."""
        path, separator, prefix = model.rpartition("@")
        prefix = prefix.removeprefix(DIGEST_PREFIX)
        if not separator or len(prefix) < MIN_DIGEST_PREFIX:
            return None
        found = [d for d in self._versions.get(f"{path}@", ()) if engine_name(d).startswith(prefix)]
        return found[0] if len(found) == 1 else None


def _chosen(alias: Alias, sticky: str) -> str:
    """The version whose share of [0, 1) holds the hash of alias and `sticky`."""
    if len(alias.targets) == 1:
        return alias.targets[0].digest
    drawn = hashlib.sha256(f"{alias.name}\0{sticky}".encode()).digest()
    place = int.from_bytes(drawn[:8], "big") / 2**64 * sum(t.weight for t in alias.targets)
    for target in alias.targets:
        place -= target.weight
        if place < 0:
            return target.digest
    return alias.targets[-1].digest
