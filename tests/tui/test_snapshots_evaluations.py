"""How evaluations and gates look, as SVG, in two sizes, dark and light.

After an intended change: pytest tests/tui/test_snapshots_evaluations.py --snapshot-update, then look at the pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from textual.pilot import Pilot

from adapterhub.store import Store
from adapterhub.tui.screens.evaluations import EvaluationsScreen
from adapterhub.tui.screens.gate import GateScreen
from tests.support.evaluations import GATES, evaluate_sample
from tests.support.screen import USUAL, WIDE, open_app, settled, until

LOOKS = [
    pytest.param((size, theme), id=f"{size[0]}x{size[1]}-{theme.removeprefix('textual-')}")
    for size in (USUAL, WIDE)
    for theme in ("textual-dark", "textual-light")
]
Look = tuple[tuple[int, int], str]
Looks = Callable[..., bool]


@pytest.fixture
def store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The sample store with evaluations and gates, all of it long ago."""
    stamp = "2026-01-02T12:00:00+00:00"
    with monkeypatch.context() as patch:
        patch.setattr("adapterhub.store.attestations.now", lambda *_: stamp)
        evaluate_sample(store)
    store.layout.settings.write_text(GATES)
    return Store.open(store.home)


@pytest.fixture
def looks(snap_compare: Callable[..., bool]) -> Looks:
    """Whether the application looks as it did, after `keys`."""

    def compare(store: Store, look: Look, *keys: str, asking: bool = False) -> bool:
        async def press(pilot: Pilot[Any]) -> None:
            await settled(pilot)
            for key in keys:
                await pilot.press(key)
                if not asking:  # else a worker waits for an answer
                    await _drawn(pilot)
            if asking:
                await until(lambda: isinstance(pilot.app.screen, GateScreen), pilot)
            await pilot.pause()

        app = open_app(store)
        app.theme = look[1]
        return snap_compare(app, terminal_size=look[0], run_before=press)

    return compare


async def _drawn(pilot: Pilot[Any]) -> None:
    """Waits until the screen that a key led to knows what it shows."""
    screen = pilot.app.screen
    if isinstance(screen, EvaluationsScreen):
        await until(lambda: screen.state.seen is not None, pilot)
    await settled(pilot)


@pytest.mark.parametrize("look", LOOKS)
def test_the_table(store: Store, looks: Looks, look: Look) -> None:
    assert looks(store, look, "A", "v", "down", "right", "s")


@pytest.mark.parametrize("look", LOOKS[1:3])
def test_one_with_its_intervals_and_a_suite_of_another_day(
    store: Store, looks: Looks, look: Look
) -> None:
    assert looks(store, look, "G", "k", "v", "left_square_bracket")


def test_nothing_is_known(store: Store, looks: Looks) -> None:
    assert looks(store, (USUAL, "textual-dark"), "G", "v")


@pytest.mark.parametrize("look", LOOKS[::3])
def test_a_gate_in_the_details(store: Store, looks: Looks, look: Look) -> None:
    assert looks(store, look, "j", "enter")


@pytest.mark.parametrize("look", LOOKS)
def test_the_question_at_a_gate_that_is_shut(store: Store, looks: Looks, look: Look) -> None:
    assert looks(store, look, "j", "T", *"prod", "enter", asking=True)


def test_the_question_at_several_gates(store: Store, looks: Looks) -> None:
    assert looks(store, (USUAL, "textual-dark"), "A", "T", *"prod", "enter", asking=True)
