"""A comparison as the screen shows it: what the cells of the heatmap are, and everything else in words.

The numbers, the words and the scales are those of `adapterhub diff`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.cli.output import clean
from adapterhub.store import Store
from adapterhub.tui.facts import Fact, Section, said
from adapterhub.tui.progress import Watched

if TYPE_CHECKING:  # these load numpy
    from adapterhub.compare.grid import Grid, Layout
    from adapterhub.compare.run import Compared
    from adapterhub.compare.similarity import Module, Pair, Selection
    from adapterhub.compare.verdict import Advice

MEASURES = ("cosine", "conflict", "norm-ratio", "overlap")
ALL = "all"
"""The row that takes all layers together."""


@dataclass(frozen=True)
class Row:
    """A line of the heatmap: a layer, all of them, or a module outside of any."""

    label: str
    values: tuple[float | None, ...]
    """One a column; just one for a module outside."""


@dataclass(frozen=True)
class Found:
    """A comparison that is done."""

    compared: Compared
    layout: Layout
    grids: Mapping[str, Grid]

    @property
    def labels(self) -> tuple[str, ...]:
        return self.compared.comparison.labels

    @property
    def advice(self) -> Advice | None:
        return self.compared.verdict.advice

    @property
    def columns(self) -> tuple[str, ...]:
        from adapterhub.compare.scales import short_columns

        return tuple(map(clean, short_columns(self.layout.columns)))

    def rows(self, measure: str) -> tuple[Row, ...]:
        """The lines of the heatmap, the one for all layers after them."""
        grid = self.grids[measure]
        layers = [Row(clean(label), values) for label, values in grid.rows]
        whole = [Row(ALL, grid.total)] if layers else []
        return (*layers, *whole, *(Row(clean(name), (value,)) for name, value in grid.outside))

    def at(self, row: int, column: int) -> tuple[Module, ...]:
        """The modules of a cell."""
        layers = self.layout.rows
        if row < len(layers):
            return layers[row][1][column]
        outside = row - len(layers) - bool(layers)
        return self.layout.total[column] if outside < 0 else (self.layout.outside[outside],)


def look(store: Store, names: Sequence[str], progress: Watched, *, exact: bool) -> Found:
    """Compares adapters; blocks for as long as that takes."""
    # More threads only wait for each other on matrices this small.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from adapterhub.compare.grid import MEASURES as MEASURED
    from adapterhub.compare.grid import grid, layout
    from adapterhub.compare.run import compare_stored

    compared = compare_stored(store, names, progress, exact=exact)
    where = layout(compared.comparison)
    grids = {name: grid(compared.comparison, MEASURED[name], where) for name in MEASURES}
    return Found(compared, where, grids)


def meaning(found: Found, measure: str) -> str:
    """What a measure says, in words."""
    from adapterhub.compare.grid import MEASURES as MEASURED

    several = f"; {MEASURED[measure].worst}" if len(found.labels) > 2 else ""
    return f"{MEASURED[measure].meaning}{several}"


def in_words(found: Found, row: int, column: int) -> tuple[Section, ...]:
    """Everything beside the heatmap, the cell under the cursor among it."""
    return (
        _verdict(found),
        _cell(found, row, column),
        _whole(found),
        *_settings(found),
    )


def _verdict(found: Found) -> Section:
    verdict = found.compared.verdict
    facts = [Fact("", clean(found.compared.mismatch), "warning")] if found.compared.mismatch else []
    facts += [Fact("", clean(finding.text)) for finding in verdict.findings]
    facts += [Fact("", clean(remark), "warning") for remark in found.compared.remarks]
    if verdict.line is None:
        facts.append(Fact("", f"No merge to recommend: {verdict.reason}."))
    else:
        facts.append(Fact("", f"Try this ({verdict.reason}; m opens it):"))
        facts.append(Fact("", clean(verdict.line), "strong"))
    return Section("Verdict", tuple(facts))


def _cell(found: Found, row: int, column: int) -> Section:
    """The modules under the cursor."""
    from adapterhub.compare.grid import MEASURES as MEASURED
    from adapterhub.compare.grid import worst_pair
    from adapterhub.compare.similarity import Selection

    modules = found.at(row, column)
    if not modules:
        return Section("Here", (Fact("", "None of the adapters changes a module here."),))
    comparison, here = found.compared.comparison, Selection(modules)
    title = clean(modules[0].name) if len(modules) == 1 else f"{len(modules)} modules"
    facts = []
    if len(modules) == 1:
        facts.append(Fact("shape", " x ".join(map(str, modules[0].shape))))
    pairs = comparison.pairs
    if len(pairs) > 1:
        worst = worst_pair(MEASURED["cosine"], here, pairs)
        pairs = [worst[0]] if worst else pairs[:1]
        facts.append(Fact("worst pair", " and ".join(_label(found, place) for place in pairs[0])))
    facts += _pair(here, pairs[0], exact=comparison.exact)
    for place in range(len(found.labels)):
        strengths = [module.strengths[place] for module in modules if module.strengths[place].rank]
        ranks = f", effective rank {strengths[0].effective_rank:.3g}" if len(strengths) == 1 else ""
        norm = f"norm {here.norm(place):.3g}{ranks}" if strengths else "changes nothing here"
        facts.append(Fact(_label(found, place), norm))
    if len(modules) == 1 and (meeting := modules[0].pairs.get(pairs[0])):
        angles = (*meeting.angles.angles_out, *meeting.angles.angles_in)
        if angles:
            facts.append(Fact("angles", f"from {min(angles):.3g}°, up to {max(angles):.3g}°"))
    return Section(f"Here: {title}", tuple(facts))


def _pair(part: Selection, pair: Pair, *, exact: bool) -> list[Fact]:
    rate, error = part.conflict(pair), part.conflict_error(pair)
    spread = "" if exact or error == 0 else f" ± {error:.1g}"
    inside = part.inside(pair)
    return [
        Fact("cosine", said(part.cosine(pair))),
        Fact("sign conflict", said(rate) + (spread if rate is not None else "")),
        Fact("among top 20%", said(part.top_conflict(pair))),
        Fact("norm ratio", said(part.norm_ratio(pair))),
        Fact("overlap", said(part.overlap(pair)) + f" ({said(inside[0])}, {said(inside[1])})"),
    ]


def _whole(found: Found) -> Section:
    from adapterhub.compare.document import sample
    from adapterhub.words import human_count

    comparison, whole = found.compared.comparison, found.compared.comparison.whole
    facts = []
    for pair in comparison.pairs:
        if len(comparison.pairs) > 1:
            facts.append(Fact("", " and ".join(_label(found, place) for place in pair), "strong"))
            facts += _pair(whole, pair, exact=comparison.exact)[:2]
        else:
            facts += _pair(whole, pair, exact=comparison.exact)
    shared = sum(1 for module in comparison.modules if module.pairs)
    facts.append(Fact("shared", f"{shared} of {len(comparison.modules)} modules"))
    counts = sample(comparison)
    looked, all_ = counts["elements"], counts["of_elements"]
    signs = "all rows" if comparison.exact or looked == all_ else (
        f"a sample: {human_count(looked)} of {human_count(all_)} elements (f: all)"
    )  # fmt: skip
    facts.append(Fact("signs", f"counted in {signs}"))
    return Section("Over all modules", tuple(facts))


def _settings(found: Found) -> list[Section]:
    """What differs between them, and their norms."""
    from adapterhub.compare.document import mean_rank

    comparison = found.compared.comparison
    sections = []
    for place in range(len(found.labels)):
        norm, rank = comparison.whole.norm(place), mean_rank(comparison.whole, place)
        facts = [
            Fact("norm of ΔW", said(norm)),
            Fact("effective rank", said(rank)),
            *(Fact(clean(key), said(values[place])) for key, values in comparison.settings.items()),
        ]
        sections.append(Section(_label(found, place), tuple(facts)))
    return sections


def _label(found: Found, place: int) -> str:
    return clean(found.labels[place])
