"""Runs commands in forks of a process that has imported what they import, which is most of their time.

`python warm.py` takes one job a line: {"arguments", "folder", "environment", "out", "err"}, the last two files to write to;
it answers with the exit code.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main() -> None:
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(job)
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _run(job: dict[str, Any]) -> None:
    """As the installed program, and never back."""
    from adapterhub.cli.main import main

    os.environ.clear()
    os.environ.update(job["environment"])
    os.chdir(job["folder"])
    for number, name in ((1, job["out"]), (2, job["err"])):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["adapterhub", *job["arguments"]]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:  # noqa: BLE001 - told as the interpreter would
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
