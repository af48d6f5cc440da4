"""Addresses on the Hugging Face Hub: `hf://org/repo[@revision][/folder]`, and `hf://datasets/...` for data.

`hf://repo` is one of the old names without an owner. Such a name followed by a folder needs its revision,
`hf://repo@main/folder`, because `hf://a/b` is always the repository b of a. A revision that has a slash in it is
written with %2F, because after a slash the folder begins.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from shlex import quote as quote_word
from typing import Literal
from urllib.parse import quote, unquote

from adapterhub.errors import UsageError
from adapterhub.manifest import is_safe_relative_path
from adapterhub.names import slug

SCHEME = "hf://"

_REPO_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?\Z")
# What git refuses in the name of a branch or tag (git check-ref-format).
_NO_REVISION = re.compile(r"[\s~^:?*\[\\]|\.\.|@\{|//|^[-/]|[/.]\Z|\.lock\Z")
_KINDS = ("datasets", "spaces", "kernels", "buckets")

Kind = Literal["model", "dataset"]
"""Repositories that hold adapters, and those that hold data, as huggingface_hub calls them."""


@dataclass(frozen=True)
class HubAddress:
    """A validated address. `revision` is a branch, tag or commit; None means the repository's default branch.

    `folder` may also be a file where `kind` is dataset.
    """

    repo: str
    revision: str | None = None
    folder: str = ""
    kind: Kind = "model"

    def __str__(self) -> str:
        revision = self.revision
        if self.folder and "/" not in self.repo:
            revision = revision or "main"
        at = f"@{quote(revision, safe='')}" if revision else ""
        # Somebody may be called models; before a folder that would be read as the kind of repository.
        told = self.kind == "dataset" or (self.folder and self.repo.startswith("models/"))
        kind = f"{self.kind}s/" if told else ""
        return f"{SCHEME}{kind}{self.repo}{at}" + (f"/{self.folder}" if self.folder else "")

    @property
    def command(self) -> str:
        """What to type to add it, or to fetch and look into the data."""
        verb = "data report" if self.kind == "dataset" else "add"
        return f"adapterhub {verb} {quote_word(str(self))}"

    @property
    def name(self) -> str:
        """What to call the adapter where nobody said: `org/repo`, and `org/repo-folder` for one in a folder."""
        owner, slash, last = self.repo.rpartition("/")
        whole = f"{last}-{self.folder}" if self.folder else last
        return (slug(owner) if owner else "") + slash + slug(whole)


def is_hub(text: str) -> bool:
    """Whether `text` is meant as an address on the Hub."""
    return text[: len(SCHEME)].lower() == SCHEME


def parse_address(text: str, kind: Kind = "model") -> HubAddress:
    """The address in `text`, of a repository of that kind; UsageError says what is wrong with it."""
    first, *rest = text[len(SCHEME) :].split("/") if is_hub(text) else [""]
    if kind == "dataset":
        if first != "datasets" or not rest:
            raise _bad(text, "data are in dataset repositories: hf://datasets/org/name")
        first, *rest = rest
    elif first == "models" and len(rest) > 1:  # as huggingface_hub writes them
        first, *rest = rest
        if first == "models" and rest:
            raise _bad(text, "nobody's repositories are in 'models'")
    if kind == "model" and first in _KINDS and rest:
        raise _bad(text, f"it is in {first}, and adapters are in model repositories")
    if "@" in first or not rest:
        owner, second = "", first
    else:
        owner, second = f"{first}/", rest.pop(0)
    name, at, revision = second.partition("@")
    _check_repo(text, f"{owner}{name}")
    folder = "/".join(rest).removesuffix("/")
    if folder and not (is_safe_relative_path(folder) and folder.isprintable()):
        raise _bad(text, f"'{folder}' is no folder inside a repository")
    if not at:
        return HubAddress(f"{owner}{name}", None, folder, kind)
    if revision == "refs" and folder.startswith(("pr/", "convert/")):
        whole = quote("/".join(["refs", *folder.split("/")[:2]]), safe="")
        raise _bad(
            text, f"the slashes of a revision are written as %2F: {SCHEME}{owner}{name}@{whole}"
        )
    decoded = unquote(revision, errors="replace")
    sound = decoded.isprintable() and "@" not in revision and "\ufffd" not in decoded
    if not sound or _NO_REVISION.search(decoded) or not 0 < len(decoded) <= 255:
        raise _bad(text, "after '@' there must be a branch, a tag or a commit")
    return HubAddress(f"{owner}{name}", decoded, folder, kind)


def _check_repo(text: str, repo: str) -> None:
    parts = repo.split("/")
    if not all(_REPO_PART.match(part) for part in parts):
        raise _bad(
            text,
            f"'{repo}' is no repository: letters, digits, '.', '_' and '-', at most 96, not at the ends",
        )
    if "--" in repo or ".." in repo or repo.endswith(".git"):
        raise _bad(text, f"'{repo}' is no repository: it has '--', '..' or ends in '.git'")


def _bad(text: str, why: str) -> UsageError:
    shown = text if text.isprintable() else repr(text)
    return UsageError(
        f"'{shown}' is no address on the Hub: {why if why.isprintable() else repr(why)}.",
        hint="Addresses look like hf://org/repo, hf://org/repo@revision or hf://org/repo@revision/folder;"
        " those of data like hf://datasets/org/name@revision/path.",
    )
