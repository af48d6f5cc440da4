"""Every way adapterhub can fail, on one page.

An error here is a sentence for a person: *what* happened, *why*, and what to type next (the *hint*).
Anything else that reaches the command line is a bug and is reported as one.

    AdapterHubError                     1
    ├── UsageError                      2   the command or recipe can't be taken as it is
    ├── NotFoundError                   4   a name, digest, base or file that isn't there
    ├── ConflictError                   1   a name or folder that is taken already
    ├── GateError                       1   a name that asks for more than is known of the adapter
    ├── FormatError                     1   a file that isn't what it claims to be
    ├── VerificationError               1   what was written isn't what was meant; it is not kept
    ├── UnsupportedError                1   a sound adapter of a kind this operation can't honour
    ├── IncompatibleError               5   an adapter and a base (or two adapters) that don't belong together
    ├── StoreDamagedError               6   the store doesn't hold what it recorded
    ├── StoreLockedError                7   somebody else is changing the store
    ├── OutOfSpaceError                 1   no space left; the store is as it was
    ├── RemoteError                     1   a server elsewhere is out of reach, refuses, or sends something else
    ├── MissingDependencyError          1   an optional part isn't installed
    └── ExternalToolError               1   a program or server we started failed
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process returns; scripts may rely on these numbers."""

    OK = 0
    """Everything asked for was done."""
    FAILED = 1
    """It could not be done; nothing was changed."""
    USAGE = 2
    """The command line or recipe is wrong; nothing was tried."""
    PARTLY = 3
    """Some of the things asked for were done; the message says which were not."""
    NOT_FOUND = 4
    """A name, digest or base that isn't known here."""
    INCOMPATIBLE = 5
    """Adapter and base, or two adapters, are known not to belong together."""
    DAMAGED = 6
    """The store's bytes are not those it recorded."""
    LOCKED = 7
    """Another process holds the store's lock."""
    INTERRUPTED = 130
    """Ctrl-C or SIGTERM; the store is whole."""


class AdapterHubError(Exception):
    """Base of every error a user can meet.

    Args:
        what: one sentence that says what happened, naming the thing it happened to.
        why: the reason, with both sides of a contradiction.
        hint: the next command to type or the change to make.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, what: str, *, why: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.hint = hint

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, self.hint) if part)


class UsageError(AdapterHubError):
    """A flag, recipe key or value that can't be accepted; the message names the accepted range."""

    exit_code = ExitCode.USAGE


class NotFoundError(AdapterHubError):
    """A name, digest, base or file that isn't there."""

    exit_code = ExitCode.NOT_FOUND


class ConflictError(AdapterHubError):
    """A name or folder is taken, and replacing it wasn't asked for."""


class GateError(AdapterHubError):
    """A name whose gate in config.toml asks for evaluations that the adapter hasn't got, or that went otherwise."""


class FormatError(AdapterHubError):
    """A file that is broken, hostile, or not of the format it claims."""


class VerificationError(AdapterHubError):
    """A result that was computed a second time and came out otherwise. It doesn't appear under its name."""


class UnsupportedError(AdapterHubError):
    """A sound adapter whose kind or variant this operation can't honour; it is named, never dropped."""


class IncompatibleError(AdapterHubError):
    """Things that are *known* not to belong together. Unknown only warns."""

    exit_code = ExitCode.INCOMPATIBLE


class StoreDamagedError(AdapterHubError):
    """A blob, manifest or ref in the store isn't what its digest says."""

    exit_code = ExitCode.DAMAGED


class StoreLockedError(AdapterHubError):
    """Another process is changing the store and did not finish in time."""

    exit_code = ExitCode.LOCKED


class OutOfSpaceError(AdapterHubError):
    """The disk is full. Temporary files are removed, so the store is as it was."""


class RemoteError(AdapterHubError):
    """The Hub (or another store elsewhere) is out of reach, refuses, or doesn't answer as it should."""


class MissingDependencyError(AdapterHubError):
    """A package of an optional extra isn't installed; the hint is the install command."""


class ExternalToolError(AdapterHubError):
    """A program that adapterhub started (vLLM, say) is missing, failed or did not become ready."""
