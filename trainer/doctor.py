"""What a training's events and its adapter say about it, judged; nothing is printed here.

`diagnose` looks at a whole training, `during` at one that runs, `examine` finds both halves of what a person named.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import NotFoundError, UsageError
from adapterhub.runs import RECIPE
from adapterhub.trainer.finding import SEVERITIES, Finding
from adapterhub.trainer.history import History
from adapterhub.trainer.rules import IMPLIED, RULES, RUNNING
from adapterhub.words import counted, did_you_mean, short, some

if TYPE_CHECKING:
    from collections.abc import Callable

    from adapterhub.store import Resolved, Store
    from adapterhub.trainer.probe import Probe

LAST = "last"
"""What people call the newest training."""
_KIND = "train-"


def diagnose(history: History, probe: Probe | None = None) -> list[Finding]:
    """What is to be said about a training that has ended, the worst first; what another finding explains is left out.

    Args:
        probe: of the adapter it left, where there is one: whether every module learned something.
    """
    found = [finding for rule in RULES if (finding := rule(history))]
    if probe is not None and (silent := silent_modules(history, probe)):
        found.append(silent)
    implied = _implied(finding.rule for finding in found)
    told = [finding for finding in found if finding.rule not in implied]
    return sorted(told, key=lambda finding: SEVERITIES.index(finding.severity))


def during(history: History, told: Collection[str] = ()) -> list[Finding]:
    """What can be said while a training runs, without the rules in `told`: add to those what this returns.

    Cheap enough to be asked after every step: the rules look at a bounded number of steps.
    """
    found = [finding for rule in RUNNING if (finding := rule(history))]
    known = {*told, *(one.rule for one in found)}
    return [one for one in found if one.rule not in _implied(known) and one.rule not in told]


def _implied(rules: Iterable[str]) -> frozenset[str]:
    """What these rules explain."""
    return frozenset[str]().union(*(IMPLIED.get(rule, frozenset()) for rule in rules))


def silent_modules(history: History, probe: Probe) -> Finding | None:
    """Modules whose delta is zero after training, and what went wrong."""
    dead = [module for module in probe.modules if not module.values]
    if not dead:
        return None
    every = len(dead) == len(probe.modules)
    factor = " and ".join(sorted({f"lora_{name}" for module in dead for name in module.dead}))
    names = some([module.name for module in dead])
    what = (
        f"{factor or 'The delta'} is zero in all {counted(len(dead), 'module')}: the adapter changes nothing."
        if every
        else f"{factor or 'The delta'} is zero in {len(dead)} of {len(probe.modules)} modules, which change nothing: {names}."
    )
    why, advice = _why_silent(history, every=every)
    return Finding("silent-modules", "problem", f"{what} {why}", advice)


def _why_silent(history: History, *, every: bool) -> tuple[str, str]:
    """Why B may have stayed where it began, by what the events tell, and what to do."""
    rates = [step.learning_rate for step in history.steps if step.learning_rate is not None]
    norms = [step.grad_norm for step in history.steps if step.grad_norm is not None]
    if not history.steps:
        why = "Of its training nothing is known here."
        advice = "It may never have been trained: B begins at zero. Train it, or add the folder that training wrote."
    elif rates and not any(rates):
        why = "The learning rate was 0 at every step."
        advice = "Set learning_rate, and let the schedule end no earlier than the training."
    elif norms and not any(norms):
        why = "No gradient reached it: its norm was 0 at every step."
        advice = (
            "Two things do this: reentrant gradient checkpointing while the embeddings' output requires no gradient "
            "(model.enable_input_require_grads(), or gradient_checkpointing: false), and modules frozen after the adapter "
            "was attached."
        )
    elif every:
        why = "Yet gradients came and the learning rate was not 0."
        advice = (
            "So what was saved is not what was trained: look at which adapter was saved, and when."
        )
    else:
        why = "The others learned."
        advice = (
            "The loss doesn't depend on these modules (experts that no row reached, layers behind a frozen part), or they "
            "were frozen. Leave them out with target_modules, or train on rows that need them."
        )
    return why, advice


@dataclass(frozen=True)
class Examination:
    """What is known of one training: its events, its adapter, or both."""

    name: str | None
    """The adapter's name or short digest; None where the training left none in the store."""
    digest: str | None
    run: str | None
    history: History | None
    probe: Probe | None
    remarks: tuple[str, ...]
    """What could not be looked at, and why."""

    @property
    def findings(self) -> list[Finding]:
        """What is to be said about it; of one that runs, or was killed, what can be said so far."""
        history = self.history or History(outcome="done")
        return during(history) if history.outcome is None else diagnose(history, self.probe)

    @property
    def record(self) -> dict[str, Any]:
        """Everything, as `--json` prints it."""
        history = self.history
        return {
            "name": self.name,
            "digest": self.digest,
            "run": self.run,
            "outcome": history.outcome if history else None,
            "steps": history.last if history else None,
            "planned_steps": history.planned if history else None,
            "findings": [finding.record for finding in self.findings],
            "probe": self.probe.record if self.probe else None,
            "remarks": list(self.remarks),
        }


def examine(store: Store, text: str, done: Callable[[], object] = lambda: None) -> Examination:
    """The training that `text` means: `last`, a run's id or its unique beginning, or an adapter's name.

    `done` is called after each module that is probed. Raises NotFoundError with what was perhaps meant, and UsageError
    where a beginning is that of several runs.
    """
    runs = trainings(store)
    run = runs[-1] if text == LAST and runs else next((r for r in runs if r.name == text), None)
    resolved = None if run else _adapter(store, text, runs)
    if run is None and resolved is None:
        run = _by_beginning(runs, text)
    if run is not None:
        resolved = _left_by(store, run)
    elif resolved is not None:
        run = next((r for r in reversed(runs) if _digest(r) == resolved.digest), None)
    remarks = []
    if run is None and resolved is not None:
        remarks.append(
            f"The run that trained {resolved.label} is not here, so there are no events to look at."
        )
    if run is not None and resolved is None:
        remarks.append(
            f"{run.name} left no adapter in the store, so there is no spectrum to look at."
        )
    probed = _probed(store, resolved, done) if resolved else None
    if resolved is not None and probed is None:
        remarks.append(
            f"{resolved.label} has no low-rank pairs, so there is no spectrum to look at."
        )
    return Examination(
        resolved.label if resolved else None,
        resolved.digest if resolved else None,
        run.name if run else None,
        History.from_events(run / "events.jsonl") if run else None,
        probed,
        tuple(remarks),
    )


def trainings(store: Store) -> list[Path]:
    """The folders of the trainings recorded here, oldest first."""
    if not store.runs_dir.is_dir():
        return []
    # One that was refused before it began, or that goes on with an older one, has no recipe.
    return sorted(run.parent for run in store.runs_dir.glob(f"{_KIND}*/{RECIPE}"))


def _adapter(store: Store, text: str, runs: list[Path]) -> Resolved | None:
    """The adapter of that name; None where it may be the beginning of a run's id."""
    try:
        return store.resolve(text)
    except (NotFoundError, UsageError) as error:
        if any(run.name.startswith(text) for run in runs) and text:
            return None
        if isinstance(error, NotFoundError):
            meant = did_you_mean(text, [run.name for run in runs])
            if text == LAST:
                error.why = "No training has been recorded here either."
            error.why = " ".join(part for part in (error.why, meant) if part)
        raise


def _by_beginning(runs: list[Path], text: str) -> Path:
    found = [run for run in runs if run.name.startswith(text)]
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} trainings begin with {text}.",
            why=some([run.name for run in found]),
            hint=f"Type more of the id, or: adapterhub doctor {LAST}",
        )
    return found[0]


def _left_by(store: Store, run: Path) -> Resolved | None:
    digest = _digest(run)
    if digest is None:
        return None
    try:
        return store.resolve(f"@{short(digest, 64)}")
    except NotFoundError:  # removed and collected since
        return None


def _digest(run: Path) -> str | None:
    """The adapter that a run left in the store."""
    try:
        found = json.loads((run / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it failed, was interrupted, or runs yet
        return None
    digest = found.get("digest") if isinstance(found, dict) else None
    return digest if isinstance(digest, str) else None


def _probed(store: Store, resolved: Resolved, done: Callable[[], object]) -> Probe | None:
    from adapterhub.lora.adapter import opened
    from adapterhub.trainer.probe import probe

    if not store.facts(resolved).modules:
        return None
    with opened(store, [resolved], "probed", plain=False) as (adapter,):
        return probe(adapter, done)
