"""What the hub says of a planned merge: before it is run, while it runs. Everything here may block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.errors import AdapterHubError, ConflictError, IncompatibleError
from adapterhub.store import Resolved, Store
from adapterhub.tui.merging.plan import Plan
from adapterhub.tui.problem import Problem
from adapterhub.tui.progress import Watched

if TYPE_CHECKING:
    from adapterhub.merge.estimate import Estimate, Estimator
    from adapterhub.runs import RunRecord


@dataclass(frozen=True)
class Outlook:
    """What would come of a plan, before it is run."""

    plan: Plan
    parents: tuple[Resolved, ...] = ()
    name: str = ""
    """The result's."""
    taken: Problem | None = None
    """The name is another adapter's."""
    differ: Problem | None = None
    """The bases are known to differ."""
    problem: Problem | None = None
    """Anything else that stands in the way."""
    remarks: tuple[str, ...] = ()

    def names(self, plan: Plan) -> bool:
        """Whether `name` is what the result of this plan is called, too."""
        asked = self.plan
        return (asked.names, asked.method, asked.name) == (plan.names, plan.method, plan.name)


def outlook(store: Store, plan: Plan) -> Outlook:
    """What the merge would refuse or warn of before it opens the adapters."""
    from adapterhub.merge.naming import result_name
    from adapterhub.same_base import shared_base

    differ = taken = None
    remarks: tuple[str, ...] = ()
    name, parents = plan.name, tuple[Resolved, ...]()
    try:
        found = [store.resolve(one) for one in plan.names]
        parents = tuple({one.digest: one for one in found}.values())
        recipe = plan.recipe([one.digest for one in found])
        try:
            remarks = shared_base(store, parents, allow_mismatch=plan.allow_mismatch).remarks
        except IncompatibleError as error:
            differ = Problem.of(error)
        try:
            given = plan.name or None
            name = str(result_name(store, parents, recipe, given, move=plan.move).name)
        except ConflictError as error:
            taken = Problem.of(error)
    except AdapterHubError as error:
        return Outlook(plan, parents, name, taken, differ, Problem.of(error), remarks)
    return Outlook(plan, parents, name, taken, differ, None, remarks)


def digests(parents: tuple[Resolved, ...]) -> frozenset[str]:
    """What an estimator is prepared for."""
    return frozenset(one.digest for one in parents)


def prepare(store: Store, parents: tuple[Resolved, ...], progress: Watched) -> Estimator:
    """Reads the adapters for estimates."""
    from adapterhub.merge.estimate import Estimator

    return Estimator.prepare(store, parents, progress)


def ask(store: Store, estimator: Estimator, plan: Plan, progress: Watched) -> Estimate:
    """What the plan would keep."""
    parents = [store.resolve(one).digest for one in plan.names]
    return estimator.ask(plan.recipe(parents), progress)


def all_names(store: Store) -> list[str]:
    """Every name there is, damaged ones too."""
    return sorted(map(str, store.refs.names()))


def progress_of(store: Store, run: str) -> RunRecord:
    """How far a run is."""
    from adapterhub.runs import read_run

    return read_run(store.runs_dir / run)


def stop(store: Store, run: str) -> None:
    """Tells a run to end."""
    from adapterhub.jobs import stop as stop_job

    stop_job(progress_of(store, run))
