"""Train: choose or write a recipe, see what the model would see and what training would take, and start it.

The text in the editor is checked a moment after each key. Rows and plans come from a process of their own
(`trainer.desk`), as the libraries they need are heavy; a question that nobody waits for any more ends it.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, TypeVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.message import Message
from textual.reactive import reactive
from textual.widgets import Static, TabbedContent, TabPane, TextArea

from adapterhub.cli.output import clean
from adapterhub.errors import UsageError
from adapterhub.trainer import desk
from adapterhub.tui.hub import Hub
from adapterhub.tui.problem import Problem
from adapterhub.tui.recipes import reading, words
from adapterhub.tui.recipes.model import About, Checked, Draft, Item, Shelf
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.widgets.recipe_editor import RecipeEditor
from adapterhub.tui.widgets.recipe_list import RecipeList
from adapterhub.tui.widgets.sheet import Sheet

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord

_PAUSE = 0.2
"""Seconds without a key after which the text is checked."""
Side = Literal["training", "held out"]
Answer = TypeVar("Answer")


class TrainScreen(HubScreen):
    """The second place."""

    PLACE = "train"
    CSS_PATH = "../styles/train.tcss"
    AUTO_FOCUS = "#recipes"
    CHANGES = frozenset({"save", "train"})
    ABOUT = (
        "A recipe is one YAML file with everything that a training depends on. Choose one on the left, or begin with a "
        "preset; it is checked while you type. Data shows rows as the model will see them: what is trained, what is only "
        "read, what is cut off. Plan says what training would take, before anything is loaded. ctrl+r saves the text and "
        "trains what the file says; the training goes on when you leave."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "save", "Save", priority=True, id="train.save", tooltip="Write the recipe to its file"),
        Binding("ctrl+r", "train", "Train", priority=True, id="train.start", tooltip="Save the recipe and train it"),
        Binding("f2", "tab('recipe')", "Recipe", id="train.recipe", tooltip="The recipe's text"),
        Binding("f3", "tab('data')", "Data", id="train.data", tooltip="Rows as the model will see them"),
        Binding("f4", "tab('plan')", "Plan", id="train.plan", tooltip="What training would take, and remarks"),
        Binding("escape", "recipe", "Recipe", show=False, id="train.back", tooltip="Back to the recipe's text"),
        Binding("n,right", "row(1)", "Next row", show=False, id="train.next", tooltip="The next row"),
        Binding("N,left", "row(-1)", "Previous row", show=False, id="train.previous", tooltip="The row before"),
        Binding("o", "side", "Other side", show=False, id="train.side", tooltip="Rows trained on, or those held out"),
        Binding("r", "reload", "Reload", show=False, id="train.reload", tooltip="Look for recipes, rows and plan again"),
        Binding("q", "leave", "Quit", show=False, id="train.leave", tooltip="Leave the application"),
    ]  # fmt: skip

    shelf: reactive[Shelf] = reactive(Shelf())
    draft: reactive[Draft | None] = reactive(None)
    checked: reactive[Checked | None] = reactive(None)
    about: reactive[About | None] = reactive(None)
    side: reactive[Side] = reactive("training")
    rows: reactive[desk.Rows | None] = reactive(None)

    class Doing(Message):
        """What the process is doing now, for the pane that waits."""

        def __init__(self, question: object, sheet: Sheet, what: str) -> None:
            super().__init__()
            self.question, self.sheet, self.what = question, sheet, what

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._folder = reading.here()
        self._desk = desk.Desk(hub.store.home)
        self._told: dict[str, tuple[str, Side]] = {}
        """For each pane, the text and side that it shows."""
        self._asking: tuple[str, str, Side] | None = None
        """The pane, text and side that the process is being asked for; another object for each question."""
        self._file = asyncio.Lock()
        """One look at the file at a time."""

    def body(self) -> ComposeResult:
        with Horizontal(id="train"):
            recipes = RecipeList()
            recipes.border_title = Content("Recipes")
            yield recipes
            with TabbedContent(id="tabs"):
                with TabPane("Recipe", id="recipe"):
                    yield Static(words.NOTHING_OPEN, id="nothing")
                    editor = RecipeEditor()
                    editor.add_class("panel")
                    yield editor
                    with Vertical(id="below"):
                        yield Static("", id="verdict")
                        yield Static("", id="about")
                with TabPane("Data", id="data"):
                    yield Static(words.legend(), id="legend")
                    yield Sheet("rows")
                with TabPane("Plan", id="plan"):
                    yield Sheet("figures")

    def on_mount(self) -> None:
        super().on_mount()
        self.set_class(True, "-empty", "-choosing")
        self.read_shelf()

    def on_unmount(self) -> None:
        self._desk.close()

    def arrive(self, **given: object) -> None:
        """`path` opens that recipe."""
        path = given.get("path")
        if isinstance(path, str | Path):
            self.open_item(Item("file", Path(path).name, path=Path(path)))

    def command_line(self) -> str:
        draft = self.draft
        if draft is None:
            return "adapterhub recipe init"
        path = self._typed(reading.place_of(draft, self._folder))
        verb = {"plan": "recipe check", "data": "recipe preview"}.get(self._pane, "train")
        return f"adapterhub {verb} {shlex.quote(path)}"

    def job_ended(self, record: RunRecord) -> None:
        if record.kind == "train":
            self.read_shelf()

    def changed(self) -> None:
        """The recipe's name may have been given away, or have become free."""
        if self.draft is not None:
            self.check_text(self.draft)

    def on_screen_resume(self) -> None:
        """Back from another place or a dialog: the file may have changed, and an answer may have been given up."""
        if self.draft is not None:
            self.look_at_file()
            self._look_up()

    @property
    def _pane(self) -> str:
        return self.query_one("#tabs", TabbedContent).active

    @property
    def _editor(self) -> RecipeEditor:
        return self.query_one("#editor", RecipeEditor)

    def _typed(self, path: Path) -> str:
        """A path as one would type it here."""
        return (
            os.path.relpath(path, self._folder) if path.is_relative_to(self._folder) else str(path)
        )

    # Choosing

    @work(exclusive=True, group="shelf")
    async def read_shelf(self) -> None:
        """Looks for recipes."""
        try:
            self.shelf = await self.ask(reading.read_shelf, self._folder, self.hub.store.runs_dir)
        except Exception as error:  # noqa: BLE001 - said in words; the presets need no disk, but this folder is gone
            self.refuse(error, "No list of recipes")

    def watch_shelf(self) -> None:
        self.query_one("#recipes", RecipeList).show(self.shelf)

    def on_recipe_list_chosen(self, event: RecipeList.Chosen) -> None:
        self.open_item(event.item)

    @work(exclusive=True, group="open")
    async def open_item(self, item: Item) -> None:
        """Puts a recipe into the editor; what is there and not saved is asked for first."""
        if not await self._may_lose("Open another recipe?"):
            return
        try:
            draft = await self.ask(reading.open_item, item)
        except Exception as error:  # noqa: BLE001 - the list may be older than the disk
            self.refuse(error, "Not opened")
            return
        self.checked = None
        self.draft = draft
        self._editor.load_text(draft.text)
        self._show_tab("recipe")

    async def _may_lose(self, question: str) -> bool:
        draft = self.draft
        if draft is None or not draft.changed:
            return True
        lost = f"What you typed into {draft.title} is lost: it isn't saved."
        return await self.confirm(question, [lost], yes="Lose it")

    def on_recipe_editor_left(self) -> None:
        self.add_class("-choosing")
        self.query_one("#recipes").focus()

    # Writing

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        event.stop()
        if self.draft is not None:
            self.draft = replace(self.draft, text=event.text_area.text)
            self.check_text(self.draft)

    def on_text_area_selection_changed(self, event: TextArea.SelectionChanged) -> None:
        event.stop()
        self.explain(event.text_area.text, event.selection.end[0])

    @work(exclusive=True, group="check")
    async def check_text(self, draft: Draft) -> None:
        """Checks the text once no key came for a moment."""
        await asyncio.sleep(_PAUSE)
        try:
            path = reading.place_of(draft, self._folder)
            self.checked = await self.ask(reading.check, self.hub.store, draft.text, path)
        except Exception as error:  # noqa: BLE001 - a text that nobody foresaw must not end the screen
            self.checked = Checked(draft.text, problem=Problem.of(error))

    @work(exclusive=True, group="explain")
    async def explain(self, text: str, line: int) -> None:
        """Says what the key under the cursor means."""
        await asyncio.sleep(_PAUSE / 4)
        self.about = await self.ask(reading.explained, text, line)

    def watch_draft(self, draft: Draft | None) -> None:
        self.set_class(draft is None, "-empty")
        self._editor.border_title = words.heading(draft)

    def watch_checked(self, checked: Checked | None) -> None:
        self._editor.problem_line = checked.line if checked and checked.problem else None
        self.query_one("#verdict", Static).update(words.verdict(checked) if self.draft else "")

    def watch_about(self, about: About | None) -> None:
        self.query_one("#about", Static).update(words.about(about))

    # The file, which others may write as well

    @work(group="file")
    async def look_at_file(self) -> None:
        await self._meets_file()

    async def _meets_file(self) -> bool:
        """Whether the file still says what was loaded. Where it doesn't, what is shown is brought up to date, and said."""
        async with self._file:
            draft = self.draft
            if draft is None or draft.path is None:
                return True
            try:
                there = await self.ask(reading.on_disk, draft.path)
            except Exception as error:  # noqa: BLE001 - no text any more, no permission
                self.refuse(error, "Not read again")
                return False
            if self.draft is None or self.draft.path != draft.path:
                return False  # another was opened meanwhile
            # The editor's word for the last key may still be on its way.
            draft = self.draft = replace(self.draft, text=self._editor.text)
            if there is None:  # saving writes it again
                self.draft = replace(draft, saved="")
                return True
            if there in (draft.saved, draft.text):
                self.draft = replace(draft, saved=there)
                return True
            if draft.changed and not await self._prefers_file(draft):
                self.draft = replace(draft, text=self._editor.text, saved=there)
                self.notify(
                    f"Your text is kept; saving writes it over that of {draft.title}.", markup=False
                )
                return False
            self.checked = None
            self.draft = replace(draft, text=there, saved=there)
            self._editor.load_text(there)
            self.notify(words.reread(draft), severity="warning", markup=False)
            self._look_up()
            return False

    async def _prefers_file(self, draft: Draft) -> bool:
        return await self.confirm(
            f"{draft.title} was changed by another program. Take the file's text?",
            ["Yes: what you typed here is lost.", "No: yours stays; what the other program wrote is lost once you save."],
            yes="Take the file's",
        )  # fmt: skip

    # Saving and training

    @work(exclusive=True, group="save")
    async def action_save(self) -> None:
        if self.draft is None:
            self.notify("No recipe is open.", markup=False)
        elif (await self._saved()) is not None:
            self.notify(f"{self.draft.title} is saved.", markup=False)

    async def _saved(self) -> Path | None:
        """The file that holds the text now; None where it could not be, which has been said, or nobody wanted it."""
        assert self.draft is not None
        # The editor's word for the last key may still be on its way.
        draft = self.draft = replace(self.draft, text=self._editor.text)
        path, before = draft.path, draft.saved
        if path is not None and not draft.changed:
            return path
        if path is None:
            name = await self.ask(reading.proposed, draft.text, self._folder)
            typed = await self.ask_text(
                "Save the recipe as", value=name, hint=f"below {self._folder}", check=reading.against
            )  # fmt: skip
            if typed is None:
                return None
            path = reading.named(typed, self._folder)
        try:
            await self.ask(reading.save, path, draft.text, before if draft.path else None)
        except Exception as error:  # noqa: BLE001 - a full disk, no permission, a file that exists
            self.refuse(error, "Not saved")
            return None
        new = draft.path is None
        now = self._editor.text  # keys may have come meanwhile
        self.draft = Draft(path.name, now, path, draft.text)
        if new:
            self.check_text(self.draft)
            self.read_shelf()
        return path

    @work(exclusive=True, group="train")
    async def action_train(self) -> None:
        """Saves, checks once more what the file says, and starts."""
        if self.draft is None:
            self.notify("No recipe is open.", markup=False)
            return
        if not await self._meets_file():
            return  # nobody has seen yet what would be trained
        path = await self._saved()
        if path is None:
            return
        try:
            checked = await self.ask(reading.check, self.hub.store, self.draft.saved, path)
            if checked.problem is not None:
                raise UsageError(
                    checked.problem.what, why=checked.problem.why, hint=checked.problem.hint
                )
            run = await self.the_app.start(["train", str(path)], title=f"Train {checked.name}")
        except Exception as error:  # noqa: BLE001 - whatever keeps it from starting is said in words
            self.refuse(error, "Not started")
            return
        self.workers.cancel_group(self, "rows")
        self._desk.close()  # its memory is wanted by the training
        self.the_app.visit("training", runs=(run,))

    @work(exclusive=True, group="leave")
    async def action_leave(self) -> None:
        if await self._may_lose("Leave?"):
            await self.the_app.action_leave()

    # Rows and plan

    def action_tab(self, pane: str) -> None:
        self._show_tab(pane)

    def action_recipe(self) -> None:
        self._show_tab("recipe")

    def _show_tab(self, pane: str) -> None:
        self.remove_class("-choosing")
        self.query_one("#tabs", TabbedContent).active = pane
        inner = {"recipe": "#editor", "data": "#rows", "plan": "#figures"}[pane]
        self.call_after_refresh(self.query_one(inner).focus)

    def on_tabbed_content_tab_activated(self) -> None:
        self._look_up()

    def action_reload(self) -> None:
        self.read_shelf()
        self.look_at_file()
        self._told.clear()
        self._asking = None
        self._look_up()

    def action_side(self) -> None:
        self.side = "held out" if self.side == "training" else "training"
        self._look_up()

    def action_row(self, by: int) -> None:
        if self.rows is not None and self.rows.count:
            self.read_row((self.rows.place + by) % self.rows.count)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("row", "side") and self.is_mounted and self._pane != "data":
            return False
        if action == "recipe" and self.is_mounted and self._pane == "recipe":
            return False
        return super().check_action(action, parameters)

    def _look_up(self) -> None:
        """Asks for what the pane shows, where it shows something else."""
        pane, draft = self._pane, self.draft
        if draft is None or pane == "recipe" or self._told.get(pane) == (draft.text, self.side):
            return
        if self._asking == (pane, draft.text, self.side):
            return
        if pane == "data":
            self.read_row(0)
        else:
            self.read_plan()

    @work(exclusive=True, group="rows")
    async def read_row(self, place: int) -> None:
        """Shows a row of the text as it is now."""
        side, sheet = self.side, self.query_one("#rows", Sheet)

        def question(draft: desk.Draft, doing: desk.Doing) -> desk.Rows:
            return self._desk.row(draft, side, place, doing)

        found = await self._ask_desk("data", sheet, question)
        if found is not None:
            self.rows = found
            sheet.border_title = Content(words.row_title(found, side))
            sheet.border_subtitle = Content("n next  N previous  o other side")
            sheet.say(words.drawn(found))
            sheet.scroll_home(animate=False)

    @work(exclusive=True, group="rows")
    async def read_plan(self) -> None:
        """Makes the plan of the text as it is now."""
        sheet = self.query_one("#figures", Sheet)
        found = await self._ask_desk("plan", sheet, self._desk.plan)
        if found is not None:
            sheet.border_title = Content("What training would take")
            sheet.show(words.plan_sections(found))

    async def _ask_desk(
        self, pane: str, sheet: Sheet, question: Callable[[desk.Draft, desk.Doing], Answer]
    ) -> Answer | None:
        """The answer, or None where there is none, and then the sheet says why."""
        draft = self.draft
        if draft is None:
            return None
        asked = desk.Draft(draft.text, reading.place_of(draft, self._folder))
        known: tuple[str, Side] = (draft.text, self.side)
        mine = self._asking = (pane, *known)
        answered = False
        try:
            found = await self.ask(
                question, asked, lambda what: self.post_message(self.Doing(mine, sheet, what))
            )
            answered = True
        except Exception as error:  # noqa: BLE001 - a recipe can be wrong in every way
            answered = True
            sheet.border_title = sheet.border_subtitle = ""
            sheet.say(words.in_words(Problem.of(error)))
            return None
        finally:
            # Somebody asked something else, or left. What takes long is ended; the next row of the same text doesn't.
            if not answered and (pane == "plan" or self._told.get(pane) != known):
                self._desk.close()
                self._give_up(pane, sheet, mine)
            if self._asking is mine:
                self._asking = None
        self._told[pane] = known
        return found

    def _give_up(self, pane: str, sheet: Sheet, question: object) -> None:
        """Says that there is no answer, unless the pane waits for that of a newer question."""
        newer = self._asking
        if sheet.is_attached and (newer is None or newer is question or newer[0] != pane):
            sheet.say(words.ENDED)

    def on_train_screen_doing(self, event: Doing) -> None:
        if event.question is self._asking:
            event.sheet.say(Content.styled(f"{clean(event.what)} …", "$text-muted"))
