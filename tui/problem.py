"""An error as the screen says it: the command line's words, never a traceback."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.errors import AdapterHubError, FormatError, StoreDamagedError


@dataclass(frozen=True)
class Problem:
    """An error in words, as the command line says them: what, why, and what to type next."""

    what: str
    why: str = ""
    hint: str = ""
    damage: bool = False
    """The store's bytes are wrong, rather than unknown to this version or out of reach."""

    @classmethod
    def of(cls, error: Exception) -> Problem:
        """The words for `error`; anything that isn't ours is named for what it is, without a traceback."""
        if isinstance(error, AdapterHubError):
            return cls(
                error.what,
                error.why,
                error.hint,
                isinstance(error, StoreDamagedError | FormatError),
            )
        if isinstance(error, PermissionError):
            return cls(f"Not allowed: {error.filename}.", str(error.strerror))
        if isinstance(error, OSError):
            return cls(
                f"The store can't be read: {error.strerror or error}.", str(error.filename or "")
            )
        return cls(
            f"Something went wrong inside adapterhub: {type(error).__name__}: {error}",
            hint="Please report that, with what `adapterhub ls --debug` says.",
        )

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, self.hint) if part)
