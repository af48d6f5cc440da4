"""Signals that come at any moment: they are heard once, at a safe point, and no lock is left held."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from types import FrameType

import pytest

from adapterhub.interrupts import deferred_signals
from adapterhub.parallel import for_each


def test_a_signal_waits_until_it_is_asked_for() -> None:
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt), deferred_signals() as deliver:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        heard.append("went on")
        deliver()
        heard.append("not reached")
    assert heard == ["went on"]


def test_a_signal_that_nobody_asked_for_comes_when_the_block_ends() -> None:
    heard: list[str] = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - where it is raised is the point
        with deferred_signals():
            signal.raise_signal(signal.SIGINT)
            heard.append("in the block")
        heard.append("not reached")
    assert heard == ["in the block"]


def test_handlers_are_back_afterwards_and_a_block_in_a_block_works() -> None:
    before = signal.getsignal(signal.SIGINT)
    with deferred_signals(), deferred_signals() as deliver:
        deliver()
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_the_caller_is_the_one_that_is_called() -> None:
    heard: list[int] = []

    def own(number: int, _: FrameType | None) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGTERM, own)
    try:
        with deferred_signals():
            signal.raise_signal(signal.SIGTERM)
            assert heard == []
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_while_handlers_are_put_back_loses_none_of_them() -> None:
    """The first handler that is back raises before the second one is."""
    heard: list[int] = []

    def own(number: int, _: FrameType | None) -> None:
        heard.append(number)

    real, before = signal.signal, signal.signal(signal.SIGTERM, own)

    def interrupted(number: int, handler: object) -> object:
        if handler is own:
            raise KeyboardInterrupt
        return real(number, handler)  # type: ignore[arg-type]

    try:
        with (
            pytest.MonkeyPatch.context() as patch,
            pytest.raises(KeyboardInterrupt),
            deferred_signals(),
        ):
            patch.setattr(signal, "signal", interrupted)
        signal.raise_signal(signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_error_of_the_block_is_not_hidden_by_a_signal() -> None:
    with pytest.raises(ValueError, match="its own"), deferred_signals():  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        raise ValueError("its own")


def test_another_thread_leaves_signals_alone() -> None:
    found = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with deferred_signals() as deliver:
            deliver()
            found.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def test_waiting_work_hears_a_signal_soon() -> None:
    def work(_: int) -> None:
        time.sleep(0.1)

    sender = threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT))
    sender.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        for_each(range(100), work, workers=1, done=lambda: None)
    sender.join()
    assert time.monotonic() - begun < 5, "of 10 seconds of work"


HAMMER = """
import faulthandler, random, signal, sys, time
from adapterhub.parallel import for_each

faulthandler.dump_traceback_later(100, exit=True)  # a lock left held would wait for ever
signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
rng = random.Random(int(sys.argv[1]))
ended = {"whole": 0, "stopped": 0}
for _ in range(3000):
    try:
        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 2e-3))
        assert for_each(range(40), lambda i: i * i, workers=1, done=lambda: None) == [i * i for i in range(40)]
        ended["whole"] += 1
        while True:
            time.sleep(1e-3)
    except KeyboardInterrupt:
        ended["stopped"] += 1
print(ended["whole"], ended["stopped"])
"""


@pytest.mark.slow
def test_signals_at_3000_random_moments_leave_no_lock_behind() -> None:
    seed = random.randrange(2**32)
    done = subprocess.run(
        [sys.executable, "-c", HAMMER, str(seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    _, stopped = map(int, done.stdout.split())
    assert stopped == 3000, "each was heard once"
    assert "RuntimeError" not in done.stderr
