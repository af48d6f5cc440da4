"""An adapter in words: everything known about it, in the order in which people ask.

Nothing is worked out here. `adapterhub show` and this read the same record; this leaves out what says nothing (defaults,
empty fields) and puts what matters first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import ceil, isfinite
from statistics import fmean
from typing import TYPE_CHECKING, Any

from adapterhub.cli.output import clean
from adapterhub.manifest import Attestation
from adapterhub.store.catalogue.family import drawn
from adapterhub.store.catalogue.kinship import Lineage
from adapterhub.store.consequences import Use
from adapterhub.store.journal import Change
from adapterhub.tui.facts import MOST_LINES, Fact, Names, Section, Tone, moment, said
from adapterhub.tui.library import attested
from adapterhub.tui.library.rows import Row
from adapterhub.tui.problem import Problem
from adapterhub.words import human_count, human_size, short

if TYPE_CHECKING:  # numpy comes with it
    from adapterhub.compare.norms import Norms

SPARKS = 32
"""Cells of a sparkline at most."""
_BARS = "▁▂▃▄▅▆▇█"
_MOST_RELATIVES = 24
_MOST_MODULES = 4
"""Modules that are told one by one."""
_TOLD_IN_A_LINE = ("rank", "alpha", "scaling", "targets", "modules", "parameters", "dtype")
_SAYS_NOTHING: tuple[object, ...] = (None, False, "", "none", [], {})


def in_words(
    row: Row,
    record: Mapping[str, Any],
    attestations: Sequence[Attestation],
    names: Names,
    family: Lineage,
    uses: Sequence[Use],
    gates: Section,
) -> tuple[Section, ...]:
    """The sections for an adapter.

    Args:
        row: what the list says of it.
        record: what `adapterhub show` prints (`cli.library.details`).
        attestations: what is known about it, oldest first.
        names: a name for each digest that has one.
        family: what it was made from, and what was made of it.
        uses: who works with it now.
        gates: what its names ask for, and what is known of that.
    """
    return _with_facts(
        Section("", tuple(_itself(record, row.added))),
        Section("Used now", tuple(Fact("", clean(use.words), "strong") for use in uses)),
        gates,
        Section("Notes", tuple(Fact("", clean(note), "warning") for note in record["notes"])),
        Section("Base", tuple(_base(record["base"], row.base, attestations))),
        Section("Lineage", tuple(_lineage(family))),
        *attested.sections(attestations, names),
        Section(
            "Files",
            tuple(Fact(human_size(file["size"]), clean(file["path"])) for file in record["files"]),
        ),
    )


def further(norms: Norms | Problem, changes: Sequence[Change]) -> tuple[Section, ...]:
    """The sections that take longer to find out: how much each layer is changed, and what happened to the name."""
    return _with_facts(
        Section("Norms by layer", tuple(_norms(norms))),
        Section("History of the name", tuple(_history(changes))),
    )


def problem_in_words(row: Row, problem: Problem) -> tuple[Section, ...]:
    """The sections for an adapter that can't be read: what is wrong, and what the list knows."""
    told: tuple[tuple[str, Tone], ...] = (
        (problem.what, "error"),
        (problem.why, ""),
        (problem.hint, "strong"),
    )
    known = {
        "kind": row.kind,
        "base": row.base,
        "added": moment(row.added),
        "digest": row.digest and said(row.digest),
    }
    return _with_facts(
        Section("", tuple(Fact("", clean(text), tone) for text, tone in told if text)),
        Section(
            "What the list knows",
            tuple(Fact(label, clean(text)) for label, text in known.items() if text),
        ),
    )


def _lineage(family: Lineage) -> Iterator[Fact]:
    lines = list(drawn(family))[1:]  # the first is the adapter itself
    for line in lines[:_MOST_RELATIVES]:
        yield Fact("", clean(line), "strong" if line in ("made from", "made of it") else "")
    if len(lines) > _MOST_RELATIVES:
        yield Fact("", f"… and {len(lines) - _MOST_RELATIVES} more: adapterhub lineage")


def _norms(norms: Norms | Problem) -> Iterator[Fact]:
    if isinstance(norms, Problem):
        yield Fact("", clean(norms.what), "warning")
        return
    if norms.layers:
        yield Fact(
            "layers", f"{norms.layers[0]} to {norms.layers[-1]}, norms of ΔW, highest at right"
        )
        for label, values in (("all", norms.by_layer), *norms.rows.items()):
            yield Fact(
                clean(label.removesuffix("_proj")), f"{sparkline(values, SPARKS)} {max(values):.3g}"
            )
    for label, value in list(norms.outside.items())[:MOST_LINES]:
        yield Fact(clean(label), f"{value:.3g}")


def _history(changes: Sequence[Change]) -> Iterator[Fact]:
    newest = list(reversed(changes))
    for change in newest[:MOST_LINES]:
        where = f" {change.ref.partition(':')[2]}" if ":" in change.ref else ""
        what = f"now @{short(change.after)}" if change.after else "removed"
        yield Fact(moment(change.time)[:16], clean(f"{change.op}{where}: {what}"))
    if len(newest) > MOST_LINES:
        yield Fact("…", f"and {len(newest) - MOST_LINES} more: adapterhub log")


def sparkline(values: Sequence[float], most: int) -> str:
    """Values as columns of eighths, at most `most` of them (then each is the mean of its neighbours); the highest is full."""
    if len(values) > most:
        edges = [len(values) * place // most for place in range(most + 1)]
        values = [fmean(values[first:end]) for first, end in pairwise(edges)]
    top = max(values, default=0.0)
    if not isfinite(top) or top <= 0:
        return _BARS[0] * len(values)
    return "".join(_BARS[min(7, max(0, ceil(value / top * 8) - 1))] for value in values)


def _with_facts(*sections: Section) -> tuple[Section, ...]:
    return tuple(section for section in sections if section.facts)


def _itself(record: Mapping[str, Any], added: str) -> Iterator[Fact]:
    lora: Mapping[str, Any] = record.get("lora", {})
    if lora:
        scaling = said(lora["scaling"][0]) if len(lora["scaling"]) == 1 else "differs by module"
        yield Fact(
            said(record["kind"]),
            f"rank {said(lora['rank'])}, alpha {said(lora['alpha'])}, scaling {scaling}",
            "strong",
        )
        yield Fact("targets", said(lora["targets"]))
        yield Fact(
            "weights",
            f"{lora['modules']} modules, {human_count(lora['parameters'])} parameters, {said(lora['dtype'])}",
        )
        for key, value in lora.items():
            if key not in _TOLD_IN_A_LINE and value not in _SAYS_NOTHING:
                yield Fact(clean(key), folded(value))
    else:
        yield Fact("kind", said(record["kind"]), "strong")
    if beyond := record.get("beyond plain LoRA"):
        yield Fact("beyond LoRA", said(beyond), "warning")
    if others := [name for name in record["names"] if name != record["name"]]:
        yield Fact("also named", said(others))
    yield Fact("added", moment(added))
    yield Fact("digest", said(record["digest"]))


def folded(value: object) -> str:
    """A value for each of many modules as how many have which: `90 modules at 8, 120 at 24`."""
    if not isinstance(value, Mapping) or len(value) <= _MOST_MODULES:
        return said(value)
    counts = Counter(said(item) for item in value.values()).most_common()
    told = [f"{many} at {what}" for what, many in counts[:_MOST_MODULES]]
    told[0] = told[0].replace(" at ", " modules at ", 1)
    more = len(counts) - len(told)
    return ", ".join(told) + (f", and {more} other values" if more else "")


def _base(
    base: Mapping[str, Any], here: str, attestations: Sequence[Attestation]
) -> Iterator[Fact]:
    if base["repo"]:
        yield Fact("repo", said(base["repo"]), "strong")
        yield Fact(
            "revision", said(short(base["revision"]) if base["revision"] else "not recorded")
        )
    else:
        found = f"; found by its weights: {clean(here)}" if here else ""
        yield Fact("repo", f"not recorded{found}", "" if here else "warning")
    if base["claimed"] and base["claimed"] != base["repo"]:
        yield Fact("claimed", said(base["claimed"]))
    if base["trained_on"]:
        yield Fact("trained on", said(base["trained_on"]))
    yield Fact(
        "fingerprint",
        said(base["fingerprint"] or "unknown: never checked against a base's weights"),
    )
    checks = [
        item.body for item in attestations if item.type == "base" and "modules_total" in item.body
    ]
    if checks:
        last = checks[-1]
        yield Fact(
            "fits",
            f"{said(last.get('modules_found'))} of {said(last['modules_total'])} modules found in it",
        )
        if last.get("allowed_mismatch"):
            yield Fact("mismatch", said(last["allowed_mismatch"]), "warning")
