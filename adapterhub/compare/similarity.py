"""Norms and angles between two adapters' deltas, module by module, without ever forming a delta.

<ΔW₁, ΔW₂> = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ), so an inner product costs rank², not m·n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapterhub.lora.adapter import Adapter, Factors, all_modules

ORTHOGONAL = 0.05
"""Cosines below this are what unrelated directions in thousands of dimensions give."""

IMBALANCE = 4.0
"""Norms further apart than this are worth a word."""


@dataclass(frozen=True)
class ModuleDifference:
    """One module in two adapters. Norms are Frobenius norms of the deltas, 0 where the module isn't changed."""

    module: str
    norm_a: float
    norm_b: float
    inner: float

    @property
    def cosine(self) -> float | None:
        """Cosine between the deltas; None where one of them is zero."""
        return (
            self.inner / (self.norm_a * self.norm_b)
            if self.norm_a > 0 and self.norm_b > 0
            else None
        )


@dataclass(frozen=True)
class Difference:
    """Two adapters compared. `settings` are the facts that differ: (name, of a, of b)."""

    modules: tuple[ModuleDifference, ...]
    settings: tuple[tuple[str, Any, Any], ...]

    @property
    def norm_a(self) -> float:
        return math.sqrt(sum(module.norm_a**2 for module in self.modules))

    @property
    def norm_b(self) -> float:
        return math.sqrt(sum(module.norm_b**2 for module in self.modules))

    @property
    def cosine(self) -> float | None:
        """Cosine between the two adapters as whole vectors."""
        product = self.norm_a * self.norm_b
        return sum(module.inner for module in self.modules) / product if product > 0 else None

    @property
    def verdict(self) -> str:
        """What that means for a merge, in words, with the numbers it rests on."""
        return self._interference() + self._imbalance()

    def _imbalance(self) -> str:
        low, high = sorted((self.norm_a, self.norm_b))
        if low == 0 or high < IMBALANCE * low:
            return ""
        return f" One is {high / low:.0f} times as strong as the other, so the weaker one hardly shows at equal weights."

    def _interference(self) -> str:
        cosine = self.cosine
        if cosine is None:
            return "One of them changes nothing, so a merge is just a scaling of the other."
        both = [module for module in self.modules if module.cosine is not None]
        if not both:
            return "They change different modules, so they can't conflict: linear with weights 1,1 keeps both whole."
        opposed = [
            module for module in both if module.cosine is not None and module.cosine < -ORTHOGONAL
        ]
        if abs(cosine) < ORTHOGONAL and not opposed:
            return f"Nearly orthogonal (cosine {cosine:.3f}): linear is safe; weights 1,1 keep both whole."
        if opposed:
            return (
                f"They pull against each other in {len(opposed)} of {len(both)} shared modules (cosine {cosine:.3f} overall):"
                " prefer ties, or lower one weight."
            )
        return f"They share directions (cosine {cosine:.3f}): an average keeps what they share; weights 1,1 would double it."


def inner(one: Factors, other: Factors) -> float:
    """<ΔW₁, ΔW₂> in float64; shapes (out, r₁), (r₁, in) and (out, r₂), (r₂, in)."""
    left = one.b.astype(np.float64).T @ other.b.astype(np.float64)  # (r1, r2)
    right = one.a.astype(np.float64) @ other.a.astype(np.float64).T  # (r1, r2)
    return float((left * right).sum())


def compare(adapters: Sequence[Adapter]) -> Difference:
    """Compares two opened adapters."""
    first, second = adapters
    modules = []
    for name in all_modules(adapters):
        found = [
            adapter.factors(name) if name in adapter.modules else None
            for adapter in (first, second)
        ]
        norms = [
            math.sqrt(max(0.0, inner(factors, factors))) if factors else 0.0 for factors in found
        ]
        product = inner(found[0], found[1]) if found[0] and found[1] else 0.0
        modules.append(ModuleDifference(name, norms[0], norms[1], product))
    return Difference(tuple(modules), tuple(_settings(first, second)))


def _settings(first: Adapter, second: Adapter) -> list[tuple[str, Any, Any]]:
    def facts(adapter: Adapter) -> dict[str, Any]:
        manifest, lora = adapter.resolved.manifest, adapter.resolved.manifest.lora
        return {
            "base": manifest.base.repo,
            "revision": manifest.base.revision,
            "rank": lora.rank if lora else None,
            "alpha": lora.alpha if lora else None,
            "use_rslora": lora.use_rslora if lora else None,
            "targets": ", ".join(lora.targets) if lora else None,
            "modules": len(adapter.modules),
            "dtype": adapter.facts.dtype,
        }

    mine, theirs = facts(first), facts(second)
    return [(key, mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]]
