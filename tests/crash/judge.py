"""What must hold of a store after a fault, seen from outside with none of the product's code."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.store.watching import Listing, journal, left_over, listing, problems, refs

Refs = dict[str, str]
_SHELVES = ("blobs/", "manifests/", "attestations/")


@dataclass(frozen=True)
class Seen:
    """A store: what its names mean, its journal, its files."""

    refs: Refs
    journal: list[dict[str, Any]]
    files: Listing

    @classmethod
    def of(cls, home: Path) -> Seen:
        """As it is now."""
        return cls(refs(home), journal(home), listing(home))

    def of_refs(self) -> list[dict[str, Any]]:
        """The journal's lines about refs, without those about the trash."""
        return [line for line in self.journal if line["ref"]]

    def held(self, *, trash: bool) -> set[str]:
        """What lies on the shelves, each named by its own sha256; or there and in the trash."""
        found = set()
        for name, fact in self.files.items():
            if name.startswith("trash/") and trash:
                name = name.split("/", 2)[2]
            if name.startswith(_SHELVES) and name.endswith("/" + fact.split()[-1]):
                found.add(name)
        return found


def harm(now: Seen, before: Seen, whole: Seen) -> list[str]:
    """What is wrong whatever the point of the fault: something known is lost, or something unknown has appeared."""
    wrong = []
    for name in sorted(before.refs.keys() | now.refs.keys() | whole.refs.keys()):
        allowed = {before.refs.get(name), whole.refs.get(name)}
        if now.refs.get(name) not in allowed:
            wrong.append(
                f"{name} means neither what it did nor what it should"
                if name in now.refs
                else f"{name} is lost"
            )
        elif now.refs.get(name) != before.refs.get(name) and not _told(now, name):
            wrong.append(f"{name} has changed and the journal doesn't know it")
    wrong += [f"{name} is lost" for name in sorted(before.held(trash=True) - now.held(trash=True))]
    if now.journal[: len(before.journal)] != before.journal:
        wrong.append("the journal lost lines")
    return wrong


def shortfall(now: Seen, whole: Seen) -> list[str]:
    """What is missing of the intended end."""
    wrong = []
    if now.refs != whole.refs:
        wrong.append(f"the names are {told(now.refs)}, not {told(whole.refs)}")
    expected, found = (_comparable(seen.held(trash=False)) for seen in (whole, now))
    wrong += [f"there is no {name}" for name in sorted(expected - found)]
    wrong += [f"there still is {name}" for name in sorted(found - expected)]
    lost = _comparable(whole.held(trash=True)) - _comparable(now.held(trash=True))
    wrong += [f"{name} is gone for good" for name in sorted(lost - (expected - found))]
    return wrong


def lasting(left: Seen, now: Seen, known: Seen) -> list[str]:
    """What a power cut took: names and journal as they were right before, and all that was `known`."""
    wrong = []
    if left.refs != now.refs:
        wrong.append(f"the names are {told(left.refs)}, not {told(now.refs)}")
    if left.journal != now.journal:
        wrong.append("the journal has lost lines")
    wrong += [f"there is no {name}" for name in sorted(known.held(trash=True) - left.held(trash=True))]  # fmt: skip
    return wrong


def after_failure(
    kind: str, code: int, said: str, home: Path, before: Seen, whole: Seen, spared: Refs
) -> list[str]:
    """What is wrong after a command that was interrupted or found the disk full, and could clean up after itself.

    Args:
        spared: the names as any other command leaves them: as `before`, but for what a crash had left half done.
    """
    now = Seen.of(home)
    wrong = [*problems(home), *harm(now, before, whole)]
    expected = {"interrupt": 130, "full": 1}[kind]
    if "Something went wrong inside" in said or "Traceback" in said:
        wrong.append(f"told as a bug: {said.strip()[:300]}")
    if left_over(home):
        wrong.append(f"left over: {left_over(home)}")
    # Who interrupts a command that is only tidying up is told that it was done.
    done = kind == "interrupt" and "in the store already" in said and now.refs == whole.refs
    if code == expected and not done and now.refs not in (before.refs, spared):
        wrong.append(f"exit {code} although the refs have changed")
    if code == expected and not done and now.of_refs() != before.of_refs():
        wrong.append(f"exit {code} although the journal has a change more")
    if code not in (expected, 0):
        wrong.append(f"exit {code}: {said.strip()[:300]}")
    if code == 0 and now.refs != whole.refs:
        wrong.append("exit 0 although it wasn't done")
    return wrong


def told(names: Refs) -> str:
    """Refs for people."""
    return ", ".join(f"{name}={digest[7:13]}" for name, digest in sorted(names.items())) or "none"


def shown_by_ls(out: str) -> set[str]:
    """The names in what `ls --json` printed."""
    return {row["name"] for row in json.loads(out)}


def spoken(ref: str) -> str:
    """namespace/name/tag as people write it."""
    namespace, name, tag = ref.split("/")
    path = name if namespace == "_" else f"{namespace}/{name}"
    return path if tag == "latest" else f"{path}:{tag}"


def _told(now: Seen, name: str) -> bool:
    after = now.refs.get(name, "").strip() or None
    return any(line["ref"] == spoken(name) and line["after"] == after for line in now.journal)


def _comparable(held: set[str]) -> set[str]:
    """An attestation's digest holds the time: of those only the subject is the same in every run."""
    return {name.rpartition("/")[0] if name.startswith("attestations/") else name for name in held}
