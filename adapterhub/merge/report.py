"""What a merge keeps, per module and in total: of its own energy, and of each parent.

Energies are squared Frobenius norms. `retained` of a parent ΔWᵢ in the result M is <M, ΔWᵢ>/||ΔWᵢ||²: 1 where M holds it
as it was, 0 where nothing of it is left, below 0 where M works against it. `subspace` is ||U'ΔWᵢV||²/||ΔWᵢ||², the share
of its energy within M's left and right singular vectors (U, V): what a choice of weights could still bring back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Kept:
    """One module: what its first k directions keep, for every k (index k-1)."""

    energy: float
    """Of the whole merged delta."""
    directions_energy: Vector
    norms: Sequence[float]
    """||ΔWᵢ||² of each parent."""
    inner: Sequence[Vector]
    """<M, ΔWᵢ>."""
    inside: Sequence[Vector] | None
    """||U'ΔWᵢV||²; None where nothing was cut off."""

    @classmethod
    def all_of(cls, gram: Vector, directions: int) -> Kept:
        """Nothing cut off; `gram` is that of (M, ΔW₁, ..., ΔWₖ)."""
        count = len(gram) - 1
        energies = np.full(directions, gram[0, 0])
        inner = [np.full(directions, gram[0, 1 + place]) for place in range(count)]
        return cls(float(gram[0, 0]), energies, list(np.diag(gram)[1:]), inner, None)

    @property
    def directions(self) -> int:
        return len(self.directions_energy)

    def kept(self, rank: int) -> float:
        """Energy of the best approximation of `rank`."""
        return float(self.directions_energy[min(rank, self.directions) - 1])

    def rank_for(self, share: float) -> int:
        """The smallest rank that keeps `share` of the energy, or all directions there are."""
        wanted = share * self.energy * (1 - 1e-12)  # a share of 1 is not missed by the last bit
        return min(int(np.searchsorted(self.directions_energy, wanted)) + 1, self.directions)


@dataclass(frozen=True)
class MergeReport:
    """The modules' ranks and what they keep, and the same in total."""

    ranks: Mapping[str, int]
    modules: Mapping[str, Mapping[str, Any]]
    total: Mapping[str, Any]
    steps: Mapping[str, float]
    """The share of its energy that each step with a rank of its own kept, by the step's name."""

    @classmethod
    def of(
        cls,
        kept: Mapping[str, Kept],
        ranks: Sequence[int],
        parents: Sequence[str],
        steps: Mapping[str, float],
    ) -> MergeReport:
        """From every module's numbers at its rank; `parents` are digests."""
        chosen = dict(zip(kept, ranks, strict=True))
        rows = {name: _row([one], [chosen[name]], parents) for name, one in kept.items()}
        modules = {name: {"rank": chosen[name], **row} for name, row in rows.items()}
        return cls(chosen, modules, _row(list(kept.values()), ranks, parents), steps)

    def document(self) -> dict[str, Any]:
        """As it is attested."""
        rank = max(self.ranks.values(), default=0)
        steps = {name: {"energy_kept": round(share, 6)} for name, share in self.steps.items()}
        told = {"steps": steps} if steps else {}
        return {"rank": rank, **self.total, **told, "modules": dict(self.modules)}


def _row(kept: Sequence[Kept], ranks: Sequence[int], parents: Sequence[str]) -> dict[str, Any]:
    pairs = list(zip(kept, ranks, strict=True))
    energy = sum(one.energy for one in kept)
    share = min(1.0, sum(one.kept(rank) for one, rank in pairs) / energy) if energy > 0 else 1.0
    norms = [sum(one.norms[place] for one in kept) for place in range(len(parents))]
    inner = [
        sum(one.inner[place][rank - 1] for one, rank in pairs) for place in range(len(parents))
    ]
    row = {
        "energy_kept": round(share, 6),
        "error": round(float((1.0 - share) ** 0.5), 6),
        "retained": _shares(inner, norms),
    }
    if all(one.inside is not None for one in kept):
        inside = [
            sum(one.inside[place][rank - 1] for one, rank in pairs if one.inside is not None)
            for place in range(len(parents))
        ]
        row["subspace"] = _shares(inside, norms)
    return row


def _shares(parts: Sequence[float], norms: Sequence[float]) -> list[float | None]:
    """None for a parent of zeros, of which nothing can be kept."""
    return [
        round(float(part) / norm, 6) if norm > 0 else None
        for part, norm in zip(parts, norms, strict=True)
    ]
