"""A file of an adapter fetched again from where its provenance says it came."""

from __future__ import annotations

from pathlib import Path

from adapterhub.errors import AdapterHubError
from adapterhub.remote.address import is_hub, parse_address
from adapterhub.remote.fetching import Hub
from adapterhub.store import Store


def fetch_again(store: Store, adapter: str, path: str) -> Path | None:
    """A fresh copy of the adapter's file `path` in the Hugging Face cache; None where it came from elsewhere or can't be had."""
    try:
        known = store.attestations(adapter)
    except AdapterHubError:
        return None
    for attestation in known:
        source = attestation.body.get("source")
        if attestation.type != "provenance" or not isinstance(source, str) or not is_hub(source):
            continue
        try:
            address = parse_address(source)
            whole = f"{address.folder}/{path}" if address.folder else path
            return Hub(address, lambda _: None).fetch(address.revision or "main", whole, again=True)
        except AdapterHubError:
            continue
    return None
