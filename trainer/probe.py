"""How much of its rank an adapter uses: the spectrum of what each module learned, and the rank that would have done.

The best approximation of a delta of any lower rank keeps the largest singular values (Eckart and Young 1936), so the
squares of those are the energy that a smaller rank would have kept of *this* delta. It is a bound from above on what a
training at that rank would have reached, and in practice a good guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from adapterhub.words import natural

if TYPE_CHECKING:
    from adapterhub.lora.adapter import Adapter

SHARES = (0.9, 0.95, 0.99)
"""Shares of the energy for which the rank that is enough is told."""
ENOUGH = 0.99
"""The share that a recommended rank keeps."""
FLAT = 0.75
"""Half the directions of a flat spectrum hold half its energy, and those of random factors less than this share."""


@dataclass(frozen=True)
class ModuleProbe:
    """What one module learned.

    values: the singular values of its delta, scale included, falling; those that are rounding noise are left out.
    rank: of its factors. dead: the factors that are all zero, "A" and "B".
    """

    name: str
    shape: tuple[int, int]
    rank: int
    values: tuple[float, ...]
    effective_rank: float
    stable_rank: float
    dead: tuple[str, ...]

    @property
    def part(self) -> str:
        """The last part of its name: q_proj, ..."""
        return self.name.rpartition(".")[2]

    @cached_property
    def energies(self) -> tuple[float, ...]:
        """The squares of the singular values."""
        return tuple(value**2 for value in self.values)


@dataclass(frozen=True)
class Spectra:
    """Some modules taken together: every one of them cut at the same rank."""

    modules: Sequence[ModuleProbe]

    @property
    def rank(self) -> int:
        """The largest rank among them."""
        return max((module.rank for module in self.modules), default=0)

    @cached_property
    def energy(self) -> float:
        """The squared Frobenius norm of all deltas."""
        return math.fsum(energy for module in self.modules for energy in module.energies)

    @property
    def norm(self) -> float:
        return math.sqrt(self.energy)

    @cached_property
    def _kept(self) -> tuple[float, ...]:
        """The energy below each cut: at index r that of the r largest directions of every module."""
        by_place = [
            math.fsum(m.energies[place] for m in self.modules if place < len(m.energies))
            for place in range(self.rank)
        ]
        return (0.0, *accumulate(by_place))

    def kept(self, rank: int) -> float:
        """The share of the energy that cutting every module at `rank` keeps; 1 where there is none."""
        if self.energy == 0:
            return 1.0
        return min(1.0, self._kept[min(rank, self.rank)] / self.energy)

    def needed(self, share: float) -> int:
        """The smallest rank that keeps `share` of the energy; 0 where nothing was learned."""
        if self.energy == 0:
            return 0
        return next((rank for rank in range(self.rank) if self.kept(rank) >= share), self.rank)

    def mean(self, measure: Callable[[ModuleProbe], float]) -> float:
        """The mean of a number of each module, by energy: what hardly changed has hardly a say."""
        if self.energy == 0:
            return 0.0
        return math.fsum(math.fsum(m.energies) * measure(m) for m in self.modules) / self.energy

    def record(self) -> dict[str, Any]:
        """The numbers of these modules together, as `--json` has them."""
        return {
            "norm": self.norm,
            "effective_rank": self.mean(lambda module: module.effective_rank),
            "stable_rank": self.mean(lambda module: module.stable_rank),
            "kept": {str(rank): self.kept(rank) for rank in cuts(self.rank)},
            "needed": {f"{share:g}": self.needed(share) for share in SHARES},
        }


@dataclass(frozen=True)
class Recommendation:
    """A rank, and why in a sentence."""

    rank: int
    words: str


@dataclass(frozen=True)
class Probe:
    """The spectra of a whole adapter."""

    label: str
    modules: tuple[ModuleProbe, ...]

    @cached_property
    def whole(self) -> Spectra:
        return Spectra(self.modules)

    @cached_property
    def parts(self) -> dict[str, Spectra]:
        """The modules of one kind (q_proj, ...) together, in order of their first."""
        found: dict[str, list[ModuleProbe]] = {}
        for module in self.modules:
            found.setdefault(module.part, []).append(module)
        return {part: Spectra(modules) for part, modules in found.items()}

    @cached_property
    def recommendation(self) -> Recommendation:
        """The rank to train with next time."""
        return recommend(self.whole)

    @property
    def record(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "rank": self.whole.rank,
            **self.whole.record(),
            "recommended_rank": self.recommendation.rank,
            "recommendation": self.recommendation.words,
            "modules": [
                {
                    "module": module.name,
                    "shape": list(module.shape),
                    "rank": module.rank,
                    "dead": list(module.dead),
                    "singular_values": list(module.values),
                    **Spectra([module]).record(),
                }
                for module in self.modules
            ],
        }


def probe(adapter: Adapter, done: Callable[[], object] = lambda: None) -> Probe:
    """Probes an adapter that `adapterhub.lora.adapter.opened` opened; `done` is called after each module."""
    from adapterhub.parallel import for_each

    names = sorted(adapter.modules, key=natural)
    modules = for_each(names, lambda name: _module(adapter, name), workers=None, done=done)
    return Probe(adapter.label, tuple(modules))


def recommend(spectra: Spectra) -> Recommendation:
    """The rank that would have done for these modules, or a larger one where all of it is used evenly."""
    full = spectra.rank
    if spectra.energy == 0:
        return Recommendation(full, "Nothing was learned, so there is no rank to recommend.")
    enough = next(rank for rank in cuts(full) if spectra.kept(rank) >= ENOUGH or rank == full)
    used = spectra.mean(lambda module: module.effective_rank)
    if enough < full:
        return Recommendation(
            enough,
            f"Rank {enough} would have kept {_percent(spectra.kept(enough))} of what rank {full} learned.",
        )
    half = max(1, full // 2)
    if full == 1:
        return Recommendation(
            2, "Rank 1 is used whole, as it must be; rank 2 shows whether it is enough."
        )
    if spectra.kept(half) < FLAT:
        return Recommendation(
            2 * full,
            f"The spectrum is flat up to the full rank {full}: half of it would have kept "
            f"{_percent(spectra.kept(half))} only, and the effective rank is {used:.1f}. Double it.",
        )
    return Recommendation(
        full,
        f"Rank {full} is about right: rank {half} would have kept {_percent(spectra.kept(half))}, and the effective rank "
        f"is {used:.1f}.",
    )


def cuts(rank: int) -> list[int]:
    """1, 2, 4, ... and `rank` itself."""
    return (
        [*(2**power for power in range(rank.bit_length()) if 2**power < rank), rank] if rank else []
    )


def _module(adapter: Adapter, name: str) -> ModuleProbe:
    from adapterhub.compare.cores import cores

    factors = adapter.factors(name)
    (core,) = cores([factors])
    module = adapter.modules[name]
    b, a = adapter.file.scan(module.b.name)[1], adapter.file.scan(module.a.name)[1]
    return ModuleProbe(
        name,
        factors.shape,
        factors.rank,
        tuple(core.s.tolist()),
        core.effective_rank,
        core.stable_rank,
        tuple(factor for factor, alive in (("A", a), ("B", b)) if not alive),
    )


def _percent(share: float) -> str:
    """A share that is not 1 never reads as 100%."""
    return f"{min(share, 0.999):.1%}" if share < 1 else "100%"
