"""Do several adapters belong to one base? Refused when they are *known* not to; unknown only warns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from adapterhub.base import claims_differ
from adapterhub.errors import IncompatibleError
from adapterhub.manifest import BaseClaim
from adapterhub.store import Resolved, Store
from adapterhub.words import short


@dataclass(frozen=True)
class SharedBase:
    """What is known of the base of several adapters together."""

    claim: BaseClaim
    fingerprint: str | None
    remarks: tuple[str, ...]
    overridden: tuple[str, ...]
    """Known differences that were allowed."""


def shared_base(
    store: Store, adapters: Sequence[Resolved], *, allow_mismatch: bool = False
) -> SharedBase:
    """The base the adapters share. IncompatibleError naming what differs (fingerprint, repository or revision)."""
    prints = {adapter.digest: store.known_fingerprint(adapter.digest) for adapter in adapters}
    problems: list[str] = []
    spelled: list[str] = []
    for one, other in combinations(adapters, 2):
        mine, theirs = prints[one.digest], prints[other.digest]
        if mine is not None and theirs is not None:
            if mine != theirs:
                problems.append(
                    f"the fingerprint of the base differs: {short(mine)} ({one.label}) and {short(theirs)} ({other.label})"
                )
            continue  # equal weights are one base, whatever the labels say
        differences = claims_differ(one.manifest.base, other.manifest.base)
        problems += [f"{difference} ({one.label} and {other.label})" for difference in differences]
        names = [adapter.manifest.base.repo or "" for adapter in (one, other)]
        last = {name.rpartition("/")[2].lower() for name in names}  # `gpt2` is an alias of org/gpt2
        if not differences and all(names) and len(last) > 1:
            spelled.append(
                f"{one.label} names the base {names[0]}, {other.label} {names[1]}: that they are one was not checked"
            )
    if problems and not allow_mismatch:
        raise IncompatibleError(
            "These adapters belong to different base models.",
            why="; ".join(problems) + ".",
            hint="Say --allow-mismatch only if you know that they are the same weights; it will be recorded.",
        )
    claims = [adapter.manifest.base for adapter in adapters]
    repos = {claim.repo for claim in claims if claim.repo}
    revisions = {claim.revision for claim in claims if claim.revision}
    repo = repos.pop() if len(repos) == 1 else None
    revision = revisions.pop() if repo and len(revisions) == 1 else None
    known = {fingerprint for fingerprint in prints.values() if fingerprint}
    remarks = spelled
    unknown = [
        adapter.label
        for adapter in adapters
        if not adapter.manifest.base.repo and not prints[adapter.digest]
    ]
    if unknown:
        remarks.append(
            f"the base of {', '.join(unknown)} is unknown; that they share one was not checked"
        )
    # Only what every parent is known to share is passed on to their child.
    fingerprint = known.pop() if len(known) == 1 and None not in prints.values() else None
    return SharedBase(BaseClaim(repo, revision), fingerprint, tuple(remarks), tuple(problems))
