"""One number a layer and kind of module: what a heatmap shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from adapterhub.compare.places import columns_of, stack_names
from adapterhub.compare.similarity import Comparison, Module, Pair, Selection


@dataclass(frozen=True)
class Measure:
    """A number of two adapters over some modules, and which of several pairs is the worst."""

    name: str
    of: Callable[[Selection, Pair], float | None]
    badness: Callable[[float], float]
    meaning: str
    """For two adapters, in words."""
    worst: str
    """What is shown of more than two adapters, in words."""


def _imbalance(ratio: float) -> float:
    return max(ratio, 1 / ratio) if ratio > 0 else float("inf")


MEASURES: Mapping[str, Measure] = MappingProxyType(
    {
        measure.name: measure
        for measure in (
            Measure(
                "cosine",
                Selection.cosine,
                lambda value: -value,
                "-1 opposed, 0 unrelated, 1 the same direction",
                "the lowest of all pairs",
            ),
            Measure(
                "conflict",
                Selection.conflict,
                lambda value: value,
                "share of elements with opposite signs; .5 is what unrelated adapters have",
                "the highest of all pairs",
            ),
            Measure(
                "norm-ratio",
                Selection.norm_ratio,
                _imbalance,
                "norm of the second over norm of the first",
                "of the most unequal pair, the later one over the earlier one",
            ),
            Measure(
                "overlap",
                Selection.overlap,
                lambda value: value,
                "share of each one's energy in the other's leading subspaces, mean of both",
                "the highest of all pairs",
            ),
        )
    }
)


@dataclass(frozen=True)
class Grid:
    """`rows` are the layers in order, (label, one value a column); `total` is over all layers; `outside` the modules that
    belong to no layer. None where there is nothing to measure."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]
    total: tuple[float | None, ...]
    outside: tuple[tuple[str, float | None], ...]


def worst_pair(
    measure: Measure, modules: Selection, pairs: Sequence[Pair]
) -> tuple[Pair, float] | None:
    """The pair for which the measure is worst over `modules`, and its value; None where no pair has one."""
    found = [(pair, value) for pair in pairs if (value := measure.of(modules, pair)) is not None]
    return max(found, key=lambda item: measure.badness(item[1]), default=None)


@dataclass(frozen=True)
class Layout:
    """Which modules are in which cell: `rows` are the layers in order, (label, the modules of each column)."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[Module, ...], ...]], ...]
    total: tuple[tuple[Module, ...], ...]
    """By column, over all layers."""
    outside: tuple[Module, ...]
    """Those that belong to no layer."""


def layout(comparison: Comparison) -> Layout:
    """The modules by layers and kinds."""
    layered = [module for module in comparison.modules if module.place.layer is not None]
    columns = columns_of(module.place for module in layered)
    stacks = stack_names({module.place.stack for module in layered})

    def row(members: Sequence[Module]) -> tuple[tuple[Module, ...], ...]:
        return tuple(tuple(m for m in members if m.place.inner == inner) for inner in columns)

    layers: dict[tuple[str, int], list[Module]] = defaultdict(list)
    for module in layered:
        layers[module.place.stack, module.place.layer or 0].append(module)
    rows = [
        (f"{stacks[stack]} {layer}".strip(), row(members))
        for (stack, layer), members in sorted(layers.items())
    ]
    outside = [module for module in comparison.modules if module.place.layer is None]
    return Layout(tuple(columns.values()), tuple(rows), row(layered), tuple(outside))


def grid(comparison: Comparison, measure: Measure, where: Layout | None = None) -> Grid:
    """The measure by layers and kinds of modules; of more than two adapters, the worst pair's."""
    where = where or layout(comparison)

    def value(modules: Sequence[Module]) -> float | None:
        worst = worst_pair(measure, Selection(modules), comparison.pairs)
        return None if worst is None else worst[1]

    return Grid(
        where.columns,
        tuple((label, tuple(map(value, cells))) for label, cells in where.rows),
        tuple(map(value, where.total)),
        tuple((module.name, value([module])) for module in where.outside),
    )
