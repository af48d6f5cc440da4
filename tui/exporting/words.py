"""What the export screen says: what would be written, how it goes, and what was checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from adapterhub.cli.output import clean
from adapterhub.tui.exporting.model import State
from adapterhub.tui.facts import Fact, Section, said
from adapterhub.tui.running.words import bar
from adapterhub.words import counted, human_size

if TYPE_CHECKING:
    from adapterhub.runs import Progress


def sections(state: State) -> tuple[Section, ...]:
    """Everything beside the form."""
    if state.run is not None:
        parts = [Section("Export", tuple(_going(state)))]
        if state.run.state == "done":
            parts.append(Section("Verified", tuple(_verified(state.result))))
        return tuple(part for part in parts if part.facts)
    return (Section("", tuple(_before(state))),)


def _before(state: State) -> Iterator[Fact]:
    if state.problem is not None:
        problem = state.problem
        yield Fact("", clean(problem.what), "error")
        for part in (problem.why, problem.hint):
            if part:
                yield Fact("", clean(part))
        return
    found = state.estimate
    if found is None:
        yield Fact("", "Looking …")
        return
    about = "" if found.exact else "about "
    yield Fact("base", clean(found.base.label), "strong")
    yield Fact("", clean(found.base.path))
    yield Fact("writes", f"{about}{human_size(found.size)} in {counted(found.shards, 'shard')}", "strong")  # fmt: skip
    yield Fact("free", human_size(found.free), "" if found.fits else "error")
    if not found.fits:
        yield Fact("", "There is no space for it: make room, or choose another disk.", "error")
    if found.untied:
        yield Fact(
            "head", "untied: the adapter changes one of two tensors that are one in the base"
        )
    if found.finished and not state.wanted.resume:
        yield Fact(
            "cut short",
            f"{counted(found.finished, 'shard')} of an earlier export are there; resume keeps them",
            "warning",
        )
    for remark in found.remarks:
        yield Fact("", clean(remark), "warning")


def _going(state: State) -> Iterator[Fact]:
    run = state.run
    assert run is not None
    words = {
        "running": "under way",
        "done": "done",
        "failed": "failed",
        "interrupted": "stopped; finished shards are kept for resume",
        "died": "its process ended without a word; finished shards are kept for resume",
    }
    yield Fact("state", words[run.state], "error" if run.state in ("failed", "died") else "strong")
    if run.state == "running":
        yield from _progress(state, run.progress)
    for part in ("what", "why", "hint"):
        if run.error and run.error.get(part):
            yield Fact("", clean(run.error[part]), "error" if part == "what" else "")
    result = state.result
    if result and run.state == "done":
        changed = result.get("changed")
        yield Fact("folder", said(result.get("folder")), "strong")
        if isinstance(size := result.get("size"), int):
            yield Fact("size", human_size(size))
        if isinstance(changed, Mapping):
            yield Fact("changed", f"{said(changed.get('tensors'))} of {said(changed.get('of'))} tensors")  # fmt: skip
        if result.get("quantized"):
            yield Fact("quantised", said(result["quantized"]))


def _progress(state: State, progress: Progress | None) -> Iterator[Fact]:
    """How far the writing is. What is done after it, the verifying, has no bytes to count."""
    if progress is None:
        return
    if progress.total and progress.done >= progress.total:
        yield Fact("", f"{clean(progress.what)} …")
        return
    yield Fact("", clean(progress.what))
    yield Fact("", bar(progress))
    if state.speed is not None:
        yield Fact("speed", f"{human_size(state.speed)}/s")
    if state.left is not None:
        yield Fact("left", f"{state.left:.0f} s")


def _verified(result: Mapping[str, Any]) -> Iterator[Fact]:
    from adapterhub.export.told import in_words

    report = result.get("verified")
    try:
        told = in_words(report) if isinstance(report, Mapping) else "not checked"
    except (KeyError, TypeError):  # of another version
        told = said(report)
    if isinstance(told, str):
        yield Fact("", clean(told), "warning")
        return
    for label, text in told.items():
        yield Fact(label.replace("_", " "), clean(text))
