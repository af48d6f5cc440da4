"""How a number of a comparison is judged and written, for every heatmap: what hurts a merge, what is harmless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """`tones` has one entry more than `edges`: values below the first edge get the first.

    A tone is from -3, what hurts most, to 3, the most alike; 0 is harmless.
    """

    edges: tuple[float, ...]
    tones: tuple[int, ...]
    low: str
    """What the low end means, in words."""
    high: str

    def tone(self, value: float) -> int:
        return self.tones[sum(value >= edge for edge in self.edges)]


SCALES: Mapping[str, Scale] = {
    "cosine": Scale(
        (-0.5, -0.2, -0.05, 0.05, 0.2, 0.5), (-3, -2, -1, 0, 1, 2, 3), "opposed", "the same"
    ),
    "conflict": Scale(
        (0.25, 0.4, 0.47, 0.53, 0.6, 0.75), (3, 2, 1, 0, -1, -2, -3), "agree", "opposed"
    ),
    "norm-ratio": Scale(
        (1 / 8, 1 / 4, 1 / 2, 2, 4, 8),
        (-3, -2, -1, 0, -1, -2, -3),
        "first stronger",
        "second stronger",
    ),
    "overlap": Scale((0.05, 0.25, 0.5), (0, 1, 2, 3), "apart", "the same subspaces"),
}
"""By the name of the measure."""


def short_columns(columns: Sequence[str]) -> list[str]:
    """`q` for `q_proj`, where that tells the columns apart."""
    short = [name.removesuffix("_proj") for name in columns]
    return short if len(set(short)) == len(short) else list(columns)


def shown(value: float | None) -> str:
    """At most four characters: -.31, .05, 1.0, 12, 1e3; a point where there is nothing to measure."""
    if value is None:
        return "·"
    if abs(value) >= 999.5:
        return f"{min(value, 9e99):.0e}".replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 9.95:
        return f"{value:.0f}"
    if abs(value) >= 0.995:
        return f"{value:.1f}"
    text = f"{value:.2f}".replace("0.", ".", 1)
    return ".00" if text == "-.00" else text
