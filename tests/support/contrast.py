"""Contrast of what is drawn, as WCAG 2 defines it, worked out here on its own."""

from __future__ import annotations

from collections.abc import Iterator

from rich.color import Color as RichColor

from adapterhub.tui.app import AdapterHubApp

Rgb = tuple[int, int, int]


def ratio(one: Rgb, other: Rgb) -> float:
    """(L1 + 0.05) / (L2 + 0.05) of the relative luminances."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(rgb: Rgb) -> float:
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in rgb)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def drawn_words(app: AdapterHubApp, within: str = "") -> Iterator[tuple[str, Rgb, Rgb]]:
    """Every run of letters or digits on the screen, or in one widget: the text, its colour, and the one behind it."""
    strips = app.screen._compositor.render_strips()
    if within:
        x, y, width, height = app.screen.query_one(within).region
        strips = [strip.crop(x, x + width) for strip in strips[y : y + height]]
    for strip in strips:
        for text, style, _ in strip:
            if style is not None and any(map(str.isalnum, text)):
                front, back = _rgb(style.color), _rgb(style.bgcolor)
                if style.reverse:
                    front, back = back, front
                yield text.strip(), front, back


def _rgb(color: RichColor | None) -> Rgb:
    assert color is not None
    assert color.triplet is not None, "drawn in the theme's colours, not the terminal's"
    return color.triplet[0], color.triplet[1], color.triplet[2]
