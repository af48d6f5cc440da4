"""Turns of conversations as the formats write them, read into `Message`s; faults are raised as RowError.

A turn is `role` and `content`, or `from` and `value`; both are read wherever turns are. Content is a text or a list of
typed parts. Tool calls follow the Hermes convention, which servers parse back into calls: the tools stand as JSON in
the system message between `<tools>` tags, a call becomes an assistant turn `<tool_call>JSON</tool_call>` (so it is
trained on), and its result becomes a turn of the role `tool` (so it is not).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from adapterhub.data.rows import Message
from adapterhub.words import shown

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
}
TOOLS_PROMPT = (
    "You can call functions. To call one, answer with its name and arguments as JSON inside <tool_call></tool_call>"
    " tags. The functions are listed as JSON inside <tools></tools> tags:\n<tools>\n{tools}\n</tools>"
)
_CALL = "<tool_call>\n{call}\n</tool_call>"
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_WEIGHTS = ("weight", "loss_weight")


class RowError(ValueError):
    """What is wrong with one row; the reader adds the file and the row's number."""


def as_object(record: object) -> Mapping[str, Any]:
    """The record, which must be an object."""
    if not isinstance(record, Mapping):
        raise RowError(f"it is a {type(record).__name__}, not an object")
    return record


def as_text(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """The text under `key`; `default` stands for one that is missing or null."""
    value = fields.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        found = "missing" if value is None else f"a {type(value).__name__}"
        raise RowError(f"'{key}' must be text; it is {found}")
    return value


def as_turns(value: object, where: str) -> tuple[Message, ...]:
    """The turns in `value`: a list, or the same as JSON in a text, as a table's cell has it."""
    if isinstance(value, str):
        value = _parsed(value, where)
    if not isinstance(value, list) or not value or not all(isinstance(v, Mapping) for v in value):
        raise RowError(f"'{where}' must be a list of turns")
    return tuple(as_turn(item, f"{where}[{index}]") for index, item in enumerate(value))


def as_turn(item: Mapping[str, Any], where: str) -> Message:
    """One turn of either spelling."""
    role_key, text_key = ("role", "content") if "role" in item else ("from", "value")
    source = item.get(role_key)
    role = _ROLES.get(source) if isinstance(source, str) else None
    if role is None:
        raise RowError(
            f"{where}.{role_key} is {shown(source)}; expected one of {', '.join(_ROLES)}"
        )
    for key in _THOUGHTS:
        if item.get(key):
            raise RowError(
                f"{where}.{key} can't be trained on by itself; write it into the {text_key} as the model should say it"
            )
    if role == "assistant":
        _refuse_weights(item, where)
    value = item.get(text_key)
    calls = _calls(item.get("tool_calls"), f"{where}.tool_calls")
    if source == "function_call" and isinstance(value, str):
        return Message(role, _called(value))
    text = "" if value is None and calls else _content(value, f"{where}.{text_key}")
    return Message(role, "\n".join(part for part in (text, *calls) if part.strip()) or text)


def with_system(turns: Sequence[Message], fields: Mapping[str, Any]) -> tuple[Message, ...]:
    """The turns, with the row's `system` text and `tools` in one system message at the beginning."""
    texts = [as_text(fields, "system", default="")]
    if turns and turns[0].role == "system":
        texts.append(turns[0].content)
        turns = turns[1:]
    tools = _tools(fields.get("tools"))
    if tools:
        texts.append(TOOLS_PROMPT.format(tools=tools))
    system = "\n\n".join(text for text in texts if text.strip())
    return (*((Message("system", system),) if system else ()), *turns)


def _refuse_weights(item: Mapping[str, Any], where: str) -> None:
    """RowError where a turn's own weight in the loss isn't 1: every answer is learned, and all alike."""
    for key in _WEIGHTS:
        weight = item.get(key)
        if weight is not None and weight != 1:
            raise RowError(
                f"{where}.{key} is {shown(weight)}, but every answer is learned alike; leave the key or the row out"
            )
    if item.get("train") is False:
        raise RowError(f"{where}.train is false, but every answer is learned; leave the row out")


def _called(value: str) -> str:
    """The calls in a `function_call` turn in their tags: one call as it is written, or several in a JSON list."""
    text = value.strip()
    with suppress(RowError):  # a call that is no JSON is for `health` to warn about
        calls = _parsed(text, "") if text.startswith("[") else None
        if isinstance(calls, list) and calls:
            return "\n".join(_CALL.format(call=_dumped(call)) for call in calls)
    return _CALL.format(call=text) if text else value


def _calls(value: object, where: str) -> list[str]:
    """Calls as OpenAI writes them, each in its tags."""
    if value is None:
        return []
    if isinstance(value, str):
        value = _parsed(value, where)
    if not isinstance(value, list):
        raise RowError(f"{where} must be a list, not a {type(value).__name__}")
    found = []
    for index, item in enumerate(value):
        call = item.get("function", item) if isinstance(item, Mapping) else None
        name = call.get("name") if isinstance(call, Mapping) else None
        if not isinstance(call, Mapping) or not isinstance(name, str) or not name:
            raise RowError(f"{where}[{index}] names no function")
        arguments = call.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments or "{}", f"{where}[{index}].arguments")
        if not isinstance(arguments, Mapping):
            raise RowError(f"{where}[{index}].arguments must be an object")
        found.append(_CALL.format(call=_dumped({"name": name, "arguments": arguments})))
    return found


def _tools(value: object) -> str:
    """The tools as one JSON text, or "" for none; they come as JSON in a string or as a list."""
    if isinstance(value, str):
        if not value.strip():
            return ""
        value = _parsed(value, "tools")
    if value is None or value == []:
        return ""
    if not isinstance(value, list):
        raise RowError(f"tools must be a list, not {type(value).__name__}")
    return _dumped(value)


def _content(content: object, where: str) -> str:
    """Text content, also where it comes as a list of typed parts; anything but text and calls is refused."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"{where} must be text, not {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text", part.get("value")) if isinstance(part, Mapping) else None
        if kind not in ("text", "tool_call") or not isinstance(text, str):
            raise RowError(
                f"{where} holds a part of type {shown(kind)}; only text can be trained on"
            )
        texts.append(_called(text) if kind == "tool_call" else text)
    return "".join(texts)


def _parsed(text: str, where: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where} is not valid JSON ({error})") from error
    return value


def _dumped(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise RowError(f"a tool or a call is nested too deeply ({error})") from error
