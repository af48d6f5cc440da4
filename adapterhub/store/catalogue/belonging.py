"""Which adapters belong to a base, however its name was spelled.

What is known counts before what is claimed: with a recorded fingerprint the weights decide. Without one, a claim is taken
at its word, and a claim that could be this base (a path, a bare name, a shorter spelling) makes a candidate, if the
shapes fit.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from adapterhub.base import BaseModel, BaseRegistry
from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import FormatError, NotFoundError, UsageError
from adapterhub.formats.peft_config import looks_like_repo
from adapterhub.fsio import is_folder, typed_path
from adapterhub.names import MIN_DIGEST_PREFIX
from adapterhub.store.catalogue.shapes import Fitting
from adapterhub.words import short

Belongs = Literal["equal", "claimed", "candidate", "other weights"]
"""equal: recorded fingerprint. claimed: its own word, nothing recorded. candidate: the claim could mean this base, and
the shapes fit. other weights: it claims this repository, but the fingerprint recorded for it is another."""

_HEXADECIMAL = re.compile(r"(?:sha256:)?([0-9a-f]{%d,64})\Z" % MIN_DIGEST_PREFIX)
_SHORTEST = 4
"""Characters that two spellings must share at least."""


@dataclass(frozen=True)
class WantedBase:
    """A base that somebody named, with all that is known of it here."""

    text: str
    repo: str | None
    revision: str | None
    fingerprints: frozenset[str]
    model: BaseModel | None
    """Where it is registered on this machine; without it no shapes can be compared."""
    spellings: frozenset[str]

    def belongs(self, row: Any, shapes: Fitting | None) -> Belongs | None:
        """How an adapter belongs to it. `row` has the columns base, revision, claimed, fingerprint and shape."""
        claims = self._claimed_by(row)
        if row.fingerprint is not None and self.fingerprints:
            if row.fingerprint in self.fingerprints:
                return "equal"
            return "other weights" if claims else None
        if claims:
            return "claimed"
        if row.fingerprint is None and shapes is not None and row.shape is not None:
            claim = _bare(row.claimed or row.base or "")
            if any(_alike(claim, spelling) for spelling in self.spellings):
                placed = shapes.placed(row.shape)
                if not placed.missing and not placed.misshapen and placed.total:
                    return "candidate"
        return None

    def _claimed_by(self, row: Any) -> bool:
        if self.repo is None or row.base is None or row.base.lower() != self.repo.lower():
            return False
        return not (self.revision and row.revision and row.revision != self.revision)


def wanted_base(db: sqlite3.Connection, bases: BaseRegistry, text: str) -> WantedBase:
    """The base that `text` means: a folder, `org/name[@revision]`, or the beginning of a fingerprint.

    Raises NotFoundError where it is none of these, UsageError where a fingerprint could be several.
    """
    records = bases.records()
    folder = typed_path(text)
    if is_folder(folder):
        here = bases.open(text)
        return _wanted(db, text, here.repo, here.revision, {here.fingerprint}, here)
    gone = [record for record in records if record["path"] == str(folder.resolve())]
    if gone:
        record = gone[0]
        return _wanted(db, text, record["repo"], record["revision"], {record["fingerprint"]}, None)
    digits = _HEXADECIMAL.match(text.lower())
    if digits:
        found = _by_fingerprint(db, records, text, DIGEST_PREFIX + digits[1])
        if found is not None:
            record = next((r for r in records if r["fingerprint"] == found), {})
            model = _open(bases, record)
            return _wanted(db, text, record.get("repo"), record.get("revision"), {found}, model)
    repo, _, revision = text.partition("@")
    if not looks_like_repo(repo):
        raise NotFoundError(
            f"There is no base {text}.",
            why="It is no folder, no repository, and no fingerprint that is known here.",
            hint="`adapterhub base ls` shows those of this machine.",
        )
    same = [
        record
        for record in records
        if (record["repo"] or "").lower() == repo.lower()
        and (not revision or (record["revision"] or revision).startswith(revision))
    ]
    prints = {record["fingerprint"] for record in same}
    prints |= {
        fingerprint
        for fingerprint, at in db.execute(
            "SELECT DISTINCT fingerprint, revision FROM based WHERE repo = ? COLLATE NOCASE",
            (repo,),
        )
        if not revision or (at or "").startswith(revision)
    }
    model = next((model for record in same if (model := _open(bases, record))), None)
    return _wanted(db, text, repo, revision or None, prints, model)


def _wanted(
    db: sqlite3.Connection,
    text: str,
    repo: str | None,
    revision: str | None,
    prints: set[str],
    model: BaseModel | None,
) -> WantedBase:
    spellings = {repo or "", model.path.name if model is not None else ""}
    for fingerprint in prints:
        spellings |= {
            claim
            for row in db.execute(
                "SELECT base, claimed FROM adapters WHERE fingerprint = ?", (fingerprint,)
            )
            for claim in row
            if claim
        }
    bare = {_bare(spelling) for spelling in spellings}
    return WantedBase(
        text, repo, revision, frozenset(prints), model, frozenset(b for b in bare if len(b) >= _SHORTEST)
    )  # fmt: skip


def _by_fingerprint(
    db: sqlite3.Connection, records: list[dict[str, Any]], text: str, prefix: str
) -> str | None:
    known = {record["fingerprint"] for record in records}
    known |= {row[0] for row in db.execute("SELECT DISTINCT fingerprint FROM based")}
    found = sorted(one for one in known if one.startswith(prefix))
    if len(found) > 1:
        raise UsageError(
            f"{text} could be {len(found)} bases.",
            why="They are " + ", ".join(short(one, 16) for one in found[:5]),
            hint="Give more digits.",
        )
    return found[0] if found else None


def _open(bases: BaseRegistry, record: Mapping[str, Any]) -> BaseModel | None:
    """A registered base, or None where its folder is no longer what it was."""
    if not record or not is_folder(record["path"]):
        return None
    try:
        return bases.open(record["path"])
    except (FormatError, NotFoundError):
        return None


def _bare(claim: str) -> str:
    """The last part of a claim without case and punctuation: gemma3270mit for ./gemma-3-270m-it."""
    last = re.split(r"[/\\]", claim.rstrip("/\\"))[-1]
    return "".join(character for character in last.lower() if character.isalnum())


def _alike(one: str, other: str) -> bool:
    """Whether one is the other, or its beginning: gemma3270m could well be gemma3270mit."""
    if min(len(one), len(other)) < _SHORTEST:
        return False
    return one.startswith(other) or other.startswith(one)
