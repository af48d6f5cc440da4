"""Between the store and the gates in config.toml: what a name asks for, and what the store knows about it.

The judging is `adapterhub.evaluate.gates`, which is imported only where there are gates: nobody else waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from adapterhub.errors import AdapterHubError
from adapterhub.names import Name

if TYPE_CHECKING:
    from adapterhub.evaluate.gates import Finding, Home
    from adapterhub.settings import Demand
    from adapterhub.store.store import Store


@dataclass(frozen=True)
class Standing:
    """How an adapter stands before the gate of a name."""

    name: Name
    findings: tuple[Finding, ...]
    now: str | None
    """The digest that the name means now."""

    @property
    def open(self) -> bool:
        """Whether the name may mean the adapter."""
        return self.met == len(self.findings)

    @property
    def met(self) -> int:
        """How many demands hold."""
        return sum(finding.held for finding in self.findings)


def findings(store: Store, name: Name, digest: str) -> list[Finding]:
    """What `name` asks for before it may mean the adapter, and what is known about that."""
    demands = _demands(store, name)
    if not demands:
        return []
    return _judged(store, name, digest, demands, store.refs.now(name) or _last(store, name))


def standing(store: Store, name: Name, digest: str) -> Standing | None:
    """How an adapter stands before the gate of a name; None where there is no gate.

    What the name means already was let in beside what it meant before, and is held against that.
    """
    demands = _demands(store, name)
    if not demands:
        return None
    now = store.refs.now(name)
    if now == digest:
        before = next(iter(_releases(store, name)[-2:-1]), None)
        judged = _judged(store, name, digest, demands, before)
    else:
        judged = _judged(store, name, digest, demands, now or _last(store, name))
    return Standing(name, tuple(judged), now)


def standings(store: Store, digest: str, names: Iterable[Name]) -> list[Standing]:
    """The same before every gate on these names, whatever their tags."""
    tags = dict.fromkeys(gate.tag for gate in store.settings.gates)
    asked = dict.fromkeys(replace(name, tag=tag) for name in names for tag in tags)
    found = [standing(store, name, digest) for name in asked]
    return [one for one in found if one is not None]


def require(store: Store, name: Name, digest: str) -> None:
    """GateError where `name` asks for more than is known of the adapter."""
    demands = _demands(store, name)
    if demands:
        from adapterhub.evaluate import gates

        now = store.refs.now(name)
        current = now or _last(store, name)
        found = _judged(store, name, digest, demands, current)
        gates.require(found, demands, name, digest, now=now, current=current)


def _demands(store: Store, name: Name) -> list[Demand]:
    if not store.settings.gates:
        return []
    from adapterhub.evaluate.gates import demands_on

    return demands_on(store.settings.gates, name)


def _judged(
    store: Store,
    name: Name,
    digest: str,
    demands: Sequence[Demand],
    current: str | None,
) -> list[Finding]:
    """Each demand with what is known about it; `current`: what the adapter is held beside where one asks for that."""
    from adapterhub.evaluate.gates import Home, judge

    known = store.layout.manifest(digest).exists()  # else it is about to be added
    told = store.attestations(digest) if known else []
    return judge(
        demands,
        [one for one in told if one.type == "eval"],
        home=_home(store, digest) if known else Home(None),
        current=current,
    )


def _last(store: Store, name: Name) -> str | None:
    """What the name meant last. Where it means nothing now, that takes its place: removing it is no way round."""
    return next(iter(_releases(store, name)[::-1]), None)


def _home(store: Store, digest: str) -> Home:
    """The base that the adapter is known to belong to, and how it is configured where it is on this machine."""
    from adapterhub.chat_template import digest_of_template, template_in
    from adapterhub.evaluate.gates import Home

    fingerprint = store.known_fingerprint(digest)
    try:
        base = store.base_for(store.resolve(f"@{digest.removeprefix('sha256:')}"))
        template = digest_of_template(template_in(base.path))
    except AdapterHubError:  # it isn't here, so nobody evaluates on it here either
        return Home(fingerprint)
    return Home(fingerprint, base.config_digest, template, present=True)


def _releases(store: Store, name: Name) -> list[str]:
    """The digests that a name had, the present or last one at the end."""
    return store.refs.journal.releases().get(str(name), [])
