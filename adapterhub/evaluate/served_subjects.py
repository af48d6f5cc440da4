"""Who is who at a server: what names of the store are called there, and whether it serves what the store means by them.

A door of adapterhub says which version each name means, and the fingerprint of its base; then every adapter is asked for by its
version, whatever its name comes to mean meanwhile. Any other server is taken at its names, and proves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from adapterhub.errors import IncompatibleError, NotFoundError, UsageError
from adapterhub.evaluate.server import Server
from adapterhub.evaluate.subjects import BASE, Subject, find_subject
from adapterhub.words import short, some

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.store import Store


def find_served(store: Store, server: Server, name: str) -> Subject:
    """What `name` means: `base`, an adapter in the store, else a model that only the server has.

    Raises:
        UsageError: it is a folder here.
        NotFoundError: neither has it.
    """
    if name != BASE and name in server.models and not _in_store(store, name):
        return Subject(name, "model")
    try:
        found = find_subject(store, name)
    except NotFoundError as error:
        raise NotFoundError(
            f"Neither the store nor the server at {server.host} has {name}.",
            why=f"{error.what} The server lists {some(list(server.models), 8)}.",
            hint=error.hint,
        ) from error
    if found.folder is not None:
        raise UsageError(
            f"{name} is a folder, and the server at {server.host} doesn't list it.",
            hint=f"Name it as the server does: {some(list(server.models))}. Or leave out --server.",
        )
    return found


def _in_store(store: Store, name: str) -> bool:
    try:
        return find_subject(store, name).adapter is not None
    except (NotFoundError, UsageError):
        return False


def settle(
    server: Server, subjects: Sequence[Subject], base: BaseModel | None
) -> tuple[list[Subject], dict[str, str]]:
    """The subjects as the server proves them to be, and what each is called there.

    Raises:
        UsageError: nothing says which base it is about, or which of the server's models is that.
        IncompatibleError: the server has another base.
        NotFoundError: it doesn't serve an adapter, or serves another version under its name.
    """
    if base is None:
        raise UsageError(
            "Which base is it about? Its tokenizer says what is asked, and no adapter names it.",
            hint="Name it: --base FOLDER_OR_REPO",
        )
    ours = server.base
    if ours is None:
        return _taken_at_names(server, subjects)
    if ours.about["fingerprint"] != base.fingerprint:
        raise IncompatibleError(
            f"The server at {server.host} serves another base.",
            why=f"There {ours.name} is {short(str(ours.about['fingerprint']))}, and {base.label} is"
            f" {short(base.fingerprint)}.",
            hint="Name the server of this base, or with --base the server's.",
        )
    names = {}
    for subject in subjects:
        if subject.adapter is not None:
            names[subject.name] = _version(server, subject.name, subject.adapter.digest)
        else:
            names[subject.name] = subject.name if subject.kind == "model" else ours.name
    return list(subjects), names


def _version(server: Server, name: str, digest: str) -> str:
    """A name that means these weights there; best one that can't come to mean others."""
    found = [one.name for one in server.models.values() if one.ours and one.root == digest]
    if found:
        return max(found, key=lambda one: "@" in one)
    plain = name.partition("@")[0].partition(":")[0]
    earlier = f"{plain}@{short(digest)}"
    model = server.model(earlier)  # earlier versions answer, and aren't listed
    if model is not None and model.ours and model.root == digest:
        return earlier
    listed = server.models.get(name)
    if listed is None:
        raise NotFoundError(
            f"The server at {server.host} doesn't serve {name}.",
            why=f"It lists {some(list(server.models), 8)}.",
            hint=f"adapterhub server add {name}",
        )
    means = "several versions" if listed.root in (None, name) else f"@{short(str(listed.root))}"
    raise NotFoundError(
        f"The server at {server.host} doesn't serve what the store means by {name}.",
        why=f"In the store it is @{short(digest)}, at the server {means}.",
        hint=f"adapterhub server update {name}, or name what is served: {plain}@...",
    )


def _taken_at_names(
    server: Server, subjects: Sequence[Subject]
) -> tuple[list[Subject], dict[str, str]]:
    """Every adapter becomes a model that the server has under that name: nothing shows that it is the store's."""
    settled, names = [], {}
    for subject in subjects:
        if subject.kind in ("adapter", "model"):
            if subject.name not in server.models:
                raise NotFoundError(
                    f"The server at {server.host} doesn't serve {subject.name}.",
                    why=f"It lists {some(list(server.models), 8)}.",
                )
            settled.append(replace(subject, kind="model", adapter=None))
            names[subject.name] = subject.name
        else:
            settled.append(subject)
            names[subject.name] = _only_whole_model(server)
    return settled, names


def _only_whole_model(server: Server) -> str:
    whole = [one.name for one in server.models.values() if one.parent is None]
    if len(whole) != 1:
        raise UsageError(
            f"The server at {server.host} doesn't say which of its models is the base.",
            why=f"It lists {some(whole, 8)}." if whole else "All that it lists are adapters.",
            hint="Leave out `base`, and name the model as the server does.",
        )
    return whole[0]
