"""Formats of training data: what one record of a file means, whatever kind of file it stands in.

| format            | a record is                                                                       |
|-------------------|-----------------------------------------------------------------------------------|
| alpaca            | `instruction`, optional `input`, `output`, optional `system`, `history`           |
| messages          | `messages`: a list of turns; optional `tools`                                     |
| sharegpt          | `conversations`: a list of turns; optional `system`, `tools`                      |
| prompt_completion | `prompt` and `completion`: texts, or lists of turns; so are question and answer   |
| preference        | as any of these up to the answer, then `chosen` and `rejected` (`preferences.py`) |
| text              | `text`: a document, trained on whole                                              |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.data.rows import Message, Row
from adapterhub.data.turns import RowError, as_object, as_text, as_turns, with_system
from adapterhub.errors import FormatError
from adapterhub.words import briefly, some

PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
"""What question and answer are called in prompt_completion. All but the first are told only where there is nothing else."""
_NUMBERING = {"id", "idx", "index"}
_MEDIA = ("images", "image", "videos", "video", "audios", "audio")


@dataclass(frozen=True)
class Format:
    """How records of one format become rows: `convert` raises RowError, and looks at no keys but `keys`."""

    convert: Callable[[object], Row]
    keys: frozenset[str]


def detect_format(record: object, name: str) -> str:
    """The format whose keys `record`, the first of the file `name`, has; FormatError names the keys when there is none."""
    if isinstance(record, Mapping):
        for fmt, keys in (
            ("preference", {"chosen", "rejected"}),
            ("preference", {"chosen_messages", "rejected_messages"}),
            ("messages", {"messages"}),
            ("sharegpt", {"conversations"}),
            ("alpaca", {"instruction"}),
            ("prompt_completion", set(PAIRS[0])),
            ("text", {"text"}),
        ):
            if keys <= record.keys():
                return fmt
        if any(record.keys() - _NUMBERING == set(pair) for pair in PAIRS):
            return "prompt_completion"
        found = some(sorted(map(briefly, record)), most=12)
        why = f"The first row has the keys {found or '(none)'}."
    else:
        why = f"The first row is a {type(record).__name__}, not an object."
    raise FormatError(
        f"The format of {name} can't be told.",
        why=why,
        hint=f"Name it ({', '.join([*FORMATS, 'preference'])}), or rename the columns.",
    )


def convert_row(fmt: str, record: object, file: str, number: int) -> Row:
    """The record as a row that can be trained on, knowing its place; RowError says what is wrong with it."""
    fields = as_object(record)
    refuse_media(fields)
    if fmt != "text" and fields.get("label") is False:
        raise RowError("label is false: it shows an answer that is not to be given")
    row = replace(FORMATS[fmt].convert(fields), number=number, file=file)
    check_text(row.texts)
    if row.text is not None:
        if not row.text.strip():
            raise RowError("the text is empty")
    else:
        check_turns(row.messages)
    return row


def check_turns(turns: tuple[Message, ...]) -> None:
    """RowError for a conversation that would teach nothing, or the wrong thing.

    An answer that is empty teaches silence; one without a question, or a tool's result that nobody asked for, can't come
    up when the model is used. Odd orders that only some templates refuse are for `health` to warn about.
    """
    answers = [m for m in turns if m.role == "assistant"]
    if not answers:
        raise RowError("there is no assistant turn, so nothing to train on")
    if any(not m.content.strip() for m in answers):
        raise RowError("an assistant's answer is empty")
    if any(m.role == "system" for m in turns[1:]):
        raise RowError("a system message may only come first")
    if turns[0].role == "assistant":
        raise RowError("it begins with an assistant turn; a question must come first")
    called = False
    for turn in turns:
        if turn.role == "tool" and not called:
            raise RowError("a tool answers, but no call comes before it")
        called = turn.role in ("assistant", "tool")


def check_text(texts: tuple[str, ...]) -> None:
    """RowError for text that is none: half of a surrogate pair, which no tokenizer takes."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise RowError(
                    "it holds half of a surrogate pair, which is no character"
                ) from error


def refuse_media(fields: Mapping[str, Any]) -> None:
    """RowError for a row that shows or plays something: without that, its text means little."""
    for key in _MEDIA:
        if fields.get(key):
            raise RowError(f"it has {key}; only text can be trained on")


def question_of(fields: Mapping[str, Any]) -> list[Message]:
    """The turns before the answer of an alpaca record: `history` is a list of earlier questions and answers."""
    question = as_text(fields, "instruction")
    extra = as_text(fields, "input", default="")
    if extra.strip():
        question = f"{question}\n\n{extra}" if question.strip() else extra
    if not question.strip():
        raise RowError("instruction and input are both empty")
    turns: list[Message] = []
    history = fields.get("history") or []
    if not isinstance(history, list):
        raise RowError("'history' must be a list of questions and answers")
    for index, pair in enumerate(history):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise RowError(f"history[{index}] must be a question and its answer")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return [*turns, Message("user", question)]


def pair_of(fields: Set[str]) -> tuple[str, str]:
    """What question and answer are called in a prompt_completion record."""
    return next((pair for pair in PAIRS if set(pair) <= fields), PAIRS[0])


def _alpaca(record: object) -> Row:
    fields = as_object(record)
    turns = [*question_of(fields), Message("assistant", as_text(fields, "output"))]
    return Row(with_system(turns, {"system": fields.get("system")}))


def _conversation(key: str) -> Callable[[object], Row]:
    def convert(record: object) -> Row:
        fields = as_object(record)
        return Row(with_system(as_turns(fields.get(key), key), fields))

    return convert


def _prompt_completion(record: object) -> Row:
    fields = as_object(record)
    ask, say = pair_of(fields.keys())
    prompt, completion = (
        as_turns(fields[key], key)
        if isinstance(fields.get(key), list)
        else (Message(role, as_text(fields, key)),)
        for key, role in ((ask, "user"), (say, "assistant"))
    )
    if any(m.role == "assistant" for m in prompt):
        raise RowError(
            f"'{ask}' holds an answer, which would be learned too; write the row as `messages` if it should be"
        )
    if not any(m.content.strip() for m in prompt):
        raise RowError(f"'{ask}' is empty")
    return Row(with_system(prompt + completion, fields))


def _text(record: object) -> Row:
    return Row((), as_text(as_object(record), "text"))


FORMATS: dict[str, Format] = {
    "alpaca": Format(_alpaca, frozenset({"instruction", "input", "output", "system", "history"})),
    "messages": Format(_conversation("messages"), frozenset({"messages", "system", "tools"})),
    "sharegpt": Format(
        _conversation("conversations"), frozenset({"conversations", "system", "tools"})
    ),
    "prompt_completion": Format(
        _prompt_completion, frozenset({*(key for pair in PAIRS for key in pair), "system", "tools"})
    ),
    "text": Format(_text, frozenset({"text"})),
}
"""The formats of rows, by name; `preference` is the one that is none of rows."""
