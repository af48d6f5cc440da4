"""A command of the product in a forked child, with or without a fault.

The parent has imported the product, so that a run costs milliseconds. It must have no threads.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pickle
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import adapterhub
from adapterhub.cli.main import main
from tests.crash.events import Account, Fault, Watch
from tests.crash.power import State, read_state, write_state

HOME = "home"
SCRATCH = (f"{HOME}/runs",)
"""What a run of the product keeps for itself: nothing that a name leads to lies there."""
TRACED = tuple(
    str(path)
    for package in adapterhub.__path__
    for pattern in ("store/*.py", "fsio.py", "merge/run.py")
    for path in Path(package).glob(pattern)
)
_CRASHED = 70


@dataclass(frozen=True)
class Outcome:
    """How a run ended: the exit code (negative: the signal), what it printed, and its account of itself."""

    code: int
    out: str
    said: str
    account: Account


@dataclass(frozen=True)
class Place:
    """A folder to run commands in: the disk that may lose its power, and what lies beside it."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def home(self) -> Path:
        return self.disk / HOME

    @property
    def cache(self) -> Path:
        """What the product keeps beside its store. It survives: it may know more than the store does after a crash."""
        return self.folder / "cache"

    def put(self, state: State) -> None:
        """Makes the disk hold exactly this."""
        shutil.rmtree(self.disk, ignore_errors=True)
        self.disk.mkdir(parents=True)
        write_state(self.disk, state)

    def forget(self) -> None:
        """Empties the cache."""
        shutil.rmtree(self.cache, ignore_errors=True)

    def get(self) -> State:
        """What the disk holds."""
        return read_state(self.disk, SCRATCH)

    def run(
        self,
        words: Sequence[str],
        *,
        fault: Fault | None = None,
        lines: bool = False,
        spoil: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Runs a command line.

        Args:
            lines: counts the traced lines too, which takes longer.
            spoil: called in the child right before, to make the product worse.
        """

        def work() -> int:
            os.environ.update(ADAPTERHUB_HOME=str(self.home), ADAPTERHUB_CACHE=str(self.cache))
            sys.argv = ["adapterhub", *words]
            traced = TRACED if lines or (fault is not None and fault.lines) else ()
            watch = Watch(self.disk, scratch=SCRATCH, out=3, fault=fault, traced=traced)
            watch.start()
            spoil()
            try:
                main()
            except SystemExit as end:
                return end.code if isinstance(end.code, int) else 1
            finally:
                sys.settrace(None)
                watch.finish()
            return 0

        code = self._in_child(work)
        account = (self.folder / "account").read_bytes()
        return Outcome(
            code,
            (self.folder / "out").read_text(),
            (self.folder / "said").read_text(),
            pickle.loads(account) if account else Account(0, 0, [], ""),
        )

    def preload(self, words: Sequence[str]) -> None:
        """Imports what the command imports on its way, so that no later child has to."""

        def work() -> int:
            os.environ.update(ADAPTERHUB_HOME=str(self.home), ADAPTERHUB_CACHE=str(self.cache))
            sys.argv = ["adapterhub", *words]
            with contextlib.suppress(SystemExit):
                main()
            os.write(3, "\n".join(sys.modules).encode())
            return 0

        self._in_child(work)
        for name in (self.folder / "account").read_text().split():
            if name not in sys.modules and importlib.util.find_spec(name.partition(".")[0]):
                with contextlib.suppress(ImportError):  # made by another module as it ran
                    importlib.import_module(name)

    def apart(self, work: Callable[[], None]) -> None:
        """Runs `work` in a child, so that what it imports isn't carried by every later one."""

        def quietly() -> int:
            work()
            return 0

        if self._in_child(quietly) != 0:
            raise RuntimeError((self.folder / "said").read_text())

    def _in_child(self, work: Callable[[], int]) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        child = os.fork()
        if child == 0:
            status = _CRASHED
            with contextlib.suppress(BaseException):
                for number, name in ((1, "out"), (2, "said"), (3, "account")):
                    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
                    opened = os.open(self.folder / name, flags, 0o600)
                    if opened != number:
                        os.dup2(opened, number)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                try:
                    status = work()
                except BaseException:  # noqa: BLE001 - a child ends here, whatever it met
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
            os._exit(status)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
