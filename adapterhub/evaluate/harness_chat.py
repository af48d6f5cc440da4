"""Questions of lm-evaluation-harness as turns of a conversation, through the chat template of the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub.data.templates import chat_template, render


class Turns:
    """The harness's own `apply_chat_template`, for questions that are the same tomorrow: the date is held still."""

    def __init__(self, tokenizer: Any) -> None:
        """IncompatibleError where the base has no template."""
        self._tokenizer, self._template = tokenizer, chat_template(tokenizer)

    def __call__(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation; without a prompt for the answer it ends within the last turn, which goes on.

        Raises what `render` raises.
        """
        text = render(
            self._tokenizer, self._template, messages, add_generation_prompt=add_generation_prompt
        )
        if add_generation_prompt:
            return text
        begun = messages[-1]["content"].strip()
        return text[: text.rindex(begun) + len(begun)]
