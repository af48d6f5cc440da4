"""This process: what was typed to start it, and the run it works on. Every command loads this room, so it is small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adapterhub.runs import Run


class Process:
    """There is one: `HERE`."""

    def __init__(self) -> None:
        self.words: tuple[str, ...] = ()
        """The words after `adapterhub`; none where it isn't the command line."""
        self.given: Run | None = None
        """The run that another process made for this one, and locked (`adapterhub.handover`)."""
        self.current: Run | None = None
        """The run that progress is told to."""

    @contextmanager
    def working_on(self, run: Run) -> Iterator[Run]:
        """`run` is the current one while the block runs."""
        before, self.current = self.current, run
        try:
            yield run
        finally:
            self.current = before


HERE = Process()
