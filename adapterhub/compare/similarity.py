"""Adapters compared: module by module, and the same numbers over any set of modules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from adapterhub.compare.cores import Encounter, cores, encounter
from adapterhub.compare.places import Place, place_of
from adapterhub.compare.signs import SignConflict, sample_rows, sign_conflicts
from adapterhub.lora.adapter import Adapter, all_modules
from adapterhub.parallel import for_each
from adapterhub.words import natural

Pair = tuple[int, int]
"""Two adapters by their positions, the smaller one first."""


@dataclass(frozen=True)
class Strength:
    """One adapter's delta in one module; all 0 where it doesn't change the module."""

    norm: float = 0.0
    rank: int = 0
    effective_rank: float = 0.0
    stable_rank: float = 0.0
    leading: int = 0
    """Dimension of the leading subspaces, see `cores.LEADING`."""


@dataclass(frozen=True)
class Meeting:
    """Two adapters' deltas in one module, neither of them zero."""

    angles: Encounter
    signs: SignConflict


@dataclass(frozen=True)
class Module:
    """One module in all adapters. `pairs` holds those that both change it."""

    name: str
    shape: tuple[int, int]
    strengths: tuple[Strength, ...]
    pairs: Mapping[Pair, Meeting]

    @cached_property
    def place(self) -> Place:
        return place_of(self.name)


@dataclass(frozen=True)
class Selection:
    """Some modules taken together, as if they were one: the deltas of all of them as one vector an adapter."""

    modules: Sequence[Module]

    def norm(self, adapter: int) -> float:
        """Frobenius norm of the adapter's delta."""
        return math.sqrt(sum(module.strengths[adapter].norm ** 2 for module in self.modules))

    def shared(self, pair: Pair) -> Selection:
        """The modules that both change."""
        return Selection([module for module in self.modules if pair in module.pairs])

    def inner(self, pair: Pair) -> float:
        return sum(m.pairs[pair].angles.inner for m in self.modules if pair in m.pairs)

    def cosine(self, pair: Pair) -> float | None:
        """None where one of the adapters changes nothing here."""
        product = self.norm(pair[0]) * self.norm(pair[1])
        return self.inner(pair) / product if product > 0 else None

    def norm_ratio(self, pair: Pair) -> float | None:
        """The second one's norm over the first one's; None where the first changes nothing here."""
        first, second = map(self.norm, pair)
        return second / first if first > 0 else None

    def inside(self, pair: Pair) -> tuple[float | None, float | None]:
        """Share of the first one's energy that lies in the second one's leading subspaces, and the other way round."""
        shares: list[float | None] = []
        for side in (0, 1):
            energy = self.norm(pair[side]) ** 2
            within = sum(
                m.pairs[pair].angles.inside[side] * m.strengths[pair[side]].norm ** 2
                for m in self.modules
                if pair in m.pairs
            )
            shares.append(min(1.0, within / energy) if energy > 0 else None)
        return shares[0], shares[1]

    def overlap(self, pair: Pair) -> float | None:
        """The mean of both shares of `inside`."""
        first, second = self.inside(pair)
        return (first + second) / 2 if first is not None and second is not None else None

    def conflict(self, pair: Pair) -> float | None:
        """Share of elements with opposite signs; None where they share no element."""
        return self._signs(pair, lambda signs: (signs.opposed, signs.shared))

    def top_conflict(self, pair: Pair) -> float | None:
        """The same among the elements that belong to the largest fifth of their module in both."""
        return self._signs(pair, lambda signs: (signs.top_opposed, signs.top_shared))

    def conflict_error(self, pair: Pair) -> float:
        """Standard error of `conflict` by the sampling of rows."""
        found = [m.pairs[pair].signs for m in self.modules if pair in m.pairs]
        total = sum(signs.shared * signs.stands_for for signs in found)
        square = sum((signs.error * signs.shared * signs.stands_for) ** 2 for signs in found)
        return math.sqrt(square) / total if total else 0.0

    def _signs(self, pair: Pair, counts: Callable[[SignConflict], tuple[int, int]]) -> float | None:
        opposed = shared = 0.0
        for module in self.modules:
            if pair in module.pairs:
                signs = module.pairs[pair].signs
                against, both = counts(signs)
                opposed += against * signs.stands_for
                shared += both * signs.stands_for
        return opposed / shared if shared else None


@dataclass(frozen=True)
class Comparison:
    """Adapters compared. `settings` are the facts that differ: name -> value of each; `left_out` is what each one is besides
    its low-rank pairs, which is not compared."""

    labels: tuple[str, ...]
    modules: tuple[Module, ...]
    settings: Mapping[str, tuple[Any, ...]]
    left_out: tuple[tuple[str, ...], ...]
    exact: bool
    """Whether signs were counted in all rows, and not in a sample."""

    @property
    def whole(self) -> Selection:
        return Selection(self.modules)

    @property
    def pairs(self) -> list[Pair]:
        return list(combinations(range(len(self.labels)), 2))


def compare(
    adapters: Sequence[Adapter],
    *,
    exact: bool = False,
    workers: int | None = None,
    done: Callable[[], object] = lambda: None,
) -> Comparison:
    """Compares opened adapters; `exact` counts signs in all rows. `done` is called after each module.

    One module at a time and worker (by default one a core): numpy lets go of the interpreter while it computes.
    """
    names = sorted(all_modules(adapters), key=natural)
    modules = for_each(
        names, lambda name: _module(name, adapters, exact), workers=workers, done=done
    )
    return Comparison(
        _distinct([adapter.label for adapter in adapters]),
        tuple(modules),
        _settings(adapters),
        tuple(tuple(adapter.facts.beyond_lora()) for adapter in adapters),
        exact,
    )


def _module(name: str, adapters: Sequence[Adapter], exact: bool) -> Module:
    owners = [place for place, adapter in enumerate(adapters) if name in adapter.modules]
    factors = [adapters[owner].factors(name) for owner in owners]
    shape = factors[0].shape
    found = dict(zip(owners, cores(factors), strict=True))
    changing = [place for place, owner in enumerate(owners) if found[owner].rank]
    pairs: dict[Pair, Meeting] = {}
    if len(changing) > 1:
        rows = None if exact else sample_rows(name, shape[0])
        signs = sign_conflicts([factors[place] for place in changing], rows)
        for (one, other), conflict in signs.items():
            pair = owners[changing[one]], owners[changing[other]]
            pairs[pair] = Meeting(encounter(found[pair[0]], found[pair[1]]), conflict)
    strengths = [Strength()] * len(adapters)
    for owner, core in found.items():
        strengths[owner] = Strength(
            core.norm, core.rank, core.effective_rank, core.stable_rank, core.leading
        )
    return Module(name, shape, tuple(strengths), pairs)


def _distinct(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels, numbered where one comes twice."""
    return tuple(
        label if label not in labels[:place] else f"{label} ({labels[: place + 1].count(label)})"
        for place, label in enumerate(labels)
    )


def _settings(adapters: Sequence[Adapter]) -> dict[str, tuple[Any, ...]]:
    found = [_facts(adapter) for adapter in adapters]
    rows = {name: tuple(facts[name] for facts in found) for name in found[0]}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _facts(adapter: Adapter) -> dict[str, Any]:
    manifest, facts = adapter.resolved.manifest, adapter.facts
    config = facts.config
    return {
        "base": manifest.base.repo,
        "revision": manifest.base.revision,
        "kind": facts.kind,
        "rank": config.rank,
        "alpha": config.alpha,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "use_rslora": config.use_rslora,
        "bias": config.bias,
        "modules_to_save": list(config.modules_to_save),
        "targets": facts.targets,
        "modules": len(facts.modules),
        "parameters": facts.parameters,
        "dtype": facts.dtype,
    }
