"""The data of Axolotl's YAML: the list `datasets`, whose keys are those of axolotl/utils/schemas/datasets.py."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapterhub.trainer.foreign.common import Reading, Verdict, refuse

_SUFFIXES = (".json", ".jsonl", ".csv", ".parquet", ".txt")
_LOADERS = ("json", "csv", "parquet", "text")
"""What `datasets` calls a reader of local files, where a repository would stand."""
_MESSAGES = ("messages", "role", "content")
_SHAREGPT = ("conversations", "from", "value")
_KNOWN_ROLES = {"system", "user", "human", "assistant", "gpt", "model", "tool"}


def take_data(reading: Reading, folder: Path) -> None:
    """`datasets`: where the rows are, in which format, and what each of its keys becomes."""
    key = "datasets" if reading.has("datasets") else "pretraining_dataset"
    listed = reading.get(key)
    listed = [listed] if isinstance(listed, Mapping | str) else listed
    if not isinstance(listed, list):
        raise refuse(reading.tool, "names no data", "`datasets` is missing or isn't a list.")
    sources = [one if isinstance(one, Mapping) else {"path": str(one)} for one in listed]
    paths: list[str] = []
    formats: list[str | None] = []
    for place, source in enumerate(sources):
        where = f"{key}[{place}]"
        paths += _paths(reading, source, where, folder)
        formats.append(_format(reading, source, where, text=key != "datasets"))
        _tell_source(reading, source, where)
    reading.document["data"]["path"] = paths[0] if len(paths) == 1 else paths
    same = formats[0] if len(set(formats)) == 1 else None
    reading.document["data"]["format"] = same
    reading.told(key, "kept", became="data", why="" if same else "formats are told from the rows")


def _paths(reading: Reading, source: Mapping[str, Any], where: str, folder: Path) -> list[str]:
    path = str(source.get("path") or "")
    files = source.get("data_files")
    named = [files] if isinstance(files, str) else files if isinstance(files, list) else []
    local = (
        path in _LOADERS
        or "://" in path
        or path.startswith((".", "/", "~"))
        or path.endswith(_SUFFIXES)
        or os.path.exists(folder / path)  # noqa: PTH110 - False for what can be no name
    )
    if path in _LOADERS and named:
        found = [str(name) for name in named]
    elif local or not path:
        found = [path]
    else:
        address = f"hf://datasets/{path}" + (
            f"@{source['revision']}" if source.get("revision") else ""
        )
        found = [f"{address}/{name}" for name in named] or [address]
    reading.inner(f"{where}.path", path, "kept", became=f"data.path: {', '.join(found)}")
    return found


def _format(reading: Reading, source: Mapping[str, Any], where: str, *, text: bool) -> str | None:
    kind = source.get("type")
    said = str(kind) if isinstance(kind, str) else ""
    ours, verdict, why = _format_of(source, said, reading.document.get("objective") == "dpo", text)
    became = f"data.format: {ours}" if ours else "data.format: null"
    reading.inner(f"{where}.type", kind, verdict, became=became, why=why)
    return ours


def _format_of(
    source: Mapping[str, Any], said: str, preferences: bool, text: bool
) -> tuple[str | None, Verdict, str]:
    """Our format, the verdict, and why."""
    if preferences:
        return (
            "preference",
            "kept",
            "rows need a prompt, chosen and rejected, or their names as trl has them",
        )
    if said == "alpaca":
        return "alpaca", "kept", ""
    if said.startswith("completion") or text or said == "pretrain":
        field = source.get("field") or source.get("text_column") or said.partition(":")[2] or "text"
        return (
            "text",
            "kept" if field == "text" else "differs",
            ("" if field == "text" else f"the column {field} has to be called text"),
        )
    if said.startswith("sharegpt"):
        return "sharegpt", "kept", ""
    if said.startswith("chat_template"):
        names = _names_of_turns(source)
        if names == _SHAREGPT:
            return "sharegpt", "kept", ""
        if names == _MESSAGES:
            return "messages", "kept", ""
        field, role, content = names
        return (
            "messages",
            "differs",
            (f"rows have {field}: [{{{role}, {content}}}], and need messages: [{{role, content}}]"),
        )
    return (
        None,
        "differs",
        "not a format known here: rows are told from their keys, and wording of prompts is the template's",
    )


def _names_of_turns(source: Mapping[str, Any]) -> tuple[str, str, str]:
    """(list, role, content) as the rows call them."""
    mapped = source.get("message_property_mappings")
    names = mapped if isinstance(mapped, Mapping) else {}
    return (
        str(source.get("field_messages") or "messages"),
        str(names.get("role") or source.get("message_field_role") or "role"),
        str(names.get("content") or source.get("message_field_content") or "content"),
    )


def _tell_source(reading: Reading, source: Mapping[str, Any], where: str) -> None:
    """A line for each other key of a data set."""
    preferences = reading.document.get("objective") == "dpo"
    for key, value in source.items():
        if key in ("path", "type") or value is None or value in ("", [], {}):
            continue
        place = f"{where}.{key}"
        if key == "field_messages" and preferences and value not in ("prompt", "conversations"):
            reading.inner(place, value, "differs", why="preference rows call it prompt")
        elif key in _SEEN:
            reading.inner(place, value, "kept", why="looked at for the path or the format")
        elif key in ("ds_type", "trust_remote_code"):
            reading.inner(place, value, "ignored", why="told from the file")
        elif _same_here(key, value):
            reading.inner(place, value, "ignored", why="so it is here")
        else:
            reading.inner(place, value, "differs", why=_SOURCE.get(key, "no counterpart known"))


def _same_here(key: str, value: object) -> bool:
    if key in ("split", "field_chosen", "field_rejected"):
        return value == {"split": "train"}.get(key, key.removeprefix("field_"))
    if key == "roles_to_train":
        return isinstance(value, list) and set(map(str, value)) <= {"assistant", "gpt", "model"}
    if key in ("train_on_eos", "train_on_eot"):
        return value == "turn"
    if key == "chat_template":
        return value == "tokenizer_default"
    if key == "roles":
        named = value.values() if isinstance(value, Mapping) else ()
        return all(isinstance(one, list) and set(map(str, one)) <= _KNOWN_ROLES for one in named)
    return value is False


_SEEN = (
    "data_files", "revision", "field", "text_column", "field_messages", "message_property_mappings",
    "message_field_role", "message_field_content",
)  # fmt: skip
_SOURCE = {
    "split": "all rows are used, or data.limit of them",
    "name": "all files of the data set are used; name one in data.path",
    "shards": "all rows are used, or data.limit of them",
    "roles": "rows name their turns user or human, assistant or gpt, system, tool",
    "roles_to_train": "the loss is on the answers alone",
    "train_on_eos": "the end of every answer is trained, and no other",
    "train_on_eot": "the end of every answer is trained, and no other",
    "chat_template": "the base's own chat template is used; another is a file: template: FILE.jinja",
    "drop_system_message": "system messages stay",
    "field_chosen": "preference rows call it chosen",
    "field_rejected": "preference rows call it rejected",
    "conversation": "the wording is the template's",
}
