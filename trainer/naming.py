"""Whether a recipe's name is free, as far as that can be told before its data and its base are read."""

from __future__ import annotations

from adapterhub.errors import NotFoundError
from adapterhub.store import Store
from adapterhub.words import short


def taken(store: Store, name: str) -> str:
    """What there is to say of the adapter that has the name; empty where there is none.

    Whether it is the result of the very same training, which may be trained again, only `train.known_result` knows.
    """
    try:
        found = store.resolve(name)
    except NotFoundError:
        return ""
    trained = any(
        one.type == "provenance" and one.body.get("training")
        for one in store.attestations(found.digest)
    )
    if trained:
        return (
            f"{name} is the result of an earlier training ({short(found.digest)}). "
            "Unless this is the very same one, it is refused: change `name:`."
        )
    return f"The name {name} is taken by another adapter ({short(found.digest)}): change `name:`."
