"""What an export checks before its model gets its name, how deep, and how that is told.

`adapterhub.export.verify` reads the weights again; `adapterhub.export.logits` lets both models speak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from adapterhub.errors import AdapterHubError
from adapterhub.export.exact import deltas_of, plain_weights
from adapterhub.export.logits import SMALL, compare, parameters
from adapterhub.export.plan import ExportPlan
from adapterhub.export.verify import verify
from adapterhub.export.whole import Seen
from adapterhub.lora.adapter import Adapter
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.stages import Stage
from adapterhub.store import Store
from adapterhub.words import human_count

Depth = Literal["none", "weights", "sized", "all"]
"""Nothing; a sample of the weights; that, and the logits of a small model; every weight and the logits of any."""

EVENT = "exported"
"""What the attestation of a check is called."""
LOSS_THAT_MATTERS = 0.5
"""A bake loss from which on it is worth a warning, where the logits can't say whether it matters.

The noise of rounding then has a quarter (0.5²) of the delta's energy; in bf16 a delta of 0.4% has it. It is spread over
all directions, where a delta works in few: on a model of 135M a loss of 60% moved the logits by 4% of what the adapter
does, one of 67% by 11%, one of 86% by 20%.
"""
SHARE_THAT_MATTERS = 0.1
"""Rounded weights that move the logits by so much of what the adapter moves them by are worth a warning."""


@dataclass(frozen=True)
class Checks:
    """What is needed to check an export of `recipe`: its open adapters, its result, and PEFT folders by digest."""

    recipe: Recipe
    adapters: Sequence[Adapter]
    result: Stage
    view: Callable[[str], Path]
    depth: Depth
    workers: int | None
    seen: Seen
    """The values of a tensor of the base, in rows as they are stored, where they aren't those stored."""

    def run(
        self, plan: ExportPlan, folder: Path, advance: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """The report on the model in `folder`, as JSON. VerificationError where it isn't what it should be."""
        deltas = deltas_of(self.recipe, self.adapters, self.result)
        found = verify(
            plan,
            deltas,
            folder,
            everything=self.depth == "all",
            workers=self.workers,
            advance=advance,
            seen=self.seen,
        )
        return {**found.document(), "logits": self._logits(plan, folder)}

    def _logits(self, plan: ExportPlan, folder: Path) -> dict[str, Any]:
        count = parameters(plan.base)
        weights = plain_weights(self.recipe)
        if self.depth == "weights":
            return {"skipped": "not asked for"}
        if self.depth != "all" and count > SMALL:
            return {"skipped": f"the model has {human_count(count)} parameters; --verify-all does"}
        if weights is None:
            return {"skipped": f"PEFT can't attach a merge by {self.recipe.method}"}
        if plan.replaced.names and list(weights.values()) != [1.0]:
            return {"skipped": "PEFT can't attach a weighted sum of whole weights"}
        attached = [
            (one, self.view(one.resolved.digest), weights[one.resolved.digest])
            for one in self.adapters
        ]
        return compare(plan.base, attached, folder, self.seen.view.seen, plan.replaced.vocabulary)


def warning(report: Mapping[str, Any], labels: Sequence[str], base: str) -> str | None:
    """What to say where rounding costs too much; None where it doesn't."""
    loss, logits = report["bake_loss"], report["logits"]
    dtype = report["weights"]["dtype"]
    share = logits.get("share_lost")
    if share is None and loss["total"] >= LOSS_THAT_MATTERS:
        what = f"it puts noise of {loss['total']:.0%} of its size on what the adapter changes"
    elif share is not None and share >= SHARE_THAT_MATTERS:
        what = f"it moves the logits by {share:.0%} of what the adapter moves them by"
    else:
        return None
    instead = "Attached to the base it loses nothing of this"
    if len(labels) == 1 and not report["replaced"]["tensors"]:
        instead += f" (adapterhub serve {quote(labels[0])})"
    return (
        f"rounding to {dtype} matters here: {what} (worst tensor: {loss['worst']:.0%}, {loss['worst_tensor']})."
        f" {instead}, nor does it in a float32 copy of {quote(base)} (--base FOLDER)"
    )


def attest(
    store: Store,
    digest: str,
    record: Mapping[str, Any],
    report: Mapping[str, Any],
    warn: Callable[[str], None],
) -> None:
    """Tells the store of what was found about the adapter `digest`. The model is there: a store that can't be written to
    is only worth a warning."""
    loss = {key: value for key, value in report["bake_loss"].items() if key != "tensors"}
    body = {
        "event": EVENT,
        "metric": "bake_loss",
        **{key: record[key] for key in ("base", "recipe", "engine")},
        "result": {**report, "bake_loss": loss},
    }
    try:
        store.attest(digest, "eval", body)
    except (AdapterHubError, OSError) as error:
        warn(f"the store wasn't told of this check: {error}")
