"""Text out of tokens while they come, and never half a character.

transformers' own streamers hold text back to the next blank, and lose the blank that some tokenizers put before the
first word of a line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Pieces:
    """Takes the tokens of one answer from transformers' `generate`, as its `streamer`; `heard` is called with each piece.

    What is told is the text of the tokens from some earlier one on, less the part told before: a tokenizer may
    write a token otherwise at the beginning of a text than within it.
    """

    def __init__(self, tokenizer: Any, heard: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer
        self._heard = heard
        self._asked = True
        self._before = 0
        """Where the tokens begin that are decoded again, so that the next ones stand behind something."""
        self._told = 0
        """How many tokens have been told."""
        self._pieces: list[str] = []
        self.tokens: list[int] = []

    @property
    def text(self) -> str:
        """All that was told."""
        return "".join(self._pieces)

    def put(self, tokens: Any) -> None:
        """More tokens; the first are the question."""
        if self._asked:
            self._asked = False
            return
        self.tokens += tokens.flatten().tolist()
        self._tell(whole=False)

    def end(self) -> None:
        """There are no more."""
        self._tell(whole=True)

    def _tell(self, *, whole: bool) -> None:
        told = self._decoded(self.tokens[self._before : self._told])
        text = self._decoded(self.tokens[self._before :])
        unfinished = text.endswith("\ufffd") and not whole  # the bytes so far are no character
        if unfinished or not text.startswith(told) or len(text) == len(told):
            return
        self._before, self._told = self._told, len(self.tokens)
        self._pieces.append(text[len(told) :])
        self._heard(self._pieces[-1])

    def _decoded(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text
