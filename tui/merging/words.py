"""Estimates and outlooks in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from textual.content import Content

from adapterhub.cli.output import clean
from adapterhub.words import human_count

if TYPE_CHECKING:
    from adapterhub.merge.estimate import Estimate

_BAR = 12
_MOST_NAME = 24


def estimate_in_words(estimate: Estimate, names: Sequence[str], width: int) -> Content:
    """What would be kept: of the energy, and of each of the adapters called `names`."""
    lines = [_energy(estimate)]
    label = min(_MOST_NAME, max(8, *(len(clean(name)) for name in names)), max(8, width - 34))
    subspace: Sequence[float | None] = estimate.subspace or [None] * len(names)
    head = " " * label + "  retained" + " " * (_BAR + 1) + ("subspace" if estimate.subspace else "")
    lines += [Content.styled(head.rstrip(), "dim")]
    for name, kept, inside in zip(names, estimate.retained, subspace, strict=True):
        text = clean(name)
        text = text if len(text) <= label else text[: label - 1] + "…"
        lines.append(
            Content.assemble(
                text.ljust(label),
                "  ",
                (f"{_share(kept):>8}", "bold"),
                " ",
                _bar(kept),
                (f"  {_share(inside):>7}" if estimate.subspace else ""),
            )
        )
    lines.append(Content.styled(_how(estimate), "dim"))
    lines += [Content.styled(f"! {clean(remark)}", "$text-warning") for remark in estimate.remarks]
    return Content("\n").join(lines)


def _energy(estimate: Estimate) -> Content:
    rank = "" if estimate.rank is None else f" at rank {estimate.rank}"
    rank += ", from a sample" if estimate.sampled else ", exactly"
    if estimate.energy_kept is None:
        return Content.assemble(("Energy kept  ", ""), ("not known", "bold"), rank)
    least = "at least " if estimate.sampled and estimate.energy_kept < 1 else ""
    return Content.assemble(
        "Energy kept  ", (f"{least}{_percent(estimate.energy_kept)}", "bold"), rank, " ", _bar(estimate.energy_kept)
    )  # fmt: skip


def _how(estimate: Estimate) -> str:
    if not estimate.sampled:
        return "Exact: as the merge would report it."
    told = (
        f"Estimated from a sample: {estimate.rows:,} of {human_count(estimate.of_rows)} rows;"
        " the subspace isn't known."
    )
    return told if estimate.cut else f"{told} Retained is told before the rank cuts."


def _percent(share: float) -> str:
    return f"{share:.2%}" if share < 0.99995 or share == 1 else "over 99.99%"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _bar(value: float | None) -> Content:
    filled = 0 if value is None else max(0, min(_BAR, round(value * _BAR)))
    return Content.assemble(("█" * filled, "$accent"), ("░" * (_BAR - filled), "dim"))
