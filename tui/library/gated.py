"""Gates in words: what a name asks for, what is known of that, and whether it may mean the adapter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapterhub.cli.output import clean
from adapterhub.store.gating import Standing
from adapterhub.tui.facts import Fact, Names, Section, Tone, said

MET, UNMET = "✓", "✗"


def section(standings: Sequence[Standing], path: str, digest: str, names: Names) -> Section:
    """How an adapter stands before the gates of its names.

    Args:
        path: the name that is looked at; of its own tags only the tag is said.
    """
    facts = []
    for one in standings:
        label = one.name.tag if one.name.path == path else str(one.name)
        tone: Tone = "strong" if one.open else "warning"
        facts.append(Fact(label, f"gate {state(one)}; {meaning(one, digest, names)}", tone))
        facts += [Fact("", line) for line in demands(one)]
    return Section("Gates", tuple(facts))


def state(one: Standing) -> str:
    """`open: 3 of 3 demands met`."""
    noun = "demand" if len(one.findings) == 1 else "demands"
    word = "open" if one.open else "shut"
    return f"{word}: {one.met} of {len(one.findings)} {noun} met"


def meaning(one: Standing, digest: str, names: Names) -> str:
    """What the name means now."""
    if one.now is None:
        return "nothing has that name"
    if one.now == digest:
        return "it means this adapter"
    others = {known: name for known, name in names.items() if name != str(one.name)}
    return f"it means {said(one.now, others)}"


def demands(one: Standing) -> Iterator[str]:
    """A line a demand, met or not: `✗ forgetting: perplexity at most 0.05 worse than the base: never evaluated on that`."""
    for finding in sorted(one.findings, key=lambda finding: finding.held):
        yield f"{MET if finding.held else UNMET} {clean(finding.demand)}: {clean(finding.found)}"


def without_gates(shut: Sequence[Standing]) -> str:
    """What follows where a name is given although its gate is shut."""
    release = any(one.name.tag == "prod" for one in shut)
    served = " serve --prod serves it from then on." if release else ""
    return (
        "Without gates the name is given all the same, and which demands weren't met is recorded with the adapter"
        f" for good: undo takes the name back, not the record.{served}"
    )


def refusing(one: Standing) -> str:
    """What stays where the name isn't given."""
    if one.now is None:
        return f"Left alone, nothing is called {one.name}."
    return f"Left alone, {one.name} goes on meaning {said(one.now)}."
