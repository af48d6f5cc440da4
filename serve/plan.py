"""What will be served: adapters, their names, one base, and the numbers vLLM needs to know beforehand.

A plan is made from the store and the base's headers alone, so it is the same with and without vLLM installed. Every
adapter is served twice over: under its name, and under `name@<digest>`, which means the same weights for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from adapterhub.base import BaseModel, Comparison
from adapterhub.errors import IncompatibleError, NotFoundError
from adapterhub.merge.recipe import SERVABLE_RANKS
from adapterhub.same_base import shared_base
from adapterhub.serve.naming import public_names
from adapterhub.serve.preflight import Checked, Size, check, refuse
from adapterhub.store import Resolved, Store

MOST_LOADED = 16
"""Versions held where nothing is said; hundreds may be served."""
MOST_IN_A_BATCH = 8
"""Slots where nothing is said: each is memory on the accelerator that the KV cache can't have."""

COLUMNS = ("name", "version", "kind", "rank", "modules", "base weights")


@dataclass(frozen=True)
class ServedAdapter:
    """One adapter and the names it is asked for by; `path` is its immutable PEFT folder."""

    digest: str
    names: tuple[str, ...]
    path: Path
    rank: int
    modules: str
    fingerprint: Comparison
    remarks: tuple[str, ...]
    overridden: tuple[str, ...]
    """Reasons why it doesn't fit the base or the other adapters, which were allowed."""
    size: Size

    @property
    def label(self) -> str:
        """What the user calls it."""
        return self.names[0]


@dataclass(frozen=True)
class Places:
    """Room for adapters, as it was asked for; what is None is computed.

    `loaded`: versions the engine holds at most, the least recently used put out for others. `batch`: different ones that
    may share a batch; each costs a slot of the largest rank. `rank`: the largest that may come later.
    """

    loaded: int | None = None
    batch: int | None = None
    rank: int | None = None


@dataclass(frozen=True)
class Plan:
    """Everything a server has to be told. `extra` is handed on to vLLM as it is.

    `direct`: vLLM listens itself, with the names it is started with. Otherwise the front door does, and vLLM behind it knows
    versions by digest, which come and go.
    """

    base: BaseModel
    base_name: str
    adapters: tuple[ServedAdapter, ...]
    host: str
    port: int
    dtype: str
    max_model_len: int | None
    extra: tuple[str, ...]
    direct: bool = False
    places: Places = Places()
    zeros: bool = False
    """Whether an adapter of zeros stands for the base; it takes a place in most batches."""
    skipped: tuple[str, ...] = ()
    """Why adapters that a pattern matched are left out."""

    @property
    def modules(self) -> dict[str, Path]:
        """Served name -> folder. The same version under two names of one adapter is listed once."""
        return {name: adapter.path for adapter in self.adapters for name in adapter.names}

    @property
    def names(self) -> tuple[str, ...]:
        """Everything a request may name as its model, the base first."""
        return (self.base_name, *self.modules)

    @property
    def max_lora_rank(self) -> int:
        """The smallest rank vLLM can be set up for that holds every adapter; memory grows with it."""
        needed = max(self.places.rank or 1, *(adapter.rank for adapter in self.adapters))
        return next(rank for rank in SERVABLE_RANKS if rank >= needed)

    @property
    def loaded(self) -> int:
        """Versions behind the door that vLLM holds at most: all of a short list and one for a swap, else 16."""
        versions = {adapter.digest for adapter in self.adapters}
        return self.places.loaded or min(len(versions) + 1, MOST_LOADED)

    @property
    def max_loras(self) -> int:
        """Slots: how many different adapters may share a batch.

        vLLM counts names, not weights. Directly, every name has one and one stays empty: in a batch, rows for the base carry
        the index -1, which the CPU kernels up to 0.32 take as the *last* slot (vllm-project/vllm #48421, #49656), so
        nothing may be in it. Behind the door the base is protected in another way (`protection`), and adapters that find no
        slot wait for the next batch.
        """
        if self.direct:
            return len(self.modules) + 1
        return (self.places.batch or min(self.loaded, MOST_IN_A_BATCH)) + self.zeros

    @property
    def max_cpu_loras(self) -> int:
        """How many vLLM keeps in memory. Behind the door two more than `loaded`: the adapter of zeros, and one on its way out."""
        return self.max_loras if self.direct else max(self.loaded + 2, self.max_loras)

    @property
    def url(self) -> str:
        """Where clients on this machine reach the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def rows(self) -> list[dict[str, Any]]:
        """A table of what is served, the base first."""
        first = dict.fromkeys(("version", "rank", "modules", "base weights"))
        return [{"name": self.base_name, "kind": "base", **first}] + [
            {
                "name": adapter.names[0],
                "version": adapter.names[-1],
                "kind": "adapter",
                "rank": adapter.rank,
                "modules": adapter.modules,
                "base weights": adapter.fingerprint,
            }
            for adapter in self.adapters
        ]

    def document(self) -> dict[str, Any]:
        """The plan as data: what `--json` prints and a run keeps."""
        return {
            "base": {
                "name": self.base_name,
                "repo": self.base.repo,
                "revision": self.base.revision,
                "path": str(self.base.path),
            },
            "adapters": [
                {
                    "names": list(adapter.names),
                    "digest": adapter.digest,
                    "path": str(adapter.path),
                    "rank": adapter.rank,
                    "modules": adapter.modules,
                    "fingerprint": adapter.fingerprint,
                    "remarks": list(adapter.remarks),
                    "allowed_mismatch": list(adapter.overridden),
                }
                for adapter in self.adapters
            ],
            "url": self.url,
            "dtype": self.dtype,
            "max_model_len": self.max_model_len,
            "max_lora_rank": self.max_lora_rank,
            "max_loras": self.max_loras,
            "max_cpu_loras": self.max_cpu_loras,
            "loaded": None if self.direct else self.loaded,
            "direct": self.direct,
            "skipped": list(self.skipped),
        }


@dataclass(frozen=True)
class Candidate:
    """One adapter that was named, or that a pattern matched, and what its checks found."""

    names: tuple[str, ...]
    adapter: Resolved
    found: Checked
    by_pattern: bool

    @property
    def label(self) -> str:
        """What the user calls it."""
        return self.names[0]


@dataclass(frozen=True)
class Survey:
    """What was found of all that was wanted, before anybody decides; `plan_of` makes a plan of it, or refuses."""

    base: BaseModel
    candidates: tuple[Candidate, ...]
    apart: IncompatibleError | None
    """Those that can be served are known to belong to different bases."""

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """Without those that only a pattern brought, and that can't be served."""
        return tuple(c for c in self.candidates if not (c.by_pattern and c.found.problems))

    @property
    def skipped(self) -> tuple[str, ...]:
        """Why adapters that a pattern matched are left out."""
        return tuple(
            f"{c.label}: {'; '.join(problem.text for problem in c.found.problems)}"
            for c in self.candidates
            if c.by_pattern and c.found.problems
        )


def survey(
    store: Store,
    wanted: Sequence[str],
    *,
    base: str | None = None,
    extra: Sequence[str] = (),
    everything: bool = False,
    checked: Callable[[], None] = lambda: None,
) -> Survey:
    """Resolves and checks the adapters `wanted`; `checked` is called after each.

    A word of `wanted` with `*` or `?` in it, and `everything`, mean all names of the store that match.

    Raises:
        NotFoundError: names that aren't in the store, or a base that isn't on this machine.
    """
    matched = _matched(store, ["*"] if everything else [w for w in wanted if is_pattern(w)])
    resolved = _resolve(store, [word for word in wanted if not is_pattern(word)])
    by_pattern = {names for names in matched if names not in resolved}
    resolved |= matched
    if not resolved:
        raise NotFoundError(
            "No adapter matches.", why=f"Wanted: {' '.join(wanted) or 'all'}.", hint="adapterhub ls"
        )
    model = _find_base(store, list(resolved.values()), base)
    candidates = []
    for names, adapter in resolved.items():
        found = check(store, adapter, names[0], model, extra)
        candidates.append(Candidate(names, adapter, found, names in by_pattern))
        checked()
    result = Survey(model, tuple(candidates), None)
    try:
        shared_base(store, [candidate.adapter for candidate in result.chosen])
    except IncompatibleError as error:
        return replace(result, apart=error)
    return result


def plan_of(
    store: Store,
    found: Survey,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    dtype: str = "auto",
    max_model_len: int | None = None,
    extra: Sequence[str] = (),
    allow_mismatch: bool = False,
    direct: bool = False,
    places: Places = Places(),
) -> Plan:
    """The plan of what was found.

    Raises:
        IncompatibleError: an adapter doesn't fit the base, or they belong to different ones (unless allowed).
        UnsupportedError: an adapter that vLLM can't honour.
    """
    model, served = found.base, found.chosen
    if not served:
        raise IncompatibleError(
            f"None of the {len(found.skipped)} adapters that match can be served on {model.label}.",
            why="\n  ".join(found.skipped[:20]),
            hint="Choose another base with --base.",
        )
    problems = [problem for candidate in served for problem in candidate.found.problems]
    between: tuple[str, ...] = ()
    if found.apart is not None and allow_mismatch:
        adapters = [candidate.adapter for candidate in served]
        between = shared_base(store, adapters, allow_mismatch=True).overridden
    # The plainer message, unless there is more to say than that.
    elif found.apart is not None and all(problem.kind == "unfit" for problem in problems):
        raise found.apart
    refuse(problems, [candidate.label for candidate in served], allow_mismatch=allow_mismatch)
    taken = {name for candidate in served for name in candidate.names}
    return Plan(
        base=model,
        base_name=str(model.path) if model.label in taken else model.label,
        adapters=tuple(
            ServedAdapter(
                digest=candidate.adapter.digest,
                names=candidate.names,
                path=store.view(candidate.adapter.digest),
                rank=candidate.found.rank,
                modules=candidate.found.modules,
                fingerprint=candidate.found.verdict.fingerprint,
                remarks=candidate.found.remarks,
                overridden=candidate.found.misfits or between,
                size=candidate.found.size,
            )
            for candidate in served
        ),
        host=host,
        port=port,
        dtype=dtype,
        max_model_len=max_model_len,
        extra=tuple(extra),
        direct=direct,
        places=places,
        skipped=found.skipped,
    )


def make_plan(
    store: Store,
    wanted: Sequence[str],
    *,
    base: str | None = None,
    extra: Sequence[str] = (),
    everything: bool = False,
    **fields: Any,
) -> Plan:
    """`survey` and `plan_of` in one: the plan, or what speaks against it. `fields` are those of `plan_of`."""
    found = survey(store, wanted, base=base, extra=extra, everything=everything)
    return plan_of(store, found, extra=extra, **fields)


def is_pattern(word: str) -> bool:
    """Whether `word` means every name that matches it."""
    return "*" in word or "?" in word


def _matched(store: Store, patterns: Sequence[str]) -> dict[tuple[str, ...], Resolved]:
    """Every name in the store that one of the patterns matches, tag or none, sorted."""
    if not patterns:
        return {}
    names = [str(name) for name in store.refs.names()]
    return _resolve(
        store, [name for name in sorted(names) if any(fnmatchcase(name, p) for p in patterns)]
    )


def _resolve(store: Store, wanted: Sequence[str]) -> dict[tuple[str, ...], Resolved]:
    """Served names -> adapter, in order, each once. All unknown names are reported together."""
    found: dict[tuple[str, ...], Resolved] = {}
    missing: list[NotFoundError] = []
    for text in wanted:
        try:
            adapter = store.resolve(text)
        except NotFoundError as error:
            missing.append(error)
            continue
        found[public_names(text, adapter)] = adapter
    if len(missing) == 1:
        raise missing[0]
    if missing:
        raise NotFoundError(
            f"{len(missing)} of {len(wanted)} adapters can't be found.",
            why="\n  ".join(f"{error.what} {error.why}".strip() for error in missing),
            hint="`adapterhub ls` shows all names.",
        )
    return found


def _find_base(store: Store, adapters: Sequence[Resolved], explicit: str | None) -> BaseModel:
    """The base named, else the first that an adapter claims and this machine has."""
    first: NotFoundError | None = None
    for adapter in adapters:
        try:
            return store.base_for(adapter, explicit)
        except NotFoundError as error:
            if explicit is not None:
                raise
            first = first or error
    assert first is not None
    raise first
