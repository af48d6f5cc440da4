"""What the catalogue knows of one adapter, read from the store's files: manifest, attestations, configuration, model card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapterhub.canonical import digest_of, parse_object
from adapterhub.errors import AdapterHubError
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.manifest import Attestation, Manifest
from adapterhub.store.catalogue.measured import Measured, measured_by
from adapterhub.store.store import Store

CARD_NAME = "readme.md"
MAX_CARD_BYTES = 2**20
"""A longer model card is not searched."""
MAX_WORDS = 20_000
"""Characters of one attestation that are searched."""

_LICENSE = re.compile(r"^license:[ \t]*['\"]?([^\s'\"#]+)", re.MULTILINE)
_FRONT_MATTER = re.compile(r"---[ \t]*\n(.*?)\n---", re.DOTALL)


@dataclass(frozen=True)
class Parent:
    """An adapter that this one was made from, and how: `merged`, `trained` on from there, `converted`."""

    digest: str
    name: str
    how: str
    at: str


@dataclass(frozen=True)
class Based:
    """A base that the adapter was trained on or checked against."""

    fingerprint: str
    repo: str | None
    revision: str | None
    how: str
    at: str


@dataclass
class Record:
    """One adapter. `columns` are those of the table `adapters`; `again` says that something could not be read."""

    digest: str
    listed: bool
    again: bool = False
    error: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)
    files: list[tuple[str, str, int]] = field(default_factory=list)
    parents: list[Parent] = field(default_factory=list)
    based: list[Based] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    about: str = ""
    told: int = 0


def read_record(store: Store, digest: str, *, listed: bool) -> Record:
    """Everything about the adapter `digest`. Never raises for what is damaged: that is told in `error`.

    Args:
        listed: whether its manifest is on the shelf; one that isn't may still be in the trash.
    """
    record = Record(digest, listed, again=not listed)
    try:
        manifest = store.manifest(digest)
    except (AdapterHubError, OSError) as error:
        record.error, record.again = as_text(error), True
        return record
    record.files = [(entry.path, entry.digest, entry.size) for entry in manifest.files]
    record.columns = _facts(manifest)
    try:
        known = store.attestations(digest)
    except (AdapterHubError, OSError) as error:
        record.error, record.again, known = as_text(error), True, []
    record.told = len(known)
    record.columns |= _known(known) | _scored(known)
    record.parents = [parent for item in known for parent in parents_of(item)]
    record.measured = measured_by(known)
    record.based = [based for item in known if (based := _based(item)) is not None]
    if record.based:
        record.columns |= {
            "fingerprint": record.based[-1].fingerprint,
            "known_repo": record.based[-1].repo,
        }
    claimed, card = _claimed(store, manifest, record), _card(store, manifest, record)
    record.columns |= {"claimed": claimed, "license": _license(card)}
    targets = manifest.lora.targets if manifest.lora else []
    words = [manifest.kind, claimed or "", manifest.base.repo or ""]
    words += [targets] if isinstance(targets, str) else targets
    words += [" ".join(_words(item.body))[:MAX_WORDS] for item in known]
    record.about = "\n".join([*words, card]).replace("\0", " ")
    return record


def as_text(error: AdapterHubError | OSError) -> str:
    """An error as text, to be raised again by whoever lists the row."""
    from adapterhub.fsio import in_words

    said = error if isinstance(error, AdapterHubError) else in_words(error)
    return json.dumps([type(said).__name__, said.what, said.why, said.hint])


def _facts(manifest: Manifest) -> dict[str, Any]:
    lora = manifest.lora
    config, weights = manifest.file(CONFIG_NAME), manifest.file(WEIGHTS_NAME)
    return {
        "kind": manifest.kind,
        "base": manifest.base.repo,
        "revision": manifest.base.revision,
        "rank": lora.rank if lora else None,
        "alpha": lora.alpha if lora else None,
        "targets": json.dumps(lora.targets) if lora else None,
        "modules": lora.modules if lora else None,
        "parameters": lora.parameters if lora else None,
        "dtype": lora.dtype if lora else None,
        "size": manifest.size,
        "content": manifest.content,
        "config": config.digest if config else None,
        "weights": weights.digest if weights else None,
    }


def _known(known: list[Attestation]) -> dict[str, Any]:
    """How it came to be (the first statement about that counts) and when something was last said about it."""
    for item in known:
        if item.type == "provenance" and isinstance(item.body.get("event"), str):
            recipe = item.body.get("recipe")
            method = recipe.get("method") if isinstance(recipe, Mapping) else None
            return {
                "event": item.body["event"],
                "method": method if isinstance(method, str) else None,
                "used": known[-1].created,
            }
    return {"used": known[-1].created if known else None}


def _scored(known: list[Attestation]) -> dict[str, Any]:
    """What the newest evaluation measured, where it says which of its numbers that is, and on which rows."""
    for item in reversed(known):
        metric, result = item.body.get("metric"), item.body.get("result")
        if item.type != "eval" or "suite" in item.body:
            continue  # what it knew before says nothing about its task
        if isinstance(metric, str) and isinstance(result, Mapping):
            score = result.get(metric)
            if isinstance(score, int | float) and not isinstance(score, bool):
                data = item.body.get("data")
                on = (
                    data.get("rows_digest", data.get("digest"))
                    if isinstance(data, Mapping)
                    else None
                )
                return {
                    "metric": metric,
                    "score": float(score),
                    "scored_on": on if isinstance(on, str) else None,
                }
    return {}


def parents_of(item: Attestation) -> Iterator[Parent]:
    """The `parents` of a provenance, in order, and what a training went on from, if that was an adapter."""
    if item.type != "provenance":
        return
    how = str(item.body.get("event", "made"))
    parents = item.body.get("parents")
    for parent in parents if isinstance(parents, list) else []:
        if isinstance(parent, Mapping) and isinstance(parent.get("digest"), str):
            yield Parent(parent["digest"], str(parent.get("name", "")), how, item.created)


def _based(item: Attestation) -> Based | None:
    if not item.tells_the_base:
        return None
    fingerprint = str(item.body["fingerprint"])
    repo, revision = item.body.get("repo"), item.body.get("revision")
    return Based(
        fingerprint,
        repo if isinstance(repo, str) else None,
        revision if isinstance(revision, str) else None,
        str(item.body.get("how", "recorded")),
        item.created,
    )


def _claimed(store: Store, manifest: Manifest, record: Record) -> str | None:
    """The base as the configuration names it, paths too."""
    data = _bytes(store, manifest, CONFIG_NAME, record)
    if data is None:
        return None
    try:
        claimed = parse_object(data, CONFIG_NAME).get("base_model_name_or_path")
    except AdapterHubError:
        return None
    return claimed if isinstance(claimed, str) else None


def _card(store: Store, manifest: Manifest, record: Record) -> str:
    path = next((entry.path for entry in manifest.files if entry.path.lower() == CARD_NAME), None)
    data = _bytes(store, manifest, path, record) if path else None
    return "" if data is None else data.decode("utf-8", "replace")


def _bytes(store: Store, manifest: Manifest, path: str, record: Record) -> bytes | None:
    """A small file of the adapter. One that can't be read makes the record incomplete; using it says what is wrong."""
    entry = manifest.file(path)
    if entry is None or entry.size > MAX_CARD_BYTES:
        return None
    try:
        data = Path(store.blobs.path(entry.digest)).read_bytes()
    except (AdapterHubError, OSError):
        data = b""
    if digest_of(data) != entry.digest:
        record.again = True
        return None
    return data


def _license(card: str) -> str | None:
    front = _FRONT_MATTER.match(card)
    found = _LICENSE.search(front[1]) if front else None
    return found[1] if found else None


def _words(value: object) -> Iterator[str]:
    """Every text in a document, except digests, which nobody reads."""
    if isinstance(value, str):
        if not value.startswith("sha256:"):
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _words(item)
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
