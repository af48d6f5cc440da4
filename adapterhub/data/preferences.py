"""Records of preferences: a conversation up to an answer, one answer that was chosen and one that was rejected.

The conversation is `prompt` (a text or turns), `conversations`, or `instruction` with `input`; where `chosen` and
`rejected` are whole conversations it may be missing, because it is what the two have in common. An answer is a text, a
turn, or turns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adapterhub.data.formats import check_text, check_turns, question_of, refuse_media
from adapterhub.data.rows import Message, Preference
from adapterhub.data.turns import RowError, as_object, as_text, as_turn, as_turns, with_system

KEYS = frozenset(
    {"prompt", "conversations", "instruction", "input", "history", "system", "tools"}
    | {"chosen", "rejected", "chosen_messages", "rejected_messages"}
)
"""The keys that are looked at."""


def convert_preference(record: object, file: str, number: int) -> Preference:
    """The record as a preference that can be trained on, knowing its place; RowError says what is wrong with it."""
    fields = as_object(record)
    refuse_media(fields)
    chosen, rejected = _answer(fields, "chosen"), _answer(fields, "rejected")
    common = _in_common(chosen, rejected)
    prompt = _prompt(fields)
    if common:
        if prompt is not None and not _begins_with(common, prompt):
            raise RowError("chosen and rejected begin with another conversation than the row's own")
        prompt, chosen, rejected = common, chosen[len(common) :], rejected[len(common) :]
    if prompt is None:
        raise RowError("there is no prompt, and chosen and rejected don't begin with one")
    found = Preference(with_system(prompt, fields), chosen, rejected, number, file)
    check_text(found.texts)
    if chosen == rejected:
        raise RowError("chosen and rejected are the same")
    if not any(m.role == "user" and m.content.strip() for m in found.prompt):
        raise RowError("the prompt is empty")
    if found.prompt[-1].role == "assistant":
        raise RowError("the prompt ends in an answer; chosen and rejected must be what comes next")
    for name, answer, whole in zip(
        ("chosen", "rejected"), (chosen, rejected), found.sides, strict=True
    ):
        if not answer or answer[0].role != "assistant" or answer[-1].role != "assistant":
            raise RowError(f"{name} must begin and end with an answer")
        try:
            check_turns(whole.messages)
        except RowError as fault:
            raise RowError(f"{name}: {fault}") from fault
    return found


def _answer(fields: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    name = key if fields.get(key) is not None else f"{key}_messages"
    value = fields.get(name)
    if isinstance(value, str):
        return (Message("assistant", value),)
    if isinstance(value, Mapping):
        return (as_turn(value, key),)
    if value is None:
        raise RowError(f"'{key}' is missing")
    return as_turns(value, name)


def _prompt(fields: Mapping[str, Any]) -> tuple[Message, ...] | None:
    """The conversation the row states by itself; None where it states none."""
    if fields.get("conversations") is not None:
        return as_turns(fields["conversations"], "conversations")
    if fields.get("instruction") is not None:
        return tuple(question_of(fields))
    if isinstance(fields.get("prompt"), list):
        return as_turns(fields["prompt"], "prompt")
    if fields.get("prompt") is not None:
        return (Message("user", as_text(fields, "prompt")),)
    return None


def _in_common(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns both begin with, where they begin with a question: whole conversations, not answers alone."""
    if chosen[0].role == "assistant":
        return ()
    pairs = zip(chosen, rejected, strict=False)
    length = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    return chosen[:length]


def _begins_with(common: tuple[Message, ...], prompt: tuple[Message, ...]) -> bool:
    """Whether `common` is `prompt`, a system message or more turns aside: some state the first question only."""
    spoken = tuple(m for m in common if m.role != "system")
    asked = tuple(m for m in prompt if m.role != "system")
    return spoken[: len(asked)] == asked
