"""Everything that is looked at before a server is started, as a checklist: what is well, what to know, what is refused.

`adapterhub serve` goes by it and raises the first problem; a screen shows all of it, problems and the rest.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from adapterhub.cli.command import require_extra
from adapterhub.errors import AdapterHubError, MissingDependencyError, UsageError
from adapterhub.names import Name, parse_pointer
from adapterhub.serve.invocation import Invocation, cautions, invoke
from adapterhub.serve.plan import Candidate, Plan, Survey, plan_of, survey
from adapterhub.serve.preflight import templates_differ
from adapterhub.serve.vllm import Engine, Protection, assumed, find
from adapterhub.serve.wish import Wish
from adapterhub.store import Store, gating

if TYPE_CHECKING:
    from adapterhub.serve.capacity import Capacity

DOOR_PACKAGES = ("starlette", "uvicorn", "httpx", "prometheus_client")

Mark = Literal["ok", "warning", "refused", "unknown"]
"""`refused`: it stops the start. `unknown`: it can't be told, which stops nothing."""

PROTECTION: dict[Protection, str] = {
    "none needed": "this vLLM keeps them apart by itself",
    "mask": "our plugin in vLLM masks the adapters in rows for the base",
    "zeros": "questions for the base go through an adapter of zeros",
}
"""What keeps the base's answers apart from the adapters', in words."""

Found = TypeVar("Found")


@dataclass(frozen=True)
class Check:
    """One line of the checklist. `remedy` is what to do or to type."""

    mark: Mark
    what: str
    says: str
    remedy: str = ""


@dataclass(frozen=True)
class AdapterChecks:
    """What was looked at of one adapter."""

    name: str
    checks: tuple[Check, ...]
    left_out: bool = False
    """Only a pattern brought it, so it is left out and stops nothing."""


@dataclass(frozen=True)
class Prospect:
    """What a start of `wish` would find. `plan` and what follows from it are None where it is refused."""

    wish: Wish
    checks: tuple[Check, ...]
    adapters: tuple[AdapterChecks, ...]
    plan: Plan | None = None
    engine: Engine | None = None
    invocation: Invocation | None = None
    room: Capacity | None = None
    problem: AdapterHubError | None = None
    """What `serve` raises: the first that speaks against the plan."""
    no_engine: MissingDependencyError | None = None
    """There is no vLLM, without which a plan can be made but not started."""
    remarks: tuple[str, ...] = ()
    """What a person should know though nothing is wrong."""

    @property
    def startable(self) -> bool:
        """Whether nothing that was looked at stops a start."""
        return all(check.mark != "refused" for check in self.checks) and all(
            check.mark != "refused" or one.left_out for one in self.adapters for check in one.checks
        )


def prospect(store: Store, wish: Wish, *, checked: Callable[[], None] = lambda: None) -> Prospect:
    """Looks at everything, whatever is wrong with some of it; `checked` is called after each adapter."""
    return _Look(store, wish).all(checked)


class _Look:
    """One look. A question that fails becomes a line of the checklist, and the others are asked all the same."""

    def __init__(self, store: Store, wish: Wish) -> None:
        self.store, self.wish = store, wish
        self.checks: list[Check] = []
        self.problem: AdapterHubError | None = None

    def all(self, checked: Callable[[], None]) -> Prospect:
        wish = self.wish
        self._asked("settings", wish.require_sound)
        if wish.keys is not None:
            self._asked("keys", self._keys)
        found = self._asked("adapters", lambda: self._survey(checked)) if self._named else None
        plan = None
        if found is not None:
            self._tell_base(found)
            if self.problem is None:
                plan = self._asked("", partial(self._plan, found))
        if plan is not None:
            self._asked("pinned", partial(require_pinnable, plan, wish.pin))
        if plan is not None and wish.prod:
            self._asked("gates", partial(self._gates, plan))
        engine, missing = self._engine()
        if plan is not None:
            zeros = not wish.direct and (engine or assumed()).protection == "zeros"
            plan = replace(plan, zeros=zeros)
        return self._result(found, plan, engine, missing)

    @property
    def _named(self) -> bool:
        return bool(self.wish.names or self.wish.everything)

    def _result(
        self,
        found: Survey | None,
        plan: Plan | None,
        engine: Engine | None,
        missing: MissingDependencyError | None,
    ) -> Prospect:
        wish = self.wish
        adapters: tuple[AdapterChecks, ...] = ()
        if found is not None:
            chosen = found.chosen
            adapters = tuple(
                AdapterChecks(
                    candidate.label,
                    tuple(checks_of(candidate, allow_mismatch=wish.allow_mismatch)),
                    left_out=candidate not in chosen,
                )
                for candidate in found.candidates
            )
        result = Prospect(
            wish,
            tuple(self.checks),
            adapters,
            engine=engine,
            problem=self.problem,
            no_engine=missing,
        )
        if plan is None:
            self._tell_port()
            return replace(result, checks=tuple(self.checks))
        remarks = self._remarks(plan)
        invocation = invoke(plan, engine or assumed())
        room = room_for(plan, invocation)
        self._tell_protection(plan, invocation.engine)
        self._tell_port()
        self._tell_room(room)
        self.checks += [Check("warning", "to know", remark) for remark in remarks]
        return replace(
            result, checks=tuple(self.checks), plan=plan, invocation=invocation, room=room,
            remarks=(*remarks, *_remarks_of_adapters(plan)),
        )  # fmt: skip

    def _asked(self, what: str, question: Callable[[], Found]) -> Found | None:
        """The answer; None where it is an error, which is then a line. Without `what` the lines of adapters say it."""
        try:
            return question()
        except AdapterHubError as error:
            self.problem = self.problem or error
            if what:
                self.checks.append(_refused(what, error))
            return None

    # What is asked

    def _keys(self) -> None:
        require_door()
        from adapterhub.serve.door.keys import Keys

        assert self.wish.keys is not None
        Keys.load(self.wish.keys)
        self.checks.append(Check("ok", "keys", f"{self.wish.keys} is sound"))

    def _survey(self, checked: Callable[[], None]) -> Survey:
        wish = self.wish
        return survey(
            self.store, wish.names, base=wish.base, extra=wish.extra,
            everything=wish.everything, checked=checked,
        )  # fmt: skip

    def _plan(self, found: Survey) -> Plan:
        wish = self.wish
        return plan_of(
            self.store, found, host=wish.host, port=wish.port, dtype=wish.dtype,
            max_model_len=wish.max_model_len, extra=wish.extra, allow_mismatch=wish.allow_mismatch,
            direct=wish.direct, places=wish.places,
        )  # fmt: skip

    def _gates(self, plan: Plan) -> None:
        require_prod(self.store, [(adapter.label, adapter.digest) for adapter in plan.adapters])
        self.checks.append(Check("ok", "gates", "each is its prod, or may be"))

    def _engine(self) -> tuple[Engine | None, MissingDependencyError | None]:
        """The vLLM that would be started, or why there is none."""
        try:
            engine = find(self.wish.vllm)
        except MissingDependencyError as error:
            self.checks.append(_refused("vLLM", error))
            return None, error
        except AdapterHubError as error:
            self.problem = self.problem or error
            self.checks.append(_refused("vLLM", error))
            return None, None
        build = "for CPUs" if engine.cpu else "for GPUs"
        version = engine.version or "of a version that can't be told"
        self.checks.append(Check("ok", "vLLM", f"{version}, {build}: {engine.executable}"))
        if not self.wish.direct:
            try:
                require_door()
            except MissingDependencyError as error:
                self.checks.append(_refused("door", error))
        return engine, None

    def _remarks(self, plan: Plan) -> list[str]:
        keyed = self.wish.keys is not None or bool(os.environ.get("VLLM_API_KEY"))
        labelled = [(adapter.label, adapter.digest) for adapter in plan.adapters]
        differ = templates_differ(self.store, labelled)
        return [*cautions(plan, keys=keyed), *([differ] if differ else [])]

    # What is told of all adapters together

    def _tell_base(self, found: Survey) -> None:
        if found.apart is None:
            self.checks.append(Check("ok", "base", f"{found.base.label}, {found.base.path}"))
        elif self.wish.allow_mismatch:
            self.checks.append(Check("warning", "base", f"allowed: {found.apart.why}"))
        else:
            self.checks.append(_refused("base", found.apart))

    def _tell_protection(self, plan: Plan, engine: Engine) -> None:
        words = "one slot always stays empty" if plan.direct else PROTECTION[engine.protection]
        self.checks.append(Check("ok", "base's answers", words))

    def _tell_port(self) -> None:
        from adapterhub.serve.launch import require_free

        wish = self.wish
        try:
            require_free(wish.host, wish.port)
        except AdapterHubError as error:  # a dry run doesn't need it; who starts is told again
            self.checks.append(_refused("port", error))
        else:
            self.checks.append(Check("ok", "port", f"{wish.host}:{wish.port} is free"))

    def _tell_room(self, room: Capacity) -> None:
        if room.problems:
            says, remedy = "; ".join(room.problems), "; ".join(room.advice)
            self.checks.append(Check("warning", "memory", says, remedy))
        elif room.fits is None:
            self.checks.append(
                Check("unknown", "memory", f"can't be told: {'; '.join(room.unknown)}")
            )
        else:
            self.checks.append(Check("ok", "memory", "it fits"))


def checks_of(candidate: Candidate, *, allow_mismatch: bool) -> Iterator[Check]:
    """What the checks of one adapter found, line by line."""
    found = candidate.found
    by_kind = {
        kind: [problem for problem in found.problems if problem.kind == kind]
        for kind in ("unfit", "unsupported", "unsound")
    }
    if found.misfits:
        mark: Mark = "warning" if allow_mismatch else "refused"
        yield Check(mark, "fits its base", "; ".join(found.misfits))
    else:
        yield Check("ok", "fits its base", f"{found.modules} modules found in it")
    told: dict[str, tuple[Mark, str]] = {
        "equal": ("ok", "trained on these weights, by their fingerprint"),
        "different": ("warning" if allow_mismatch else "refused", "trained on other weights"),
        "unknown": ("unknown", "not recorded on which weights it was trained"),
    }
    yield Check(*_with("fingerprint", told[found.verdict.fingerprint]))
    told = {
        "equal": ("ok", "trained with the chat template it is asked through"),
        "different": ("warning", "trained with another chat template"),
        "unknown": ("unknown", "not recorded with which chat template it was trained"),
    }
    yield Check(*_with("template", told[found.template]))
    yield Check("ok", "rank", str(found.rank))
    if unsupported := by_kind["unsupported"]:
        remedies = dict.fromkeys(problem.remedy for problem in unsupported if problem.remedy)
        says = "; ".join(problem.text for problem in unsupported)
        yield Check("refused", "kind", says, "; ".join(remedies))
    else:
        yield Check("ok", "kind", f"{found.kind}, nothing beyond low-rank pairs")
    if unsound := by_kind["unsound"]:
        yield Check("refused", "values", "; ".join(problem.text for problem in unsound))
    else:
        yield Check("ok", "values", "all finite")
    for remark in found.remarks:
        yield Check("warning", "to know", remark)


def require_prod(store: Store, adapters: Sequence[tuple[str, str]]) -> None:
    """GateError for the first, by label and digest, that is not what its tag prod means and may not become it."""
    for label, digest in adapters:
        pointer = parse_pointer(label)
        if not isinstance(pointer, Name):
            raise UsageError(
                f"{label} has no name, so no gate speaks of it.",
                hint="Serve it by its name, or without --prod.",
            )
        release = replace(pointer, tag="prod")
        if store.refs.now(release) != digest:
            gating.require(store, release, digest)


def require_pinnable(plan: Plan, names: Sequence[str]) -> tuple[str, ...]:
    """The names to pin, each served, and fewer than there are places where others are to come and go."""
    known = {name for adapter in plan.adapters for name in adapter.names}
    for name in names:
        if name not in known:
            raise UsageError(
                f"'{name}' is pinned but not served.", hint=f"Served: {', '.join(sorted(known))}."
            )
    if len(set(names)) >= plan.loaded < len(plan.adapters):
        raise UsageError(
            f"{len(set(names))} adapters are pinned where {plan.loaded} are held, so no other could be loaded.",
            hint=f"--loaded {len(set(names)) + 1}",
        )
    return tuple(names)


def room_for(plan: Plan, invocation: Invocation) -> Capacity:
    """What it takes of the memory that is free."""
    from adapterhub.serve.capacity import capacity, demand_of
    from adapterhub.serve.memory import find_memory

    sizes = [adapter.size for adapter in plan.adapters]
    demand = demand_of(plan, invocation.variables)
    return capacity(plan.base, sizes, demand, find_memory(cpu=invocation.engine.cpu))


def require_door() -> None:
    """MissingDependencyError where a package of the door is missing."""
    for package in DOOR_PACKAGES:
        require_extra(package, "door")


def _remarks_of_adapters(plan: Plan) -> list[str]:
    return [
        f"{adapter.label}: {remark}"
        for adapter in plan.adapters
        for remark in (*adapter.remarks, *(f"allowed: {reason}" for reason in adapter.overridden))
    ]


def _refused(what: str, error: AdapterHubError) -> Check:
    return Check("refused", what, f"{error.what} {error.why}".strip(), error.hint)


def _with(what: str, told: tuple[Mark, str]) -> tuple[Mark, str, str]:
    return told[0], what, told[1]
