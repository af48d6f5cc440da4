"""One process of a training in several: `accelerate launch --config_file FILE -m adapterhub.trainer.worker RECIPE ...`.

It takes what `adapterhub train` takes. The first process prints; the others say nothing, and none outlives the launcher.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from adapterhub.trainer.ranks import FOLDER, announce, leave_word, pid_of

_LOOK_EVERY = 0.5
"""Seconds between looks at whether the launcher still lives."""
_GRACE = 30.0
"""Seconds for the first process to end its step and save once the launcher is gone."""


def main() -> None:
    """Runs `adapterhub train` with this process's arguments, as one of those that the launcher started."""
    index = int(os.environ.get("RANK", "0"))
    folder = Path(os.environ[FOLDER]) if FOLDER in os.environ else None
    if folder is not None:
        announce(folder, index)
    if index > 0:
        _be_quiet(folder, index)
    threading.Thread(target=_watch, args=(os.getppid(), folder, index), daemon=True).start()
    code = _train()
    if folder is not None:
        leave_word(folder, index, code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is on disk. On the interpreter's own way out torch's threads have aborted a process now and then, and the
    # launcher takes that for a failure and stops the first one while it still fills the store.
    os._exit(code)


def _train() -> int:
    from adapterhub.cli.main import main as command_line

    sys.argv = ["adapterhub", "train", *sys.argv[1:]]
    try:
        command_line()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except KeyboardInterrupt:  # before the command has begun
        return 130
    return 0


def _be_quiet(folder: Path | None, index: int) -> None:
    """Prints go nowhere, errors to the launcher's folder where there is one; the first process decides when to stop."""
    _drop(1)
    if folder is not None:
        os.dup2(os.open(folder / f"{index}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (
        folder is None
    ):  # torchrun's own way to end all of them; with ours, SIGTERM means that one has failed
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _watch(launcher: int, folder: Path | None, index: int) -> None:
    """Ends this process soon after the launcher is gone (the first one after its step), or the first process is."""
    deadline = None
    while True:
        time.sleep(_LOOK_EVERY)
        if index > 0 and folder is not None and _gone(pid_of(folder, 0)):
            os._exit(1)
        if deadline is None and os.getppid() != launcher:
            deadline = time.monotonic() + _GRACE
            _drop(1, 2)  # whoever read them may be gone as well
            if index == 0:
                os.kill(os.getpid(), signal.SIGINT)
        if deadline is not None and time.monotonic() > deadline:
            os._exit(1)


def _drop(*outputs: int) -> None:
    """What is written to these goes nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in outputs:
        os.dup2(nowhere, output)


def _gone(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


if __name__ == "__main__":
    main()
