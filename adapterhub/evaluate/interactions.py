"""What a merge made of each task, beside what the weights alone had promised.

Of each adapter's gain over the base on its own task, how much does the merge keep? And how much of its delta does the merge
hold (`retained`, <M,ΔW>/||ΔW||²), which is all that a comparison of weights can tell? Where the two part, adapters
interfere, or help each other, in ways the weights don't show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import UsageError
from adapterhub.evaluate.run import evaluate
from adapterhub.evaluate.subjects import BASE
from adapterhub.evaluate.table import EvalRow

if TYPE_CHECKING:
    from adapterhub.store import Store


@dataclass(frozen=True)
class Kept:
    """One task: every model on it, and what the merge kept of the gain of the adapter that was trained for it."""

    data: str
    adapter: str
    rows: tuple[EvalRow, ...]
    """Of the base, the adapters in order, and the merge; then of the base as asked otherwise, where it was."""
    gain: float
    """Of the adapter over the base, in nats a token; what it gained, or lost below 0."""
    kept: float | None
    """Of that gain, the share that the merge has; None where there was no gain to keep."""
    retained: float | None
    """The share of the adapter's delta that the merge holds."""
    cosine: float | None
    """Of the adapter's delta and the nearest of the others, as `diff` tells it."""


def interactions(
    store: Store,
    adapters: Sequence[str],
    merged: str,
    data: Sequence[Path],
    *,
    progress: Any = None,
    **settings: Any,
) -> list[Kept]:
    """Scores the base, each of `adapters` and the merge on every adapter's task.

    Args:
        merged: an adapter made of them, or any other to hold against them.
        data: each adapter's task, in their order.
        settings: as `evaluate` takes them.

    Raises UsageError where adapters and tasks aren't as many, and what `evaluate` raises.
    """
    if len(adapters) < 2 or len(adapters) != len(data):
        raise UsageError(
            f"{len(adapters)} adapters and {len(data)} tasks were named.",
            why="Interactions are between two or more, each with the data of its own task.",
            hint=f"adapterhub eval A B --interactions {merged} --data a.json --data b.json",
        )
    names = [BASE, *adapters, merged]
    promised = _compared(store, [*adapters, merged])
    found = []
    for place, (adapter, task) in enumerate(zip(adapters, data, strict=True)):
        rows = evaluate(store, names, data=task, progress=progress, **settings)
        before, own, after = (_loss(rows[at]) for at in (0, 1 + place, len(names) - 1))
        gain = before - own
        retained, cosine = promised(place)
        found.append(
            Kept(
                data=task.name,
                adapter=adapter,
                rows=tuple(rows),
                gain=gain,
                kept=(before - after) / gain if gain > 0 else None,
                retained=retained,
                cosine=cosine,
            )
        )
    return found


def _loss(row: EvalRow) -> float:
    if row.loss is None:
        raise UsageError(
            f"No likelihoods are known of {row.name}, and gains are told in them.",
            hint="Evaluate where the models are computed here, without --server.",
        )
    return row.loss


def _compared(
    store: Store, names: Sequence[str]
) -> Callable[[int], tuple[float | None, float | None]]:
    """For the adapter at a place: what the last of `names` retains of it, and its cosine with the nearest other."""
    from adapterhub.compare.similarity import compare
    from adapterhub.lora.adapter import opened

    parents = [store.resolve(name) for name in names]
    with opened(store, parents, "compared", plain=False) as opened_ones:
        whole = compare(opened_ones).whole
    last = len(names) - 1

    def of(place: int) -> tuple[float | None, float | None]:
        energy, inner = whole.norm(place) ** 2, whole.inner((place, last))
        pairs = [(min(place, other), max(place, other)) for other in range(last) if other != place]
        cosines = [cosine for pair in pairs if (cosine := whole.cosine(pair)) is not None]
        return inner / energy if energy > 0 else None, max(cosines, key=abs, default=None)

    return of
