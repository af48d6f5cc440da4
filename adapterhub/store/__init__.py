"""The local content-addressed store: blobs, manifests, attestations, refs and their journal."""

from adapterhub.store.adding import Added
from adapterhub.store.refs import Change
from adapterhub.store.store import Entry, Resolved, Store, misfit

__all__ = ["Added", "Change", "Entry", "Resolved", "Store", "misfit"]
