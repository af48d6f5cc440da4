"""Which rank a merge's result gets: the rule of a recipe on what each number of directions keeps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adapterhub.merge.recipe import SERVABLE_RANKS, energy_share
from adapterhub.merge.report import Kept

AUTO_ENERGY = 0.99
"""`--rank auto` keeps at least this share of the energy, if a rank up to its cap does."""
AUTO_CAP = 64


def auto_cap(parents: Iterable[int]) -> int:
    """The largest rank that `auto` takes, by the ranks of the parents."""
    return max(AUTO_CAP, *parents)


def auto_ranks(cap: int) -> list[int]:
    """The ranks that `auto` chooses among, rising."""
    return sorted({*(rank for rank in SERVABLE_RANKS if rank <= cap), cap})


def chosen_ranks(rule: int | str, kept: Sequence[Kept], cap: int) -> list[int]:
    """The rank of each module by `rule`, which isn't `full`; `cap` is that of `auto`."""
    share = energy_share(rule)
    if share is not None:
        return [one.rank_for(share) for one in kept]
    rank = _auto_rank(kept, cap) if rule == "auto" else int(rule)
    return [min(rank, one.directions) for one in kept]


def _auto_rank(kept: Sequence[Kept], cap: int) -> int:
    """The smallest servable rank that keeps AUTO_ENERGY of all modules together, else the largest allowed."""
    total = sum(one.energy for one in kept)
    allowed = auto_ranks(cap)
    for rank in allowed:
        if sum(one.kept(rank) for one in kept) >= AUTO_ENERGY * total:
            return rank
    return allowed[-1]
