"""Gates on the screen: how names stand, what is asked before one is given, and what going without them leaves behind."""

from __future__ import annotations

from typing import Any

import pytest
from textual.widgets import Static

from adapterhub.names import parse_name
from adapterhub.store import Store, gating
from adapterhub.tui.screens.gate import GateScreen
from adapterhub.tui.screens.library import LibraryScreen
from adapterhub.tui.screens.results import ResultsScreen
from tests.support.evaluations import GATES, evaluate_sample
from tests.support.screen import USUAL, WIDE, detail, open_app, settled, until

CURRENT = '\n[[gates.demands]]\nsuite = "forgetting"\nthan = "current"\nverdict = "not worse"\n'


@pytest.fixture
def gated(store: Store) -> Store:
    return gate(store, GATES)


def gate(store: Store, text: str) -> Store:
    """The sample store with evaluations, and with these gates."""
    evaluate_sample(store)
    store.layout.settings.write_text(text)
    return Store.open(store.home)


def told(app: Any) -> str:
    """The words of the dialog, in one line."""
    return " ".join(" ".join(str(one.render()) for one in app.screen.query(Static)).split())


async def go_to(pilot: Any, name: str) -> None:
    pilot.app.screen.select(name)
    await settled(pilot)


async def ask_for(pilot: Any, tag: str) -> None:
    """Types a tag for the adapter under the cursor, and comes before the gate."""
    await pilot.press("T")
    await until(lambda: pilot.app.screen.is_modal, pilot)
    await pilot.press(*tag, "enter")
    await until(lambda: isinstance(pilot.app.screen, GateScreen), pilot)
    await pilot.pause()


def test_the_api_tells_open_and_shut_for_every_gated_tag(gated: Store) -> None:
    names = [parse_name("legal/terms"), parse_name("legal/terms:v2"), parse_name("tools/calls")]
    (one,) = gating.standings(gated, gated.resolve("legal/terms").digest, names)
    assert str(one.name) == "legal/terms:prod"
    assert (one.open, one.met, len(one.findings), one.now) == (False, 0, 2, None)
    (two,) = gating.standings(gated, gated.resolve("desk/both").digest, [parse_name("desk/both")])
    assert (two.open, two.met) == (True, 2)
    assert gating.standing(gated, parse_name("tools/calls:prod"), two.now or "") is None


def test_what_a_name_means_already_is_held_against_what_it_meant_before(store: Store) -> None:
    gated = gate(store, GATES + CURRENT)
    prod, tone = parse_name("support/tone:prod"), gated.resolve("support/tone")
    one = gating.standing(gated, prod, tone.digest)
    assert one is not None
    assert one.open
    assert one.findings[-1].found == "nothing to compare with yet"
    gated.tag(gated.resolve("desk/both"), prod, move=True, without_gates=True)
    both = gating.standing(gated, prod, gated.resolve("desk/both").digest)
    assert both is not None
    assert both.now == gated.resolve("desk/both").digest
    assert "not evaluated beside" in both.findings[-1].found, "beside what it meant before"


async def test_the_details_tell_each_gate_with_its_demands(gated: Store) -> None:
    app = open_app(gated)
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        words = " ".join(detail(app).split())
        assert "Gates prod gate open: 2 of 2 demands met; nothing has that name" in words
        await go_to(pilot, "legal/terms")
        words = " ".join(detail(app).split())
        assert "prod gate shut: 0 of 2 demands met" in words
        assert "✗ forgetting: passed at least 0.6: passed 0.52" in words
        await go_to(pilot, "support/tone:prod")
        assert "it means this adapter" in " ".join(detail(app).split())
        await go_to(pilot, "tools/calls")
        assert "Gates" not in detail(app)


async def test_a_gate_that_cannot_be_read_hides_nothing_else(gated: Store) -> None:
    text = '[[gates]]\n[[gates.demands]]\nsuite = "gone.yaml"\n'
    gated.layout.settings.write_text(text)
    digest = gated.resolve("desk/both").digest
    gated.attest(digest, "eval", {"suite": "gone.yaml", "result": {"perplexity": 1.0}})
    app = open_app(Store.open(gated.home))
    async with app.run_test(size=WIDE) as pilot:
        await settled(pilot)
        words = " ".join(detail(app).split())
        assert "There is no suite" in words
        assert "energy kept" in words


async def test_an_open_gate_is_shown_before_the_name_is_given(gated: Store) -> None:
    app = open_app(gated)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await ask_for(pilot, "prod")
        assert "desk/both:prod for desk/both: the gate is open: 2 of 2 demands met" in told(app)
        assert "without" not in told(app).lower()
        await pilot.press("W")
        await pilot.pause()
        assert isinstance(app.screen, GateScreen), "there is nothing to go without"
        await pilot.press("y")
        await until(lambda: isinstance(app.screen, LibraryScreen), pilot)
        await until(lambda: detail(app).startswith("desk/both:prod"), pilot)
    assert gated.resolve("desk/both:prod").digest == gated.resolve("desk/both").digest


async def test_a_shut_gate_gives_nothing_unless_that_is_chosen(gated: Store) -> None:
    app = open_app(gated)
    legal = gated.resolve("legal/terms").digest
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await go_to(pilot, "legal/terms")
        before = len(gated.attestations(legal))
        for keys in (("n",), ("escape",), ("enter",), ("y", "n")):
            await ask_for(pilot, "prod")
            words = told(app)
            assert "the gate is shut: 0 of 2 demands met" in words
            assert "Left alone, nothing is called legal/terms:prod." in words
            await pilot.press(*keys)
            await until(lambda: isinstance(app.screen, LibraryScreen), pilot)
            await settled(pilot)
            assert gated.refs.read(parse_name("legal/terms:prod")) is None
        assert len(gated.attestations(legal)) == before


async def test_going_without_gates_is_a_choice_of_its_own_and_recorded(gated: Store) -> None:
    app = open_app(gated)
    legal = gated.resolve("legal/terms").digest
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await go_to(pilot, "legal/terms")
        await ask_for(pilot, "prod")
        words = told(app)
        assert "which demands weren't met is recorded with the adapter for good" in words
        assert "serve --prod serves it from then on" in words
        await pilot.press("W")
        await until(lambda: isinstance(app.screen, LibraryScreen), pilot)
        await until(lambda: detail(app).startswith("legal/terms:prod"), pilot)
        notices = "\n".join(str(one.message) for one in app._notifications)
        assert "adapterhub tag legal/terms legal/terms:prod --without-gates" in notices
    assert gated.refs.read(parse_name("legal/terms:prod")) == legal
    (note,) = (one.body for one in gated.attestations(legal) if one.body.get("event") == "gate")
    assert [one["held"] for one in note["without_gates"]] == [False, False]


async def test_a_release_is_moved_after_it_was_said_what_it_means_now(gated: Store) -> None:
    app = open_app(gated)
    tone, both = (gated.resolve(name).digest for name in ("support/tone", "desk/both"))
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("T")
        await until(lambda: app.screen.is_modal, pilot)
        await pilot.press("ctrl+u", *"support/tone:prod", "enter")
        await until(lambda: isinstance(app.screen, GateScreen), pilot)
        await pilot.pause()
        assert f"It means @{tone[7:19]} now, and would mean this one." in told(app)
        await pilot.press("y")
        await until(lambda: isinstance(app.screen, LibraryScreen), pilot)
        await settled(pilot)
    assert gated.refs.read(parse_name("support/tone:prod")) == both


async def test_of_several_only_those_whose_gates_are_open(gated: Store) -> None:
    app = open_app(gated)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        await pilot.press("A")
        await ask_for(pilot, "prod")
        words = told(app)
        assert "desk/both:prod for desk/both: the gate is open" in words
        assert "legal/terms:prod for legal/terms: the gate is shut" in words
        assert "support/tone:prod" not in words, "it has that name already"
        await pilot.press("y")
        await until(lambda: isinstance(app.screen, ResultsScreen), pilot)
        assert "5 done, 0 failed" in told(app)
    assert gated.refs.read(parse_name("legal/terms:prod")) is None
    assert gated.refs.read(parse_name("tools/calls:prod")) is not None
    assert gated.refs.read(parse_name("desk/both:prod")) is not None


async def test_without_gates_nothing_is_asked(store: Store) -> None:
    app = open_app(store)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        assert "Gates" not in detail(app)
        await pilot.press("T")
        await until(lambda: app.screen.is_modal, pilot)
        await pilot.press(*"prod", "enter")
        await until(lambda: detail(app).startswith("desk/both:prod"), pilot)
