"""The playground as immutable values: who is asked, and what each was asked and said. Each keeps a conversation of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import cached_property

from adapterhub.tui.problem import Problem

BASE = "base"
"""The word that means the base alone."""


@dataclass(frozen=True)
class Options:
    """How everybody is asked."""

    system: str = ""
    max_tokens: int = 256
    temperature: float = 0.0


@dataclass(frozen=True)
class Turn:
    """A question and its answer. `ended` is empty while it is written; else stop, length, halted or failed."""

    question: str
    answer: str = ""
    ended: str = ""
    seconds: float = 0.0
    tokens: int | None = None
    problem: Problem | None = None

    @property
    def counts(self) -> bool:
        """Whether it is a part of the conversation: an answer came."""
        return bool(self.answer) and self.problem is None


@dataclass(frozen=True)
class Voice:
    """One column."""

    name: str
    turns: tuple[Turn, ...] = ()

    @property
    def last(self) -> Turn | None:
        """What was asked last."""
        return self.turns[-1] if self.turns else None

    def asked(self, question: str) -> Voice:
        """After one more question."""
        return replace(self, turns=(*self.turns, Turn(question)))

    def with_last(self, turn: Turn) -> Voice:
        """After something more was heard of the last answer."""
        return replace(self, turns=(*self.turns[:-1], turn))

    def said(self, system: str) -> list[tuple[str, str]]:
        """The conversation up to the last question, as turns of (role, content)."""
        found = [("system", system)] if system else []
        for turn in self.turns[:-1]:
            if turn.counts:
                found += [("user", turn.question), ("assistant", turn.answer)]
        return [*found, ("user", self.turns[-1].question)]


@dataclass(frozen=True)
class Playground:
    """Everybody who is asked, and whether somebody still answers."""

    voices: tuple[Voice, ...] = ()
    marked: bool = False
    """Words that the first column's answer hasn't got are marked."""

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return any(voice.last and not voice.last.ended for voice in self.voices)

    @property
    def names(self) -> tuple[str, ...]:
        """Who is asked, in order."""
        return tuple(voice.name for voice in self.voices)

    @cached_property
    def by_name(self) -> Mapping[str, Voice]:
        """Each voice by its name."""
        return {voice.name: voice for voice in self.voices}

    def asked(self, question: str) -> Playground:
        """After everybody was asked the same."""
        return replace(self, voices=tuple(voice.asked(question) for voice in self.voices))

    def told(self, name: str, turn: Turn) -> Playground:
        """After something more was heard of somebody's last answer."""
        return replace(
            self,
            voices=tuple(
                voice.with_last(turn) if voice.name == name and voice.turns else voice
                for voice in self.voices
            ),
        )

    def forgotten(self) -> Playground:
        """After the conversations were begun anew."""
        return replace(self, voices=tuple(Voice(voice.name) for voice in self.voices))


def differing(text: str, other: str) -> list[tuple[int, int]]:
    """Where the words of `text` are that `other` hasn't got in their place: (begin, end) in characters."""
    mine, theirs = text.split(" "), other.split(" ")
    starts = [0]
    for word in mine:
        starts.append(starts[-1] + len(word) + 1)
    found = []
    for what, begin, end, _, _ in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        if what in ("replace", "delete"):
            found.append((starts[begin], starts[end] - 1))
    return found
