"""Whatever bytes a reader gets, it takes them or says what is wrong with them; and it neither hangs nor fills the memory.

`make fuzz` goes on where these few hundred inputs end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from adapterhub.errors import AdapterHubError
from tests.fuzz.bombs import BOMBS, MEMORY
from tests.fuzz.mutating import inputs
from tests.fuzz.seeds import NAMES
from tests.fuzz.targets import Readers, Target

HANG_SECONDS = 60
"""Nothing here takes a second. This is no measurement: it makes a hang a failure with a stack."""


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return Readers(tmp_path_factory.mktemp("fuzz")).targets()


@contextmanager
def no_hang() -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise AssertionError(f"it took more than {HANG_SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(target: Target, data: bytes) -> None:
    with no_hang(), suppress(AdapterHubError):
        target.read(data)


@pytest.mark.parametrize("name", NAMES)
def test_sound_bytes_are_taken(name: str, targets: dict[str, Target]) -> None:
    """The first seed is sound, so that what is done to it is more than noise."""
    targets[name].read(targets[name].seeds[0])


@pytest.mark.parametrize("name", NAMES)
def test_known_bad_bytes_are_refused_in_words(name: str, targets: dict[str, Target]) -> None:
    for seed in targets[name].seeds:
        read(targets[name], seed)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_bytes_come_nothing_but_our_own_errors_comes_out(
    name: str, targets: dict[str, Target]
) -> None:
    longer = os.environ.get("ADAPTERHUB_FUZZ_EXAMPLES")

    @settings(
        max_examples=int(longer or 60),
        derandomize=longer is None,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    @given(inputs(targets[name]))
    def some(data: bytes) -> None:
        read(targets[name], data)

    some()


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_costs_little_memory_whatever_it_announces(bomb: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.bombs", bomb, tmp_path],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "ADAPTERHUB_CACHE": str(tmp_path / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    outcome, peak = done.stdout.split()
    assert outcome in ("taken", "refused")
    assert int(peak) < MEMORY
