"""The Jobs place and the screen of one run: what runs, wherever it was started, what came of it, and stopping it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from textual.widgets import Log, Static

from adapterhub.jobs import Job, start
from adapterhub.runs import Run, read_run, running
from adapterhub.store import Store
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.hub import Hub
from adapterhub.tui.screens import base
from adapterhub.tui.screens.confirm import ConfirmScreen
from adapterhub.tui.screens.jobs import JobsScreen
from adapterhub.tui.screens.run import RunScreen
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.line_table import LineTable
from tests.support.adapters import AdapterMaker
from tests.support.screen import USUAL, WIDE, open_app, settled, until

PROJECTIONS = {f"model.layers.{layer}.self_attn.q_proj": (1024, 1024) for layer in range(64)}


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "POLL_SECONDS", 0.05)
    monkeypatch.setattr("adapterhub.tui.screens.run.LOOK_SECONDS", 0.05)


@pytest.fixture
def done(store: Store) -> Run:
    """A merge that is over."""
    with running(store.runs_dir, "merge", {"name": "desk/both"}) as run:
        run.event("stored", name="desk/both", digest=store.resolve("desk/both").digest)
    return run


@pytest.fixture
def working(store: Store) -> Iterator[Run]:
    """A training that runs for as long as the test does."""
    with ExitStack() as stack:
        run = stack.enter_context(running(store.runs_dir, "train", {"name": "support/tone"}))
        run.event("progress", what="training", done=5, total=20, unit="")
        yield run


@pytest.fixture(scope="session")
def slow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two adapters that take seconds to merge element by element."""
    root = tmp_path_factory.mktemp("slow")
    store, make = Store.open(root / "home"), AdapterMaker(root)
    for seed, name in enumerate("ab"):
        store.add_folder(make(name, rank=16, modules=PROJECTIONS, seed=seed), name=name)
    return store.home


@pytest.fixture
def slow(slow_home: Path, tmp_path: Path) -> Store:
    return Store.open(Path(shutil.copytree(slow_home, tmp_path / "slow")))


def merging(store: Store) -> Job:
    words = ["merge", "a", "b", "--method", "ties", "--name", "both", "--workers", "1"]
    return start(store.runs_dir, words, kind="merge", title="Merge a and b", home=store.home)


def listed(app: AdapterHubApp) -> list[tuple[str, ...]]:
    """The lines of the table, without their blanks."""
    table = app.screen.query_one(LineTable)
    if not table.display:
        return []
    return [tuple(cell.strip() for cell in line.cells) for line in table.lines]


def said(app: AdapterHubApp) -> str:
    """What the screen tells of the run, however it is wrapped."""
    found = app.screen.query("#about Sections").results(Sections)
    return " ".join(" ".join(str(one.render()) for one in found).split())


def question(app: AdapterHubApp) -> str:
    return "\n".join(str(one.content) for one in app.screen.query(Static).results(Static))


async def test_an_empty_place_says_what_would_be_here(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("4")
        await settled(pilot)
        assert listed(app) == []
        assert "Nothing has been run here yet" in str(
            app.screen.query_one("#instead", Static).content
        )


async def test_runs_appear_go_on_and_end_by_themselves(app: AdapterHubApp, store: Store) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("4")
        await settled(pilot)
        with running(store.runs_dir, "train", {"name": "tone"}) as run:
            await until(
                lambda: [line[1:3] for line in listed(app)] == [("▶ running", "Train tone")], pilot
            )
            run.event("progress", what="training", done=5, total=20, unit="")
            await until(lambda: "25%" in listed(app)[0][3], pilot)
            assert "training: 5 of 20" in said(app)
        await until(lambda: listed(app)[0][1] == "✓ done", pilot)
        assert app.screen.query_one(LineTable).border_subtitle == "0 running of 1"


async def test_a_run_that_is_killed_is_seen_to_have_died(store: Store, app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("4")
        job = start(store.runs_dir, ["logs", "nothing", "-f"], kind="train", title="T")
        job.process.kill()
        job.process.wait()
        await until(lambda: [line[1] for line in listed(app)] == ["✗ died"], pilot)
        assert "ended without a word" in said(app)


async def test_only_running_ones_can_be_shown(app: AdapterHubApp, done: Run, working: Run) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("4")
        await until(lambda: len(listed(app)) == 2, pilot)
        assert isinstance(app.screen, JobsScreen)
        assert app.screen.command_line() == "adapterhub ps --all"
        await pilot.press("v")
        await settled(pilot)
        assert [line[2] for line in listed(app)] == ["Train support/tone"]
        assert app.screen.command_line() == "adapterhub ps"


async def test_enter_opens_a_run_and_its_result_leads_to_the_adapter(
    app: AdapterHubApp, done: Run
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("4")
        await until(lambda: len(listed(app)) == 1, pilot)
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, RunScreen), pilot)
        await until(lambda: "done" in "\n".join(app.screen.query_one("#events", Log).lines), pilot)
        told = "\n".join(app.screen.query_one("#events", Log).lines)
        assert "stored as desk/both" in told
        assert "desk/both" in said(app)
        assert isinstance(app.screen, RunScreen)
        assert app.screen.command_line() == f"adapterhub logs {done.id} -f"
        await pilot.press("o")
        await until(lambda: app.current_mode == "library", pilot)
        assert len(app.screen_stack) == 1


async def test_marked_trainings_are_opened_together(
    store: Store, done: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two", "three"):
        with running(store.runs_dir, "train", {"name": name}):
            pass
    app, visits = open_app(store), list[tuple[str, object]]()
    monkeypatch.setattr(app, "visit", lambda what, **given: visits.append((what, given)))
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("4")
        await until(lambda: len(listed(app)) == 4, pilot)
        ids = {line.cells[2]: line.key for line in app.screen.query_one(LineTable).lines}
        table = app.screen.query_one(LineTable)
        order = [line.cells[2] for line in table.lines]
        for name in ("Train one", "Merge desk/both", "Train two"):
            table.move_cursor(row=order.index(name))
            await pilot.pause()
            await pilot.press("space")
        table.move_cursor(row=order.index("Train two"))
        await pilot.pause()
        await pilot.press("enter")
        await pilot.pause()
        ((what, given),) = visits
        assert what == "training"
        assert isinstance(given, dict)
        assert given["runs"][0] == ids["Train two"], "the one that was opened comes first"
        assert set(given["runs"]) == {ids["Train one"], ids["Train two"]}


async def test_a_job_is_followed_stopped_and_leaves_the_store_as_it_was(slow: Store) -> None:
    app = open_app(slow)
    job = merging(slow)
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("4")
        await until(lambda: bool(listed(app)) and "%" in listed(app)[0][3], pilot)
        await pilot.press("enter")
        await until(
            lambda: "Merging (ties)" in "\n".join(app.screen.query_one("#log", Log).lines), pilot
        )
        await until(lambda: "Merging (ties):" in said(app), pilot)
        os.kill(job.process.pid, signal.SIGSTOP)  # it may not be done before it is stopped
        await pilot.press("x")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        assert "The store stays as it was" in question(app)
        assert f"adapterhub stop {job.run.id}" in question(app)
        await pilot.press("y")
        await until(lambda: not isinstance(app.screen, ConfirmScreen), pilot)
        os.kill(job.process.pid, signal.SIGCONT)
        await until(lambda: "■ stopped" in said(app), pilot)
        assert job.process.wait(90) == 130
        await pilot.press("escape")
        await until(lambda: listed(app)[0][1] == "■ stopped", pilot)
    assert [str(name) for name, _ in slow.refs.all()] == ["a", "b"]


@pytest.mark.slow
async def test_closing_the_screen_ends_nothing(slow: Store) -> None:
    app = open_app(slow)
    async with app.run_test(size=USUAL) as pilot:
        await settled(pilot)
        words = ["merge", "a", "b", "--method", "ties", "--name", "both", "--workers", "1"]
        run = await app.start(words, title="Merge a and b")
        path = slow.runs_dir / run
        await until(lambda: read_run(path).progress is not None, pilot)
    assert read_run(path).state == "running"
    async with open_app(slow).run_test(size=USUAL) as pilot:
        await pilot.press("4")
        await until(lambda: read_run(path).state == "done", pilot)
    assert str(slow.resolve("both").label) == "both"


async def test_a_refusal_is_said_as_the_command_line_says_it(
    app: AdapterHubApp, store: Store
) -> None:
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        await settled(pilot)
        run = await app.start(["merge", "support/tone", "nobody"], title="Merge [bold]two[/]")
        await until(lambda: read_run(store.runs_dir / run).state == "failed", pilot)
        app.visit("run", run=run)
        await until(lambda: "no adapter named nobody" in said(app), pilot)
        assert "adapterhub ls" in said(app)
        await until(lambda: bool(app._notifications), pilot)
        assert "no adapter named nobody" in next(iter(app._notifications)).message
        assert str(app.screen.query_one("#about").border_title) == "Merge \\[bold]two\\[/]"


async def test_a_store_that_is_only_looked_at_stops_nothing(store: Store, working: Run) -> None:
    app = open_app(Hub.of(store, readonly=True))  # type: ignore[arg-type]
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("4")
        await until(lambda: len(listed(app)) == 1, pilot)
        await pilot.press("x")
        await settled(pilot)
        assert isinstance(app.screen, JobsScreen)


async def test_a_run_that_is_gone_is_said_to_be(app: AdapterHubApp, done: Run) -> None:
    async with app.run_test(size=USUAL) as pilot:
        app.visit("run", run=done.id)
        await until(lambda: "desk/both" in said(app), pilot)
        shutil.rmtree(done.path)
        instead = app.screen.query_one("#instead", Static)
        await until(lambda: f"There is no run {done.id}" in str(instead.content), pilot)


async def test_hostile_events_command_nothing(app: AdapterHubApp, store: Store) -> None:
    with running(store.runs_dir, "merge", {"name": "[bold red]x[/]\x1b[2J"}) as run:
        run.event("\x1b]0;owned\x07", text="[@click=app.exit]y[/]")
        (run.path / "log").write_text("\x1b[31m[b]loud[/b]\n")
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("4")
        await until(lambda: len(listed(app)) == 1, pilot)
        assert listed(app)[0][2] == "Merge [bold red]x[/]\\x1b[2J"
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, RunScreen), pilot)
        await until(lambda: bool(app.screen.query_one("#log", Log).lines), pilot)
        drawn = [
            *app.screen.query_one("#events", Log).lines,
            *app.screen.query_one("#log", Log).lines,
        ]
        assert "\\x1b[31m[b]loud[/b]" in drawn
        assert not any("\x1b" in line for line in drawn)


async def test_keys_where_nothing_is_listed_harm_nothing(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        await pilot.press("4")
        await settled(pilot)
        await pilot.press("v", "up", "down", "k", "G", "enter", "x", "v", "up")
        await settled(pilot)
        assert isinstance(app.screen, JobsScreen)
        assert app.focused is None, "a table that isn't shown has no focus"
        table = app.screen.query_one(LineTable)
        table.show([])
        table.action_cursor_up()
        assert table.current is None
        await pilot.resize_terminal(90, 30)
        await settled(pilot)


async def test_events_of_no_sense_stop_neither_the_list_nor_the_run(
    app: AdapterHubApp, store: Store
) -> None:
    with running(store.runs_dir, "export", {"folder": "out"}) as run:
        run.event("progress", what="w", done=10**400, total=3)
        run.event("progress", what="Writing", done=5e-324, total=1e308)
        run.event("ready", seconds=float("inf"), bytes=10**400, name="n" * 10**5)
        run.event("continued", job="a/b", run="a\0b")
        run.event("finding", words="x" * 10**6)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("4")
            await until(lambda: len(listed(app)) == 1, pilot)
            await pilot.press("l")
            await until(lambda: isinstance(app.screen, RunScreen), pilot)
            await until(lambda: bool(app.screen.query_one("#events", Log).lines), pilot)
            assert max(map(len, app.screen.query_one("#events", Log).lines)) <= 2000
            await pilot.press("escape")
            await settled(pilot)
    assert read_run(run.path).state == "done"
