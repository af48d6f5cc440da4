"""Element-wise merges looked at in a sample of rows: what a method's own kernel makes of them, and what that says of the whole.

Each module gives its share of a fixed budget of elements, so that thresholds over the whole adapter are about those of the
sample. What a rank keeps is judged within the rows that the parents span: the best approximation of that rank keeps at
least as much. A module of which too few rows were drawn says nothing about ranks below that.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from adapterhub.compare.signs import sample_rows
from adapterhub.lora.adapter import Adapter
from adapterhub.lora.inner import Stack
from adapterhub.lora.lowrank import NOISE
from adapterhub.lora.parallel import for_each
from adapterhub.lora.rows import Factored, Rows, squared_norm, whole
from adapterhub.merge.ranks import AUTO_ENERGY, auto_ranks
from adapterhub.merge.recipe import Recipe, energy_share
from adapterhub.merge.schedule import count_layers
from adapterhub.merge.stages import Job, Shapes, Stage, delta_of, make_stage

VALUES = 6_000_000
"""Elements of each parent that are looked at, about."""
_ROWS_A_DIRECTION = 2
"""With fewer sampled rows than this for each direction the sample says nothing of smaller ranks."""


@dataclass(frozen=True)
class Drawn:
    """The rows of one module: each parent's delta there, and an orthonormal basis of all rows that they span."""

    out: int
    parts: tuple[Factored | None, ...]
    a: torch.Tensor
    """[A₁; A₂; ...], (R, in) float32, of which the parts' are views."""
    basis: torch.Tensor
    """(R, k) float64, with (basisᵀ·a)ᵀ orthonormal."""
    right: torch.Tensor
    """AAᵀ, (R, R) float64."""

    @property
    def rows(self) -> int:
        return next(part.shape[0] for part in self.parts if part is not None)

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.a.shape[1]

    @property
    def stands_for(self) -> float:
        """Rows of the module that one of the sample stands for."""
        return self.out / self.rows


@dataclass(frozen=True)
class _Part:
    """One parent's sample as a stage."""

    shapes: Shapes
    deltas: Mapping[str, Factored]

    def open(self, module: str) -> Rows | None:
        return self.deltas.get(module)


@dataclass(frozen=True)
class _Seen:
    """What was seen of one module, scaled up to all its rows. `within` and `inner` have a number for every k, from 1."""

    energy: float
    within: torch.Tensor
    """Energy of the k strongest directions within the rows that the parents span."""
    inner: Sequence[torch.Tensor]
    norms: Sequence[float]
    tells_ranks: bool
    """Whether the sample is large enough for every k, and not only for the last."""

    @property
    def directions(self) -> int:
        return len(self.within)

    def at(self, rank: int) -> int | None:
        """The place of `rank` in `within`, None where the sample doesn't tell."""
        if rank >= self.directions:
            return self.directions - 1
        return rank - 1 if self.tells_ranks else None


@dataclass(frozen=True)
class Guess:
    """What the sample says; None for what it can't."""

    rank: int | None
    energy_kept: float | None
    """At least this much."""
    retained: tuple[float | None, ...]
    cut: bool
    """Whether `retained` is that of the result cut to its rank; else that of the whole merged delta."""


@dataclass(frozen=True)
class Sample:
    """Rows of all modules, drawn once and asked often."""

    drawn: Mapping[str, Drawn]
    parents: Sequence[str]
    """Their digests."""
    cap: int
    """The largest rank that `auto` takes."""

    @classmethod
    def draw(
        cls,
        adapters: Sequence[Adapter],
        cap: int,
        *,
        values: int = VALUES,
        done: Callable[[], None] = lambda: None,
    ) -> Sample:
        """Reads the rows. `done` is called after each module, and may raise to end it."""
        shapes = {
            name: (module.out_features, module.in_features)
            for adapter in adapters
            for name, module in adapter.modules.items()
        }
        share = min(1.0, values / sum(out * width for out, width in shapes.values()))
        names = sorted(shapes)

        def read(name: str) -> Drawn:
            out = shapes[name][0]
            return _drawn(name, adapters, out, _count(name, out * share))

        found = for_each(names, read, workers=None, done=done)
        digests = [adapter.resolved.digest for adapter in adapters]
        return cls(dict(zip(names, found, strict=True)), digests, cap)

    @property
    def rows(self) -> int:
        return sum(one.rows for one in self.drawn.values())

    @property
    def of_rows(self) -> int:
        return sum(one.out for one in self.drawn.values())

    @cached_property
    def _stages(self) -> dict[str, _Part]:
        found = {}
        for place, digest in enumerate(self.parents):
            deltas = {n: p for n, one in self.drawn.items() if (p := one.parts[place]) is not None}
            found[digest] = _Part({name: self.drawn[name].shape for name in deltas}, deltas)
        return found

    def guess(self, recipe: Recipe) -> Guess:
        """What a recipe of one step would give, by the method's own kernel."""
        (step,) = recipe.steps
        inputs = [self._stages[str(one.digest)] for one in step.inputs]
        each = partial(for_each, workers=None, done=lambda: None)
        stage = make_stage(Job(step, inputs, 0, count_layers(self.drawn), recipe.seed, each))
        seen = each(list(self.drawn), lambda name: self._seen(stage, name))
        rank, cut = self._rank(recipe.rank, seen)
        kept = self._kept(recipe.rank, rank, seen)
        order = [self.parents.index(digest) for digest in recipe.parents]
        retained = [_retained(seen, place, cut) for place in order]
        return Guess(rank, kept, tuple(retained), cut is not None)

    def _seen(self, stage: Stage, module: str) -> _Seen:
        one = self.drawn[module]
        merged = whole(delta_of(stage, module))  # (rows, in)
        inside = (merged @ one.a.T).double() @ one.basis  # (rows, k)
        squares, vectors = torch.linalg.eigh(inside.T @ inside)
        squares, vectors = squares.clamp(min=0).flip(0), vectors.flip(1)
        turned, first = inside @ vectors, 0
        inner, norms = [], []
        for part in one.parts:
            if part is None:
                inner.append(torch.zeros(len(squares), dtype=torch.float64))
                norms.append(0.0)
                continue
            b, last = part.b.double(), first + part.rank
            mine = b @ one.right[first:last] @ one.basis @ vectors
            inner.append((turned * mine).sum(0).cumsum(0) * one.stands_for)
            square = (b @ one.right[first:last, first:last] * b).sum()
            norms.append(float(square) * one.stands_for)
            first = last
        return _Seen(
            squared_norm(merged) * one.stands_for,
            squares.cumsum(0) * one.stands_for,
            inner,
            norms,
            tells_ranks=one.rows >= min(one.out, _ROWS_A_DIRECTION * len(one.a)),
        )

    def _rank(self, rule: int | str, seen: Sequence[_Seen]) -> tuple[int | None, int | None]:
        """(the rank of the result, the rank at which to look at what it retains), None for what isn't known."""
        if rule == "full":
            return max(min(one.out, one.a.shape[1]) for one in self.drawn.values()), None
        if isinstance(rule, int):
            return rule, rule if _told(seen, rule) else None
        if energy_share(rule) is not None:
            return None, None
        total, unknown = sum(one.energy for one in seen), False
        allowed = auto_ranks(self.cap)
        for rank in allowed:
            within = _within(seen, rank)
            unknown = unknown or within is None
            if within is not None and within >= AUTO_ENERGY * total:
                return (None, None) if unknown else (rank, rank)
        return allowed[-1], allowed[-1] if _told(seen, allowed[-1]) else None

    @staticmethod
    def _kept(rule: int | str, rank: int | None, seen: Sequence[_Seen]) -> float | None:
        if rule == "full":
            return 1.0
        total = sum(one.energy for one in seen)
        if rank is not None:
            within = _within(seen, rank)
            if within is None or total <= 0:
                return None if total > 0 else 1.0
            return min(1.0, within / total)
        return None


def _count(name: str, wanted: float) -> int:
    """A whole number of rows, at least one; up or down by the name, so that many modules have their share together."""
    return max(1, math.floor(wanted + zlib.crc32(name.encode("utf-8", "surrogatepass")) / 2**32))


def _drawn(name: str, adapters: Sequence[Adapter], out: int, count: int) -> Drawn:
    rows = sample_rows(name, out, count)
    factors = [a.factors(name) if name in a.modules else None for a in adapters]
    there = [one for one in factors if one is not None]
    stacked = torch.cat([torch.from_numpy(one.a) for one in there])  # (R, in)
    parts: list[Factored | None] = []
    first = 0
    for one in factors:
        if one is None:
            parts.append(None)
            continue
        last = first + one.rank
        parts.append(Factored(torch.from_numpy(one.b[rows].copy()), stacked[first:last]))
        first = last
    right = Stack([part for part in parts if part is not None]).right
    squares, v = torch.linalg.eigh(right)
    used = squares > NOISE * squares[-1]
    return Drawn(out, tuple(parts), stacked, v[:, used] / squares[used].sqrt(), right)


def _told(seen: Sequence[_Seen], rank: int) -> bool:
    return all(one.at(rank) is not None for one in seen)


def _within(seen: Sequence[_Seen], rank: int) -> float | None:
    places = [one.at(rank) for one in seen]
    found = [
        float(one.within[place])
        for one, place in zip(seen, places, strict=True)
        if place is not None and one.directions
    ]
    return None if None in places else math.fsum(found)


def _retained(seen: Sequence[_Seen], parent: int, rank: int | None) -> float | None:
    norm = math.fsum(one.norms[parent] for one in seen)
    found = []
    for one in seen:
        place = one.directions - 1 if rank is None else one.at(rank)
        if place is not None and one.directions:
            found.append(float(one.inner[parent][place]))
    return math.fsum(found) / norm if norm > 0 else None
