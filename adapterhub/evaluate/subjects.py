"""What is evaluated or talked to: the base, adapters on it, folders of whole models; and the one base they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from adapterhub.errors import UsageError
from adapterhub.fsio import typed_path

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.store import Resolved, Store

BASE = "base"
"""The word that means the base model itself among names."""

Kind = Literal["base", "prompted", "retrieved", "adapter", "model"]
"""`prompted`: the base, told a system prompt; `retrieved`: the base, given texts before each question."""


@dataclass(frozen=True)
class Subject:
    """The base, an adapter in the store, or a model folder."""

    name: str
    kind: Kind
    adapter: Resolved | None = None
    folder: Path | None = None

    @property
    def digest(self) -> str | None:
        """The adapter's; None for the base and for model folders."""
        return self.adapter.digest if self.adapter else None


def find_subject(store: Store, name: str) -> Subject:
    """What `name` means: the word `base`, a folder with a model in it, else an adapter. NotFoundError where it is none."""
    if name == BASE:
        return Subject(name, "base")
    folder = typed_path(name)
    if (folder / "config.json").is_file():
        return Subject(name, "model", folder=folder)
    return Subject(name, "adapter", adapter=store.resolve(name))


def shared_base_of(
    store: Store, subjects: Sequence[Subject], explicit: str | None, *, allow_mismatch: bool = False
) -> BaseModel | None:
    """The one base of all: the one named, else the first adapter's own; None where there are only model folders.

    Raises:
        UsageError: the base itself is asked for, and nothing says which.
        NotFoundError: it is not on this machine.
        IncompatibleError: an adapter doesn't fit it, unless that is allowed.
    """
    adapters = [subject.adapter for subject in subjects if subject.adapter]
    if explicit is not None:
        found = store.bases.open(explicit)
    elif adapters:
        found = store.base_for(adapters[0])
    elif any(subject.kind == "base" for subject in subjects):
        raise UsageError("Which base? No adapter says it.", hint="Name it: --base FOLDER_OR_REPO")
    else:
        return None
    for adapter in adapters:
        store.require_fit(adapter, found, allow_mismatch=allow_mismatch)
    return found
