"""Files of training data, read and normalised: whatever the format, a row becomes chat messages (or plain text).

| format   | a row is                                                             |
|----------|----------------------------------------------------------------------|
| alpaca   | `instruction`, optional `input`, `output`, optional `system`         |
| messages | `messages`: a list of `role` and `content` (text, or parts of text)  |
| sharegpt | `conversations`: a list of `from` and `value`; optional `system`, `tools` |
| text     | `text`: a document, trained on whole; or a .txt file, one document a line |

Files are .json (a list), .jsonl (one object a line) or .txt. Every fault names its row, counted from 1 as in the file.

Tool calls (sharegpt) follow the Hermes convention, which servers parse back into calls: the tools stand as JSON in
the system message between `<tools>` tags, a `function_call` becomes an assistant turn `<tool_call>JSON</tool_call>`
(so it is trained on), and an `observation` becomes a turn of the role `tool` (so it is not).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.errors import FormatError, NotFoundError, UsageError

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
TOOLS_PROMPT = (
    "You can call functions. To call one, answer with its name and arguments as JSON inside <tool_call></tool_call>"
    " tags. The functions are listed as JSON inside <tools></tools> tags:\n<tools>\n{tools}\n</tools>"
)
_SHOWN_FAULTS = 5


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is one of ROLES."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One example: `messages` for a conversation, or `text` for a plain document (then `messages` is empty)."""

    messages: tuple[Message, ...]
    text: str | None = None
    number: int = 0
    """Position in the file, from 1; for error messages only, no part of the row's identity."""

    def canonical(self) -> bytes:
        """The row's content as canonical JSON: the same in every file format and at every position."""
        if self.text is not None:
            return canonical_bytes({"text": self.text})
        return canonical_bytes(
            {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}
        )

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the content."""
        return digest_of(self.canonical())

    @property
    def question(self) -> tuple[Message, ...]:
        """The messages before the first answer; empty for a plain document."""
        first = next((i for i, m in enumerate(self.messages) if m.role == "assistant"), 0)
        return self.messages[:first]


class _RowError(ValueError):
    """What is wrong with one row; the reader adds the file and the row's number."""


def read_rows(path: Path, fmt: str | None = None) -> tuple[Row, ...]:
    """All rows of `path` in file order; `fmt` None means: told from the first row's keys.

    Raises NotFoundError (no such file), UsageError (unknown format) and FormatError, which lists the first faulty
    rows by number: a file with faults is refused whole, because a silently dropped row is a silently different data set.
    """
    if fmt is not None and fmt not in FORMATS:
        raise UsageError(
            f"'{fmt}' is not a data format.", hint=f"Use one of: {', '.join(FORMATS)}."
        )
    if not path.is_file():
        raise NotFoundError(f"There is no data file {path}.")
    records = list(_records(path))
    if not records:
        raise FormatError(f"{path.name} has no rows.")
    chosen = fmt or detect_format(records[0][1], path)
    convert = FORMATS[chosen]
    rows: list[Row] = []
    faults: list[str] = []
    for number, record in records:
        try:
            rows.append(_checked(convert(record), number))
        except _RowError as fault:
            faults.append(f"row {number}: {fault}")
    if faults:
        shown = "; ".join(faults[:_SHOWN_FAULTS])
        more = f"; and {len(faults) - _SHOWN_FAULTS} more" if len(faults) > _SHOWN_FAULTS else ""
        raise FormatError(
            f"{path.name} has {len(faults)} faulty row(s) of {len(records)} (read as {chosen}).",
            why=shown + more + ".",
            hint="Correct or delete these rows; nothing is dropped silently.",
        )
    return tuple(rows)


def detect_format(record: object, path: Path) -> str:
    """The format whose keys `record` has; FormatError names the keys when there is none."""
    if isinstance(record, Mapping):
        for name, key in (
            ("messages", "messages"),
            ("sharegpt", "conversations"),
            ("alpaca", "instruction"),
            ("text", "text"),
        ):
            if key in record:
                return name
        why = f"The first row has the keys {', '.join(sorted(map(str, record))) or '(none)'}."
    else:
        why = f"The first row is a {type(record).__name__}, not an object."
    raise FormatError(
        f"The format of {path.name} can't be told.", why=why, hint=f"Name it: {', '.join(FORMATS)}."
    )


def _records(path: Path) -> Iterator[tuple[int, object]]:
    """The raw records of a file with their numbers from 1 (.jsonl: the line)."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path.name} is not UTF-8 text.", why=str(error)) from error
    if path.suffix == ".txt":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, {"text": line.strip()}
    elif path.suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield number, _json(line, f"{path.name}, line {number}")
    elif path.suffix == ".json":
        value = _json(text, path.name)
        if not isinstance(value, list):
            raise FormatError(
                f"{path.name} must hold a list of rows.", why=f"It holds a {type(value).__name__}."
            )
        yield from enumerate(value, start=1)
    else:
        raise UsageError(
            f"{path.name} can't be read: its name must end in .json, .jsonl or .txt.",
            hint="Other kinds of file must be converted first.",
        )


def _json(text: str, what: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON.", why=str(error)) from error
    return value


def _checked(row: Row, number: int) -> Row:
    """The row with its number, when something in it can be trained on."""
    if row.text is not None:
        if not row.text.strip():
            raise _RowError("the text is empty")
        return Row((), row.text, number)
    answers = [m for m in row.messages if m.role == "assistant"]
    if not answers:
        raise _RowError("there is no assistant turn, so nothing to train on")
    if any(not m.content.strip() for m in answers):
        raise _RowError("an assistant's answer is empty")
    if row.messages[0].role == "assistant":
        raise _RowError("it begins with an assistant turn; a question must come first")
    if any(m.role == "system" for m in row.messages[1:]):
        raise _RowError("a system message may only come first")
    return Row(row.messages, None, number)


def _alpaca(record: object) -> Row:
    fields = _object(record)
    question = _text(fields, "instruction")
    extra = _text(fields, "input", default="")
    if extra.strip():
        question = f"{question}\n\n{extra}" if question.strip() else extra
    if not question.strip():
        raise _RowError("instruction and input are both empty")
    system = _text(fields, "system", default="")
    turns = [Message("system", system)] if system.strip() else []
    return Row((*turns, Message("user", question), Message("assistant", _text(fields, "output"))))


def _messages(record: object) -> Row:
    turns = []
    for index, item in enumerate(_turns(_object(record), "messages")):
        role = item.get("role")
        if role not in ROLES:
            raise _RowError(
                f"messages[{index}].role is {role!r}; expected one of {', '.join(ROLES)}"
            )
        if item.get("tool_calls"):
            raise _RowError(
                f"messages[{index}].tool_calls can't be read yet; write the call into the content, or use sharegpt"
            )
        turns.append(Message(role, _parts(item.get("content"), f"messages[{index}].content")))
    return Row(tuple(turns))


def _sharegpt(record: object) -> Row:
    fields = _object(record)
    turns: list[Message] = []
    for index, item in enumerate(_turns(fields, "conversations")):
        source = item.get("from")
        role = _SHAREGPT_ROLES.get(source) if isinstance(source, str) else None
        if role is None:
            known = ", ".join(_SHAREGPT_ROLES)
            raise _RowError(f"conversations[{index}].from is {source!r}; expected one of {known}")
        value = item.get("value")
        if not isinstance(value, str):
            raise _RowError(
                f"conversations[{index}].value must be text, not {type(value).__name__}"
            )
        if source == "function_call" and value.strip():
            value = f"<tool_call>\n{value.strip()}\n</tool_call>"
        turns.append(Message(role, value))
    system = _text(fields, "system", default="")
    if turns[0].role == "system":
        system = "\n\n".join(part for part in (system, turns.pop(0).content) if part.strip())
    tools = _tools(fields.get("tools"))
    if tools:
        system = "\n\n".join(
            part for part in (system, TOOLS_PROMPT.format(tools=tools)) if part.strip()
        )
    head = [Message("system", system)] if system.strip() else []
    return Row((*head, *turns))


def _plain_text(record: object) -> Row:
    return Row((), _text(_object(record), "text"))


FORMATS: dict[str, Callable[[object], Row]] = {
    "alpaca": _alpaca,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "text": _plain_text,
}


def _tools(value: object) -> str:
    """The tools as one JSON text, or "" for none; they come as JSON in a string or as a list."""
    if isinstance(value, str):
        if not value.strip():
            return ""
        try:
            value = json.loads(value)
        except ValueError as error:
            raise _RowError(f"tools is not valid JSON ({error})") from error
    if value is None or value == []:
        return ""
    if not isinstance(value, list):
        raise _RowError(f"tools must be a list, not {type(value).__name__}")
    return json.dumps(value, ensure_ascii=False)


def _object(record: object) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        raise _RowError(f"it is a {type(record).__name__}, not an object")
    return record


def _text(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    value = fields.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise _RowError(f"'{key}' must be text; it is {found}")
    return value


def _turns(fields: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = fields.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(v, Mapping) for v in value):
        raise _RowError(f"'{key}' must be a list of turns")
    return value


def _parts(content: object, where: str) -> str:
    """Text content, also where it comes as a list of typed parts; anything but text is refused."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _RowError(f"{where} must be text, not {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise _RowError(f"{where} holds a part of type {kind!r}; only text can be trained on")
        texts.append(text)
    return "".join(texts)
