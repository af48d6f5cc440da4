"""Terminals that have no more than ASCII: every other character is drawn as one that is there, of the same width.

The filter stands at the very end, after all drawing, so no widget has to know about it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import lru_cache

from rich.cells import cell_len, split_graphemes
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

SWITCH = "ADAPTERHUB_ASCII"
"""The variable that decides where the locale is wrong about the terminal: 1 or 0."""

_POOR_TERMINALS = {"dumb", "linux", "vt100", "vt102", "vt220"}
"""Values of TERM whose fonts lack braille or rounded corners, whatever the locale says."""
_COERCED = {"c.utf-8", "c.utf8", "utf-8"}
"""What Python itself writes into LC_CTYPE where the locale is C."""


def speaks_ascii_only(environment: Mapping[str, str]) -> bool:
    """Whether the terminal of this environment shows nothing but ASCII. Where nothing is said, it shows everything."""
    if switch := environment.get(SWITCH, ""):
        return switch.lower() not in ("0", "no", "false", "off")
    if environment.get("TERM_PROGRAM") == "textual":  # a browser
        return False
    if environment.get("TERM", "") in _POOR_TERMINALS:
        return True
    general = environment.get("LANG", "")
    letters = environment.get("LC_CTYPE", "")
    if letters.lower() in _COERCED and general:
        letters = ""
    locale = environment.get("LC_ALL", "") or letters or general
    return bool(locale) and not locale.lower().replace("-", "").endswith("utf8")


class Ascii(LineFilter):
    """Draws a line in ASCII."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The segments with every character that isn't ASCII replaced."""
        return [
            segment
            if segment.text.isascii()
            else Segment(in_ascii(segment.text), segment.style, segment.control)
            for segment in segments
        ]


@lru_cache(4096)
def in_ascii(text: str) -> str:
    """`text` in ASCII, in as many columns."""
    spans, _ = split_graphemes(text)
    return "".join(_fitted(text[start:end], width) for start, end, width in spans)


def _fitted(grapheme: str, width: int) -> str:
    """One visible character, which may be made of several."""
    drawn = grapheme[0] if grapheme.isascii() else _one(grapheme[0])
    return drawn if len(drawn) == width else "?" * width


@lru_cache(4096)
def _one(character: str) -> str:
    code = ord(character)
    if 0x2500 <= code <= 0x257F:
        return _box(character)
    if 0x2800 <= code <= 0x28FF:
        return _braille(code - 0x2800)
    if character in _SAME:
        return _SAME[character]
    width = cell_len(character)
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain if len(plain) == width else "?" * width


def _box(character: str) -> str:
    """Lines keep their direction; corners and crossings are a plus."""
    if character in "─━┄┅┈┉╌╍╴╶╸╺╼╾":
        return "-"
    if character in "│┃┆┇┊┋╎╏║╵╷╹╻╽╿":
        return "|"
    return {"═": "=", "╱": "/", "╲": "\\", "╳": "X"}.get(character, "+")


def _braille(dots: int) -> str:
    """A cell of a plot by where its dots are: above, below, both, or nearly all."""
    above, below = dots & 0b00011011, dots & 0b11100100
    if dots.bit_count() >= 6:
        return "#"
    return (":" if below else "'") if above else ("." if below else " ")


_SAME = {
    character: ascii_one
    for ascii_one, characters in {
        "#": "█▇▆▅▉▊▋▓■◼▙▛▜▟",
        "=": "▄▀≡",
        "_": "▁▂▃⎽",
        "-": "▔–—−‒―⁃⁻",
        "|": "▌▐▎▏▕▍🮇🮈‖",
        ":": "▒",
        ".": "░·∙⋅",
        "+": "▖▗▘▝▚▞✚⊕",
        "*": "•●◉★✦✱◆⬤∗",
        "o": "○◯⭘◦☐▪▫",
        "x": "×✗✘✕✖⨯☒",
        "v": "✓✔☑√▼▾↓⌄",
        "^": "▲▴↑⌃⇧",
        ">": "▶►▸→⇒›⟶❯",
        "<": "◀◄◂←⇐‹↵⏎⌫❮",
        "~": "…≈∼",
        "!": "⚠≠",
        "'": "‘’′ʼ",
        '"': "“”„«»″",
        "/": "÷∕⁄",
        "D": "Δ",
        "S": "Σ∑",
        "L": "Λλ",
        "s": "σ",
        "u": "μ",
        "a": "α",
        "b": "β",
        "[": "⌊⌈",
        "]": "⌋⌉",
        "g": "≥",
        "l": "≤",
    }.items()
    for character in characters
    if cell_len(character) == 1
}
"""What has no decomposition of its own; nearest in looks."""
