"""A run that another process made for this one, and locked before it started it.

The variable ADAPTERHUB_RUN names its folder and the descriptor that holds the lock. Whatever command this process was
started for, its outcome is recorded in that run: also a refusal before any work, and a call that can't be understood.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterHubError, ExitCode
from adapterhub.process import HERE
from adapterhub.runs import Outcome, Run, failure

VARIABLE = "ADAPTERHUB_RUN"
RESULT = "result.json"
"""What the command would have printed as JSON."""
_LONGEST = 500
_WHY: Mapping[int, str] = {
    ExitCode.PARTLY: "Only a part of it was done: the result says which.",
    ExitCode.DAMAGED: "The store doesn't hold what it recorded: the result says where.",
}
_OUTCOMES: Mapping[int, Outcome] = {ExitCode.OK: "done", ExitCode.INTERRUPTED: "interrupted"}


class Given:
    """The run that this process was given, as the command line tells it what happens."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.stopped = False
        self._error: AdapterHubError | None = None
        self._result: dict[str, Any] = {}

    def fail(self, error: AdapterHubError) -> None:
        """An error that was told; should the command end badly, the last one is why."""
        self._error = error

    def tell(self, value: object, text: str) -> None:
        """What the command has to say, and the same as JSON."""
        if isinstance(value, Mapping):
            self._result = {str(key): item for key, item in value.items() if _is_short(item)}
        with suppress(OSError):  # what was done is done
            (self.run.path / RESULT).write_text(text + "\n", encoding="utf-8")

    def finish(self, code: int) -> None:
        """Records the outcome. The exit code matters more than a disk that can't take it."""
        if self.stopped and code:
            code = ExitCode.INTERRUPTED
        fields: dict[str, object] = {"result": self._result} if self._result else {}
        if code:
            words = " ".join(("adapterhub", *sys.argv[1:2]))
            ended = AdapterHubError(f"{words} ended with exit code {code}.", why=_WHY.get(code, ""))
            fields.update(failure(self._error or ended), exit_code=code)
        with suppress(OSError):
            self.run.finish(_OUTCOMES.get(code, "failed"), **fields)

    def stop(self, number: int, frame: object) -> None:
        """SIGTERM, until the command has a handler of its own."""
        self.stopped = True
        raise KeyboardInterrupt


@contextmanager
def taken_over() -> Iterator[Given | None]:
    """The run that this process was given, while its command runs; None where it was given none.

    Raises AdapterHubError where its folder is gone: whoever gave it has given up.
    """
    run = _accept(os.environ.pop(VARIABLE, ""))
    if run is None:
        yield None
        return
    given = Given(run)
    HERE.given = run
    code: object = int(ExitCode.FAILED)
    try:
        signal.signal(signal.SIGTERM, given.stop)
        # It was held back since before this process was started.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        with HERE.working_on(run):
            yield given
        code = 0
    except SystemExit as ended:
        code = 0 if ended.code is None else ended.code
        raise
    except KeyboardInterrupt:  # before the command took it upon itself to say so
        code = int(ExitCode.INTERRUPTED)
        given.fail(AdapterHubError("Interrupted.", why="Nothing had begun."))
        sys.exit(code)
    finally:
        HERE.given = None
        given.finish(code if isinstance(code, int) else int(ExitCode.FAILED))


def _accept(said: str) -> Run | None:
    """The run, where the descriptor is really its folder's: else the variable is somebody else's, or of old."""
    folder, _, number = said.rpartition(":")
    try:
        descriptor = int(number)
        if Path(folder).is_absolute() and not Path(folder).exists():
            raise AdapterHubError(
                "The run that this command was started for is gone.",
                why=f"There is no {folder}.",
                hint=f"Start it again. Where you set {VARIABLE} yourself: unset {VARIABLE}",
            )
        there = Path(folder).stat()
        held = os.fstat(descriptor)
        if (held.st_dev, held.st_ino) != (there.st_dev, there.st_ino):
            return None
        os.set_inheritable(descriptor, False)  # what this process starts doesn't work on the run
    except (OSError, ValueError, OverflowError):
        return None
    return Run(Path(folder).name, Path(folder))


def _is_short(item: object) -> bool:
    """Whether an event should hold it: numbers, and strings that aren't texts."""
    return isinstance(item, str | int | float | None) and len(json.dumps(item)) <= _LONGEST
