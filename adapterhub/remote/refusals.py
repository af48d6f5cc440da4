"""What goes wrong with the Hub, in words: huggingface_hub's exceptions as ours.

What the server says is quoted within bounds and without our token; addresses it sent us are never quoted, because the
ones of its storage carry signatures.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from adapterhub.errors import AdapterHubError, NotFoundError, RemoteError, UsageError
from adapterhub.remote.address import HubAddress

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_MOST_QUOTED = 200


class UnreachableError(RemoteError):
    """The Hub can't be reached or can't answer now; what is in the cache may do."""


def explain(error: Exception, address: HubAddress, doing: str) -> AdapterHubError:
    """The error for a person. `doing` goes after "while": "adapter_config.json was fetched"."""
    import httpx2
    from huggingface_hub import errors

    said = underlying(error)
    if isinstance(said, errors.HfHubHTTPError):
        return _refused(said, address, doing)
    if isinstance(said, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return UsageError(
            f"HF_ENDPOINT says {hub_host()}, which is no address of a server.",
            hint="It looks like https://huggingface.co; leave it unset for that one.",
        )
    if isinstance(said, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return UnreachableError(
            f"The Hub at {hub_host()} can't be reached.",
            why=_quoted(str(said)) or "Nobody answers.",
            hint="Check the connection, then run the same command again.",
        )
    if isinstance(said, httpx2.TransportError) or type(said) is OSError:
        return UnreachableError(
            f"The connection to the Hub at {hub_host()} broke again and again while {doing}.",
            why="What came was shorter or longer than announced."
            if type(said) is OSError
            else _quoted(str(said)) or "It was silent for too long.",
            hint="Run the same command again: files that came whole are kept in the Hugging Face cache, and it goes on with the rest.",
        )
    return RemoteError(
        f"The server at {hub_host()} doesn't answer as the Hub does, while {doing}.",
        why=f"{type(said).__name__}: {_quoted(str(said))}",
        hint="Is HF_ENDPOINT right? By default it is https://huggingface.co.",
    )


def underlying(error: Exception) -> Exception:
    """The error that huggingface_hub wrapped in "not in the cache either" or "force download failed"."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    cause = error.__cause__
    if isinstance(error, LocalEntryNotFoundError | ValueError) and isinstance(cause, Exception):
        return cause
    return error


def too_many(seconds: int | None) -> RemoteError:
    """The Hub wants us to wait longer than a person would."""
    asked = (
        f"It asks to wait {seconds} seconds"
        if seconds is not None
        else "It doesn't say how long to wait"
    )
    return RemoteError(
        "The Hub has had too many requests from here.",
        why=f"{asked}; nothing was stored.",
        hint="Wait that long, then run the same command again. Who is logged in may ask more often: hf auth login",
    )


def hub_host() -> str:
    """The server's name and port, without what may be secret in HF_ENDPOINT."""
    from huggingface_hub import constants

    return (urlsplit(constants.ENDPOINT).netloc or constants.ENDPOINT).rpartition("@")[2]


def page(address: HubAddress) -> str:
    """The repository's page for people."""
    from huggingface_hub import constants

    place = f"datasets/{address.repo}" if address.kind == "dataset" else address.repo
    return f"{urlsplit(constants.ENDPOINT).scheme}://{hub_host()}/{place}"


def _refused(error: HfHubHTTPError, address: HubAddress, doing: str) -> AdapterHubError:
    from huggingface_hub import errors

    status = error.response.status_code
    quoted = _quoted(error.server_message or "") or "It doesn't say why."
    logged_in = _token() is not None
    if isinstance(error, errors.GatedRepoError):
        return RemoteError(
            f"{address.repo} is gated: its owner decides who may fetch it.",
            why="Your token is not on the list." if logged_in else "You are not logged in.",
            hint=f"Ask for access at {page(address)}, log in (hf auth login), then run the same command again.",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        default = replace(address, revision=None)
        return NotFoundError(
            f"{address.repo} has no revision {address.revision}.",
            why="The Hub knows no such branch, tag or commit of it.",
            hint=f"See {page(address)}/tree/main, or take the default branch: {default.command}",
        )
    if isinstance(error, errors.DisabledRepoError):
        return RemoteError(
            f"The Hub has disabled {address.repo}.", why=quoted, hint=f"See {page(address)}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFoundError(
            f"The Hub shows no repository {address.repo}.",
            why="It doesn't exist, or it is private and "
            + ("your token may not see it." if logged_in else "you are not logged in."),
            hint="Check the name; if it is private:  hf auth login",
        )
    if status == 401:
        return RemoteError(
            "The Hub doesn't accept your token." if logged_in else "The Hub asks who you are.",
            why=quoted,
            hint="Log in again:  hf auth login   (or set HF_TOKEN to a token that is valid)",
        )
    if status == 403:
        return RemoteError(
            f"The Hub doesn't let you read {address.repo}.",
            why=quoted,
            hint="Log in with a token that may read it:  hf auth login",
        )
    if status == 429:
        return too_many(asked_to_wait(error.response.headers))
    if status >= 500 or status == 408:
        return UnreachableError(
            f"The Hub at {hub_host()} can't answer now ({status}), while {doing}.",
            why=quoted,
            hint="Run the same command again later: files that came whole are kept in the Hugging Face cache.",
        )
    return RemoteError(
        f"The Hub at {hub_host()} refuses ({status}), while {doing}.",
        why=quoted,
        hint=f"Does {page(address)} show it?",
    )


def asked_to_wait(headers: Mapping[str, str]) -> int | None:
    """How many seconds a 429 asks to wait: the Hub's own `ratelimit`, else `Retry-After` (seconds or a date)."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return int(text)
    with suppress(ValueError, TypeError):
        return max(0, int((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()))
    return None


def _quoted(text: str) -> str:
    token = _token()
    if token:
        text = text.replace(token, "<token>")
    line = " ".join(text.split())
    return line if len(line) <= _MOST_QUOTED else f"{line[:_MOST_QUOTED]}…"


def _token() -> str | None:
    from huggingface_hub import get_token

    with suppress(Exception):  # no token is no reason to hide what went wrong
        return get_token()
    return None
