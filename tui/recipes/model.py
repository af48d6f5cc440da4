"""What the train screen knows: the recipes to choose from, the one that is open, and what was found out about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adapterhub.tui.problem import Problem

Kind = Literal["file", "former", "preset"]


@dataclass(frozen=True)
class Item:
    """A recipe that may be opened. Those without a file have their text with them."""

    kind: Kind
    title: str
    about: str = ""
    path: Path | None = None
    text: str = ""


@dataclass(frozen=True)
class Shelf:
    """All of them; `whole` is whether every folder was looked into."""

    items: tuple[Item, ...] = ()
    whole: bool = True
    loaded: bool = False


@dataclass(frozen=True)
class Draft:
    """The recipe in the editor. `path` is its file; None while it has none. `saved` is what that holds."""

    title: str
    text: str
    path: Path | None = None
    saved: str = ""

    @property
    def changed(self) -> bool:
        """Whether something would be lost."""
        return self.text != self.saved


@dataclass(frozen=True)
class Checked:
    """What validation says of a text; `line` is where the problem stands, from 0."""

    text: str
    name: str = ""
    problem: Problem | None = None
    line: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class About:
    """The key under the cursor, explained."""

    key: str
    words: str
    accepted: str
    default: str | None
