"""The local content-addressed store: blobs, manifests, attestations, refs and their journal.

The names below are imported when they are first asked for: listing reads the catalogue alone, and starts faster than the
store's own modules load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.store.adding import Added
    from adapterhub.store.journal import Change, Operation
    from adapterhub.store.store import Entry, Resolved, Store, misfit

__all__ = ["Added", "Change", "Entry", "Operation", "Resolved", "Store", "misfit"]

_WHERE = {"Added": "adding", "Change": "journal", "Operation": "journal"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE.get(name, 'store')}"), name)
