"""Asking the Hub what a repository holds at one commit, and fetching files of that commit into the Hugging Face cache.

huggingface_hub does the work. What it leaves open is closed here: it waits as long as a busy Hub asks it to, so its
answers are watched and the waiting is bounded; and it gives up at once on some faults that pass by themselves.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import ERROR
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from adapterhub.canonical import DIGEST_PREFIX
from adapterhub.errors import RemoteError
from adapterhub.fsio import CHUNK, disk_errors
from adapterhub.remote.address import HubAddress
from adapterhub.remote.refusals import asked_to_wait, explain, hub_host, too_many

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

GIT_PREFIX = "git-sha1:"
"""Small files are named as git names them: the sha1 of `blob <size>\\0` and the bytes."""
PATIENCE_SECONDS = 60
"""How long a busy Hub (429) is waited for, in all."""

_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PAUSES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: the paths of its files, and their digests as the Hub states them (None: it doesn't)."""

    commit: str
    files: Mapping[str, str | None]


@dataclass
class Hub:
    """The Hub at $HF_ENDPOINT, asked about one address. `note` is told when it makes us wait."""

    address: HubAddress
    note: Callable[[str], None]
    _patience: _Patience = field(init=False)

    def __post_init__(self) -> None:
        self._patience = _Patience(self.note)

    def listing(self) -> Listing:
        """What the address's revision holds now. Raises NotFoundError, RemoteError; UnreachableError where trying again may do."""
        import httpx2
        from huggingface_hub import HfApi, constants

        api = HfApi(library_name="adapterhub")
        ask = api.dataset_info if self.address.kind == "dataset" else api.model_info
        info = self._steadily(
            lambda: ask(
                self.address.repo,
                revision=self.address.revision,
                files_metadata=True,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
            ),
            f"{self.address.repo} was looked up",
            (httpx2.ConnectError,),  # nobody there: what is in the cache may do
        )
        if info.sha is None or info.siblings is None or not is_commit(info.sha):
            raise RemoteError(
                f"The server at {hub_host()} doesn't answer as the Hub does.",
                why="It names no commit, or no files.",
                hint="Is HF_ENDPOINT right? By default it is https://huggingface.co.",
            )
        return Listing(
            info.sha, {str(sibling.rfilename): _stated(sibling) for sibling in info.siblings}
        )

    def fetch(self, commit: str, path: str, *, again: bool = False) -> Path:
        """Where the file lies in the cache, fetched if need be; `again` replaces what is there."""
        from huggingface_hub import constants, hf_hub_download

        def download() -> Path:
            return Path(
                hf_hub_download(
                    self.address.repo,
                    path,
                    repo_type=self.address.kind,
                    revision=commit,
                    force_download=again,
                    library_name="adapterhub",
                    tqdm_class=_bar_called(path),
                )
            )

        with disk_errors(Path(constants.HF_HUB_CACHE)):
            return self._steadily(download, f"{path} was fetched", _tried_by_library())

    def _steadily(self, call: Callable[[], T], doing: str, final: tuple[type[Exception], ...]) -> T:
        """The call's result, tried a few times where the fault may pass and isn't one of `final`."""
        import httpx2

        for pause in (*_PAUSES, None):
            try:
                with self._patience.watching():
                    return call()
            except (
                httpx2.HTTPError,
                httpx2.InvalidURL,
                OSError,
                ValueError,
                TypeError,
                KeyError,
                RuntimeError,
            ) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # this machine's disk, not the Hub
                if pause is None or isinstance(error, final) or not _may_pass(error):
                    raise explain(error, self.address, doing) from None
                time.sleep(max(pause, self._patience.asked))
        raise AssertionError("the last round returns or raises")


class _Patience:
    """Watches the Hub's answers: how long it makes us wait. Raises when that would be more than PATIENCE_SECONDS in all."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._waited = 0.0
        self._since: float | None = None
        self.asked = 0.0
        """Seconds that the last answer asked to wait; 0 where it didn't."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hears the answers to huggingface_hub's requests while the block runs; its own warnings about them are kept quiet."""
        from huggingface_hub import constants, get_session
        from huggingface_hub.utils import logging

        hooks = get_session().event_hooks["response"]
        verbosity = logging.get_verbosity()
        self.asked = 0.0
        hooks.append(self._heard)
        if not constants.HF_DEBUG:
            logging.set_verbosity(ERROR)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            hooks.remove(self._heard)

    def _heard(self, response: httpx2.Response) -> None:
        now = time.monotonic()
        if self._since is not None:
            self._waited += now - self._since
        self._since, self.asked = None, 0.0
        if response.status_code != 429:
            return
        asked = asked_to_wait(response.headers)
        if self._waited + (asked or 0) > PATIENCE_SECONDS:
            raise too_many(asked)
        if asked:
            self._note(f"the Hub asks to wait {asked} seconds")
        self._since, self.asked = now, float(asked or 0)


def git_id(path: Path, size: int) -> str:
    """How git names the bytes of a file."""
    sha = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            sha.update(chunk)
    return GIT_PREFIX + sha.hexdigest()


def is_commit(text: Any) -> bool:
    """Whether `text` is a whole commit id, which never moves."""
    return isinstance(text, str) and bool(_COMMIT.match(text))


def digest_named(name: Any) -> str | None:
    """The digest that a name in the cache, or an id from the Hub, stands for; None where it is none."""
    if isinstance(name, str) and _SHA256.match(name):
        return DIGEST_PREFIX + name
    return GIT_PREFIX + name if is_commit(name) else None


def _stated(sibling: Any) -> str | None:
    """The digest of a file as the Hub states it: of the bytes for LFS files, git's for the others."""
    return digest_named(sibling.lfs.sha256 if sibling.lfs is not None else sibling.blob_id)


def _bar_called(path: str) -> Any:
    """huggingface_hub's progress bar, for terminals only, under the file's path: it would show the end of a signed address."""
    from huggingface_hub.utils.tqdm import tqdm

    shown = path if path.isprintable() else repr(path)

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            if not str(settings.get("desc")).startswith(shown[:40]):
                settings["desc"] = shown
            super().__init__(*args, **settings)  # type: ignore[no-untyped-call]

    return Bar


def _may_pass(error: Exception) -> bool:
    """Whether the same request may work a little later."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    if isinstance(error, httpx2.ProxyError | httpx2.UnsupportedProtocol):
        return False
    return isinstance(error, httpx2.TransportError) or type(error) is OSError


def _tried_by_library() -> tuple[type[Exception], ...]:
    """What huggingface_hub has tried again a few times itself before a download raises it."""
    import httpx2

    return (httpx2.ConnectError, httpx2.TimeoutException, httpx2.RemoteProtocolError)
