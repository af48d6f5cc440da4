"""The exported model's README.md: the metadata that the Hugging Face Hub reads, and in words what was baked into what."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adapterhub.export import evaluations
from adapterhub.export.markdown import plain
from adapterhub.words import short

CARD_NAME = "README.md"
RECORD_NAME = "adapterhub.json"
"""The whole record of an export, beside the card."""
_INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What is true of the merged model because it is true of its base."""


def model_card(record: Mapping[str, Any], base: Path) -> str:
    """A model card for what `record` (adapterhub.json) tells of; the card in the folder `base` says which license it has."""
    from huggingface_hub import ModelCardData

    told: dict[str, Any] = {"library_name": "transformers", "tags": ["merge", "lora", "adapterhub"]}
    if record["base"]["repo"]:
        told |= {"base_model": record["base"]["repo"], "base_model_relation": "merge"}
    title = " + ".join(plain(adapter["name"]) for adapter in record["adapters"])
    if results := evaluations.results(record):
        told |= {"model_name": title, "eval_results": results}
    metadata = ModelCardData(**told, **_inherited(base / CARD_NAME))
    parts = [
        f"---\n{metadata.to_yaml().strip()}\n---",
        f"# {title}",
        _what(record),
        _table(record),
        evaluations.section(record),
        _how(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _inherited(card: Path) -> dict[str, Any]:
    """Metadata of the base's card; none where it has no card, or one that can't be read."""
    from huggingface_hub.repocard import metadata_load

    try:
        found = metadata_load(card) or {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}  # a card is prose: it must not stop an export
    return {key: found[key] for key in _INHERITED if _is_words(found.get(key))}


def _is_words(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(one, str) for one in value)
    return isinstance(value, str)


def _what(record: Mapping[str, Any]) -> str:
    base = record["base"]
    name = f"`{plain(base['repo'])}`" if base["repo"] else "A base without a name"
    revision = f", revision `{plain(base['revision'])}`" if base["revision"] else ""
    many = len(record["adapters"]) > 1
    what = (
        f"the adapters below, merged ({_method(record['recipe'])}) and"
        if many
        else "the adapter below"
    )
    return (
        f"{name}{revision}, with {what} baked into its weights: it loads like any model, without PEFT.{_form(record)}\n"
        f"The base's weights have the fingerprint `{base['fingerprint']}`."
    )


def _method(recipe: Mapping[str, Any]) -> str:
    steps = recipe.get("steps") or [recipe]
    return ", then ".join(plain(step["method"]) for step in steps)


def _form(record: Mapping[str, Any]) -> str:
    quantised = record.get("quantize")
    return f" Its linear weights are in 4 bits ({plain(quantised['method'])})." if quantised else ""


def _table(record: Mapping[str, Any]) -> str:
    lines = ["| adapter | digest |", "|---|---|"]
    lines += [
        f"| {plain(adapter['name']).replace('|', ' ')} | `{short(adapter['digest'])}` |"
        for adapter in record["adapters"]
    ]
    return "\n".join(lines)


def _how(record: Mapping[str, Any]) -> str:
    engine = ", ".join(f"{name} {version}" for name, version in record["engine"].items())
    told = (
        f"Made by {engine}. `adapterhub.json` beside this file holds the whole recipe, the digests, "
        "what is attested of each adapter, and what was checked."
    )
    allowed = record["allowed_mismatch"]
    if allowed:
        reasons = "\n".join(f"- {plain(reason)}" for reason in allowed)
        told += f"\n\nIt was made although, as known at the time:\n\n{reasons}"
    return told
