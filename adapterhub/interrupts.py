"""Ctrl-C and SIGTERM at a moment of the program's choosing.

Python runs a signal's handler between any two bytecodes of the main thread. One that raises there can leave a lock of
`threading` held or released twice, and then a pool of threads never ends; or it is raised inside a weak reference's
callback, where Python drops it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Keeps the handlers of SIGINT and SIGTERM waiting until the function that it gives is called, or the block ends.

    Handlers that aren't Python's own (the signal is ignored, or ends the process) stay as they are. Outside the main
    thread it does nothing: signals don't arrive there.
    """
    came: list[int] = []
    before: dict[int, Any] = {}
    over = False

    def keep(number: int, frame: FrameType | None) -> None:
        if over:  # another signal came while the handlers were put back
            before[number](number, frame)
        else:
            came.append(number)

    def deliver() -> None:
        while came:
            number = came.pop(0)
            before[number](number, None)

    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, keep)
    try:
        yield deliver
    finally:
        over = True
        for number, handler in before.items():
            signal.signal(number, handler)
    deliver()
