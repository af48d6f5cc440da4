"""What training data are: conversations and documents (`Row`), and pairs of a better and a worse answer (`Preference`).

Both are told apart by their content alone. Where they came from, `file` and `number`, is for people who have to find
the row again, and no part of what a row is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from adapterhub.canonical import canonical_bytes, digest_of

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is one of ROLES."""

    role: str
    content: str


class Example:
    """What a row and a preference have in common: an identity, a question, and a place in a file."""

    number: int
    file: str

    def canonical(self) -> bytes:
        """The content as canonical JSON: the same in every file format and at every position."""
        raise NotImplementedError

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation to learn from; empty for a plain document."""
        raise NotImplementedError

    @property
    def sides(self) -> tuple[Row, ...]:
        """What is made into tokens: the row itself, or each of the two conversations of a preference."""
        raise NotImplementedError

    @cached_property
    def digest(self) -> str:
        """`sha256:<hex>` of the content."""
        return digest_of(self.canonical())

    @property
    def question(self) -> tuple[Message, ...]:
        """The messages before the first answer; empty for a plain document."""
        turns = self.turns
        first = next((i for i, m in enumerate(turns) if m.role == "assistant"), 0)
        return turns[:first]

    @property
    def answers(self) -> tuple[str, ...]:
        """The texts that are learned from a conversation; none of a plain document."""
        return tuple(m.content for m in self.turns if m.role == "assistant")

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text a tokenizer will see."""
        return tuple(m.content for m in self.turns)

    @property
    def split_key(self) -> bytes:
        """What decides the side of the split: equal for all rows that ask the same."""
        return canonical_bytes({"question": [[m.role, m.content] for m in self.question]})

    @property
    def where(self) -> str:
        """`file:number`, for people."""
        return f"{self.file}:{self.number}"


@dataclass(frozen=True)
class Row(Example):
    """One example: `messages` for a conversation, or `text` for a plain document (then `messages` is empty)."""

    messages: tuple[Message, ...]
    text: str | None = None
    number: int = field(default=0, compare=False)
    """Position in the file, as its format counts; no part of the row's identity."""
    file: str = field(default="", compare=False)
    """The name the file is called by; no part of the row's identity."""

    def canonical(self) -> bytes:
        if self.text is not None:
            return canonical_bytes({"text": self.text})
        return canonical_bytes({"messages": plain_messages(self.messages)})

    @property
    def turns(self) -> tuple[Message, ...]:
        return self.messages

    @property
    def sides(self) -> tuple[Row, ...]:
        return (self,)

    @property
    def texts(self) -> tuple[str, ...]:
        return super().texts if self.text is None else (self.text,)

    @property
    def split_key(self) -> bytes:
        return super().split_key if self.text is None else self.canonical()


@dataclass(frozen=True)
class Preference(Example):
    """A conversation up to an answer, and two ways to go on: one to prefer and one not to."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    number: int = field(default=0, compare=False)
    file: str = field(default="", compare=False)

    def canonical(self) -> bytes:
        return canonical_bytes(
            {
                "prompt": plain_messages(self.prompt),
                "chosen": plain_messages(self.chosen),
                "rejected": plain_messages(self.rejected),
            }
        )

    @property
    def turns(self) -> tuple[Message, ...]:
        return self.prompt + self.chosen

    @property
    def answers(self) -> tuple[str, ...]:
        return tuple(m.content for m in self.chosen if m.role == "assistant")

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(m.content for m in (*self.prompt, *self.chosen, *self.rejected))

    @property
    def sides(self) -> tuple[Row, Row]:
        """The chosen conversation and the rejected one, whole."""
        return (
            Row(self.prompt + self.chosen, None, self.number, self.file),
            Row(self.prompt + self.rejected, None, self.number, self.file),
        )


def plain_messages(messages: Iterable[Message]) -> list[dict[str, str]]:
    """As a chat template and an endpoint take them."""
    return [{"role": m.role, "content": m.content} for m in messages]
