"""The train screen: finding, writing and checking recipes, rows and plan from a real base, and one real training to its end."""

from __future__ import annotations

import json
import re
from pathlib import Path
from threading import Event

import pytest
import yaml
from textual.content import Content
from textual.pilot import Pilot
from textual.widgets import Button, Input, Static, TabbedContent

from adapterhub.errors import NotFoundError
from adapterhub.runs import all_runs
from adapterhub.store import Store
from adapterhub.trainer.desk import Desk, Doing, Stopped, Told
from adapterhub.trainer.recipe import load_recipe
from adapterhub.tui.app import AdapterHubApp
from adapterhub.tui.hub import Hub
from adapterhub.tui.screens.confirm import ConfirmScreen, TextScreen
from adapterhub.tui.screens.train import TrainScreen
from adapterhub.tui.screens.training import TrainingScreen
from adapterhub.tui.widgets.detail_pane import Sections, lay_out
from adapterhub.tui.widgets.recipe_editor import RecipeEditor
from adapterhub.tui.widgets.recipe_list import RecipeList
from adapterhub.tui.widgets.sheet import Sheet
from tests.support import trainings
from tests.support.chat import chat_base
from tests.support.screen import USUAL, WIDE, open_app, settled, until


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_base(tmp_path_factory.mktemp("chat") / "base")


@pytest.fixture
def work(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the application is started: a folder with one recipe in it."""
    folder = tmp_path / "work"
    folder.mkdir()
    trainings.recipe_file(folder, base)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def app(tmp_path: Path, work: Path) -> AdapterHubApp:
    return open_app(Store.open(tmp_path / "home"))


async def opened(
    app: AdapterHubApp, pilot: Pilot[None], *, recipe: str = "paint.yaml"
) -> TrainScreen:
    """The screen, with a recipe in the editor where one is named."""
    await app.go("train")
    screen = app.screen
    assert isinstance(screen, TrainScreen)
    await until(lambda: screen.shelf.loaded, pilot)
    await settled(pilot)
    if recipe:
        await choose(screen, pilot, recipe)
    return screen


async def choose(screen: TrainScreen, pilot: Pilot[None], title: str) -> None:
    """Opens a recipe of the list with the keys."""
    recipes = screen.query_one(RecipeList)
    recipes.focus()
    await pilot.press("g")
    for _ in range(recipes.option_count):
        if title in listed(screen)[recipes.highlighted or 0]:
            break
        await pilot.press("j")
    await pilot.press("enter")
    await settled(pilot)


def listed(screen: TrainScreen) -> list[str]:
    """The lines of the list."""
    recipes = screen.query_one(RecipeList)
    return [str(recipes.get_option_at_index(i).prompt) for i in range(recipes.option_count)]


def editor(screen: TrainScreen) -> RecipeEditor:
    return screen.query_one(RecipeEditor)


def add(screen: TrainScreen, text: str) -> None:
    """Types at the end."""
    editor(screen).move_cursor(editor(screen).document.end)
    editor(screen).insert(text)


def line(screen: TrainScreen, name: str) -> str:
    return str(screen.query_one(f"#{name}", Static).content)


def sheet(screen: TrainScreen, name: str) -> str:
    """What a pane shows, text or facts."""
    found = screen.query_one(f"#{name}", Sheet)
    text, facts = found.query_one(Static), found.query_one(Sections)
    return str(text.content) if text.display else "\n".join(map(str, lay_out(facts.sections, 200)))


def toasts(app: AdapterHubApp) -> str:
    return "\n".join(note.message for note in app._notifications)


async def test_it_finds_files_former_trainings_and_presets(app: AdapterHubApp, work: Path) -> None:
    (work / "deep" / "er").mkdir(parents=True)
    (work / "deep" / "er" / "other.yml").write_text(
        "name: x\nbase: y\ndata: {path: z}\nsteps: wrong\n"
    )
    (work / "no-recipe.yaml").write_text("services: {}\n")
    (work / ".hidden").mkdir()
    (work / ".hidden" / "secret.yaml").write_text((work / "paint.yaml").read_text())
    trainings.finished(app.hub.store.runs_dir, "support/tone")
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, recipe="")
        found = "\n".join(listed(screen))
        assert ["paint.yaml" in found, "deep/er/other.yml" in found] == [True, True]
        assert ["no-recipe" in found, "secret" in found] == [False, False]
        assert re.search(r"support/tone  20\d\d-\d\d-\d\d", found)
        for preset in ("quick", "production", "quality", "plain"):
            assert preset in found
        await choose(screen, pilot, "support/tone")
        assert yaml.safe_load(editor(screen).text)["name"] == "support/tone"
        assert "# what the adapter is called in the store" in editor(screen).text


async def test_the_text_is_checked_while_it_is_typed(app: AdapterHubApp) -> None:
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot)
        assert "✓ a valid recipe" in line(screen, "verdict")
        assert editor(screen).has_focus
        where = editor(screen).text.splitlines().index("rank: 8")
        editor(screen).move_cursor((where, 7))
        await settled(pilot)
        assert line(screen, "about").startswith("rank")
        assert "a whole number, at least 1 and at most 1024; default 16" in line(screen, "about")
        await pilot.press("backspace", "x")
        await settled(pilot)
        assert f"✗ line {where + 1}: The recipe's rank is 'x', which can't be taken." in line(
            screen, "verdict"
        )
        assert editor(screen).problem_line == where
        await pilot.press("home", "z")
        await settled(pilot)
        assert "unknown key: zrank" in line(screen, "verdict")
        assert "Did you mean rank?" in line(screen, "verdict")
        await pilot.press("ctrl+z", "ctrl+z", "ctrl+z")
        await settled(pilot)


async def test_what_is_explained_is_the_key_of_the_line(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot, recipe="plain")
        for key, words in {
            "held_out": "data.held_out  fraction of rows never trained on",
            "every": "eval.every  steps between evaluations",
            "beta": "dpo.beta  how far the answers may move",
        }.items():
            lines = editor(screen).text.splitlines()
            editor(screen).move_cursor(
                (next(i for i, text in enumerate(lines) if text.startswith(f"  {key}:")), 0)
            )
            await settled(pilot)
            assert line(screen, "about").startswith(words)


async def test_saving_asks_for_a_name_once_and_never_overwrites(
    app: AdapterHubApp, work: Path
) -> None:
    (work / "support-tone.yaml").write_text("mine")
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, recipe="quick")
        await pilot.press("ctrl+s")
        await until(lambda: isinstance(app.screen, TextScreen), pilot)
        assert app.screen.query_one(Input).value == "support-tone-2.yaml"
        app.screen.query_one(Input).value = "support-tone.yaml"
        await pilot.press("enter")
        await until(lambda: "support-tone.yaml exists" in toasts(app), pilot)
        assert (work / "support-tone.yaml").read_text() == "mine"
        await pilot.press("ctrl+s")
        await until(lambda: isinstance(app.screen, TextScreen), pilot)
        await pilot.press("enter")
        await until((work / "support-tone-2.yaml").is_file, pilot)
        await settled(pilot)
        assert load_recipe(work / "support-tone-2.yaml").preset == "quick"
        add(screen, "#!")
        await pilot.press("ctrl+s")
        await settled(pilot)
        assert (work / "support-tone-2.yaml").read_text().endswith("#!")
        (work / "support-tone-2.yaml").write_text("somebody else's")
        await pilot.press("x", "ctrl+s")
        await until(lambda: "changed by somebody else" in toasts(app), pilot)
        assert (work / "support-tone-2.yaml").read_text() == "somebody else's"


async def test_unsaved_text_is_not_lost_without_a_word(app: AdapterHubApp) -> None:
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        add(screen, "#")
        await pilot.press("escape", "G", "enter")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        await pilot.press("n")
        await settled(pilot)
        assert editor(screen).text.endswith("#")
        await pilot.press("q")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        await pilot.press("n")
        await settled(pilot)
        assert app.is_running


async def test_a_wrong_recipe_is_not_started_and_readonly_starts_nothing(
    app: AdapterHubApp, work: Path
) -> None:
    async with app.run_test(size=USUAL) as pilot:
        add(await opened(app, pilot), "nonsense: 1")
        await pilot.press("ctrl+r")
        await until(lambda: "unknown key: nonsense" in toasts(app), pilot)
        assert not app.hub.store.runs_dir.exists()
        assert "nonsense" in (work / "paint.yaml").read_text(), "the text was saved first"
    looked_at = AdapterHubApp(Hub.of(app.hub.store, readonly=True))
    async with looked_at.run_test(size=USUAL) as pilot:
        await opened(looked_at, pilot)
        await pilot.press("#", "ctrl+s", "ctrl+r")
        await settled(pilot)
        assert "#" not in (work / "paint.yaml").read_text()
        assert not app.hub.store.runs_dir.exists()


async def test_a_hostile_file_is_shown_harmlessly_or_refused(
    app: AdapterHubApp, work: Path
) -> None:
    (work / "evil.yaml").write_bytes(
        b"name: '[b]x[/b]'\nbase: \"\\e]0;owned\"\ndata: {path: '\xe2\x80\xae'}\nsteps: 1\n"
    )
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot, recipe="evil.yaml")
        assert "[b]x[/b]" in line(screen, "verdict")
        (work / "evil.yaml").write_bytes(b"\xff\xfe")
        await pilot.press("escape")
        await choose(screen, pilot, "evil.yaml")
        assert "no text in UTF-8" in toasts(app)
        (work / "evil.yaml").unlink()
        await choose(screen, pilot, "evil.yaml")
        assert "There is no recipe" in toasts(app)


async def test_what_is_trained_is_what_the_screen_shows(
    app: AdapterHubApp, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program writes the file: nothing is trained that nobody has seen, and nothing typed is lost unasked."""
    started: list[str] = []

    async def start(words: object, *, title: str) -> str:
        started.append(title)
        raise NotFoundError("not today")

    monkeypatch.setattr(app, "start", start)
    file = work / "paint.yaml"
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot)
        file.write_text(file.read_text().replace("name: paint", "name: other/name"))
        await pilot.press("ctrl+r")
        await until(lambda: "has been read again" in toasts(app), pilot)
        await settled(pilot)
        assert (started, editor(screen).text) == ([], file.read_text())
        await pilot.press("ctrl+r")
        await until(lambda: started == ["Train other/name"], pilot)

        file.write_text(file.read_text() + "# theirs\n")
        add(screen, "# mine\n")
        await pilot.press("ctrl+r")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        await pilot.press("n")
        await until(lambda: "Your text is kept" in toasts(app), pilot)
        await settled(pilot)
        assert len(started) == 1
        assert [
            file.read_text().endswith("# theirs\n"),
            editor(screen).text.endswith("# mine\n"),
        ] == [True, True]
        await pilot.press("ctrl+r")
        await until(lambda: len(started) == 2, pilot)
        assert file.read_text().endswith("# mine\n"), "asked once, and answered"

        add(screen, "# more\n")
        file.write_text(file.read_text() + "# theirs\n")
        await app.go("library")
        await app.go("train")
        await until(lambda: bool(app.screen.query("#yes")), pilot)
        await pilot.pause()
        app.screen.query_one("#yes", Button).press()
        await until(lambda: editor(screen).text.endswith("# theirs\n"), pilot)
        await settled(pilot)
        assert screen.draft is not None
        assert not screen.draft.changed


async def test_a_taken_name_is_told_before_it_is_trained(
    app: AdapterHubApp, store: Store, work: Path
) -> None:
    app = open_app(store)
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        assert "taken" not in line(screen, "verdict")
        editor(screen).text = editor(screen).text.replace("name: paint", "name: support/tone")
        await until(
            lambda: "The name support/tone is taken by another adapter" in line(screen, "verdict"),
            pilot,
        )
        assert "change `name:`" in line(screen, "verdict")


async def test_a_plan_that_is_given_up_says_so_and_is_asked_for_again(
    app: AdapterHubApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    ended = Event()

    def plan(desk: Desk, draft: object, doing: Doing) -> Told:
        asked.append("plan")
        doing("counting the tokens of 999 rows")
        if len(asked) > 1:
            return Told({"size": {"rows": 999}}, ())
        ended.wait(20)
        raise Stopped

    monkeypatch.setattr(Desk, "plan", plan)
    monkeypatch.setattr(Desk, "close", lambda _: ended.set())
    async with app.run_test(size=USUAL) as pilot:
        screen = await opened(app, pilot)
        await pilot.press("f4")
        await until(lambda: "counting the tokens" in sheet(screen, "figures"), pilot)
        screen.workers.cancel_group(screen, "rows")
        await until(lambda: "Not looked at to the end" in sheet(screen, "figures"), pilot)
        await app.go("library")
        await app.go("train")
        await until(lambda: "999" in sheet(screen, "figures") and len(asked) == 2, pilot)
        await settled(pilot)
        await pilot.press("escape")
        await settled(pilot)
        assert screen.query_one("#tabs", TabbedContent).active == "recipe"
        assert editor(screen).has_focus


@pytest.mark.slow
async def test_rows_and_the_plan_are_those_of_the_text(app: AdapterHubApp, work: Path) -> None:
    """The process imports the training libraries, which takes seconds; then it is quick."""
    async with app.run_test(size=WIDE) as pilot:
        screen = await opened(app, pilot)
        await pilot.press("f3")
        await until(lambda: screen.rows is not None, pilot, seconds=120)
        await settled(pilot)
        shown = sheet(screen, "rows")
        assert "Paint number" in shown
        assert "<|im_start|>" in shown
        assert "↵" in shown
        drawn = screen.query_one("#rows", Sheet).query_one(Static).content
        assert isinstance(drawn, Content)
        trained = [
            drawn.plain[span.start : span.end]
            for span in drawn.spans
            if "underline" in str(span.style)
        ]
        assert any(text.startswith("The colour is") for text in trained), "not told by colour alone"
        assert screen.rows is not None
        assert (
            str(screen.query_one("#rows", Sheet).border_title)
            == f"1 of {screen.rows.count}, training"
        )
        first = shown
        await pilot.press("n")
        await until(lambda: screen.rows is not None and screen.rows.place == 1, pilot)
        await settled(pilot)
        assert sheet(screen, "rows") != first
        await pilot.press("o")
        await until(lambda: "held out" in str(screen.query_one("#rows", Sheet).border_title), pilot)

        await pilot.press("f4")
        await until(lambda: "12, which is" in sheet(screen, "figures"), pilot, seconds=120)
        plan = sheet(screen, "figures")
        assert "60: " in plan
        assert "together" in plan, "what memory it takes"
        assert "warning" in plan
        assert "12 steps are few" in plan

        await pilot.press("f2")
        editor(screen).text = editor(screen).text.replace("data.json", "gone.json")
        await pilot.press("f4")
        await until(lambda: "gone.json" in sheet(screen, "figures"), pilot, seconds=60)


@pytest.mark.slow
async def test_a_training_from_its_start_over_a_stop_to_its_end(
    app: AdapterHubApp, work: Path, base: Path
) -> None:
    """Real processes: started, watched, stopped after a step, gone on with from there, and its adapter in the store."""
    trainings.recipe_file(
        work, base, steps=30, save_every=5, packing=False,
        gradient_accumulation=24,  # a quarter of a second a step: it is stopped before it is done
        eval={"rows": 6, "every": 15, "samples": 1, "sample_tokens": 8},
    )  # fmt: skip
    async with app.run_test(size=WIDE) as pilot:
        await opened(app, pilot)
        await pilot.press("ctrl+r")
        await until(lambda: isinstance(app.screen, TrainingScreen), pilot)
        screen = app.screen
        assert isinstance(screen, TrainingScreen)

        def steps() -> int:
            return screen.watched[0].history.last if screen.watched else 0

        def state() -> str:
            return screen.watched[0].state if screen.watched else ""

        await until(lambda: steps() >= 1, pilot, seconds=200)
        assert state() == "running"
        await until(lambda: "0" in str(screen.query_one("#plot").render()), pilot)
        await pilot.press("x")
        await until(lambda: isinstance(app.screen, ConfirmScreen), pilot)
        await pilot.press("y")
        await until(lambda: state() == "interrupted", pilot, seconds=120)
        (record,) = all_runs(app.hub.store.runs_dir)
        stopped = steps()
        assert 1 <= stopped < 30
        assert screen.watched[0].history.checkpoint == stopped
        assert app.hub.store.entries() == []

        (work / "paint.yaml").write_text(
            (work / "paint.yaml").read_text().replace("rank: 8", "rank: 4")
        )
        await until(lambda: not app.running_jobs, pilot)
        await pilot.press("R")
        await until(lambda: f"Going on after step {stopped}" in toasts(app), pilot)
        assert "has changed since" in toasts(app)
        await until(lambda: state() == "done", pilot, seconds=200)
        await until(lambda: not app.running_jobs, pilot)

        history = screen.watched[0].history
        assert [step.step for step in history.steps] == list(range(1, 31)), (
            "one course, without a gap"
        )
        assert (history.result, {one.step for one in history.evaluations}) == (
            "paint",
            {0, 15, 30},
        )
        assert history.samples
        assert history.steps[-1].tokens == sum_of_tokens(record.path)
        (entry,) = app.hub.store.entries()
        assert entry.manifest.lora is not None
        assert entry.manifest.lora.rank == 8, "the recipe as it was when it began"
        assert len(all_runs(app.hub.store.runs_dir)) == 1
        assert screen.query_one("#panes", TabbedContent).active == "now"


def sum_of_tokens(run: Path) -> int:
    """Of the steps that count: one taken back by the resuming is there twice."""
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return sum({one["step"]: one["tokens"] for one in events if one["event"] == "step"}.values())
