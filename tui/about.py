"""An adapter in words: everything known about it, in the order in which people ask.

Nothing is worked out here. `adapterhub show` and this read the same record; this leaves out what says nothing (defaults,
empty fields) and puts what matters first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapterhub.cli.output import clean
from adapterhub.manifest import Attestation
from adapterhub.tui import attested
from adapterhub.tui.facts import Fact, Names, Section, Tone, moment, said
from adapterhub.tui.model import Problem, Row
from adapterhub.words import human_count, human_size, short

_TOLD_IN_A_LINE = ("rank", "alpha", "scaling", "targets", "modules", "parameters", "dtype")
_SAYS_NOTHING: tuple[object, ...] = (None, False, "", "none", [], {})


def in_words(
    row: Row, record: Mapping[str, Any], attestations: Sequence[Attestation], names: Names
) -> tuple[Section, ...]:
    """The sections for an adapter.

    Args:
        row: what the list says of it.
        record: what `adapterhub show` prints (`cli.library.details`).
        attestations: what is known about it, oldest first.
        names: a name for each digest that has one.
    """
    return _with_facts(
        Section("", tuple(_itself(record, row.added))),
        Section("Notes", tuple(Fact("", clean(note), "warning") for note in record["notes"])),
        Section("Base", tuple(_base(record["base"], row.base, attestations))),
        *attested.sections(attestations, names),
        Section(
            "Files",
            tuple(Fact(human_size(file["size"]), clean(file["path"])) for file in record["files"]),
        ),
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
                yield Fact(clean(key), said(value))
    else:
        yield Fact("kind", said(record["kind"]), "strong")
    if beyond := record.get("beyond plain LoRA"):
        yield Fact("beyond LoRA", said(beyond), "warning")
    if others := [name for name in record["names"] if name != record["name"]]:
        yield Fact("also named", said(others))
    yield Fact("added", moment(added))
    yield Fact("digest", said(record["digest"]))


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
