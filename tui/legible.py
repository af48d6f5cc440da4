"""Dim text that can still be read: it is blended into its background only as far as the contrast allows."""

from __future__ import annotations

from functools import lru_cache

from rich.color import Color as RichColor
from rich.segment import Segment
from rich.style import Style
from textual.color import Color
from textual.filter import LineFilter

_DIM = 0.66
"""How much of the colour is left where nothing stands against it; Textual's own share."""
_PLAIN = Style(dim=False)


class LegibleDim(LineFilter):
    """Takes the place of Textual's dimming, which knows no contrast. `needed` is WCAG's ratio."""

    def __init__(self, needed: float) -> None:
        super().__init__()
        self._needed = needed

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments with every dim style replaced by a colour."""
        return [
            Segment(text, _legible(style, background.rgb, self._needed), control)
            if style is not None and style.dim
            else Segment(text, style, control)
            for text, style, control in segments
        ]


@lru_cache(1024)
def _legible(style: Style, background: tuple[int, int, int], needed: float) -> Style:
    front, back = style.color, style.bgcolor
    if front is None or front.triplet is None:
        return style
    behind = back.triplet if back is not None and back.triplet is not None else background
    full = tuple(front.triplet)
    for step in range(int(_DIM * 100), 101, 2):
        blended = [round(b + (f - b) * step / 100) for f, b in zip(full, behind, strict=True)]
        if contrast(tuple(blended), tuple(behind)) >= needed:
            break
    else:
        blended = list(full)
    return style + _PLAIN + Style.from_color(RichColor.from_rgb(*blended))


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """WCAG 2: between 1 (none) and 21 (black on white)."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(rgb: tuple[int, ...]) -> float:
    red, green, blue = (
        value / 3294.6 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in rgb
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
