"""What every screen has: the frame, questions to the hub in threads, errors in words, dialogs, and a look at the store.

A screen overrides `body` and says in `ABOUT` what it is for. What differs while it is shown is in its reactives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar, cast

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.lazy import Lazy
from textual.screen import Screen
from textual.widgets import Footer

from adapterhub.tui.hub import Hub, in_thread
from adapterhub.tui.problem import Problem
from adapterhub.tui.widgets.top_bar import TopBar

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord
    from adapterhub.tui.app import AdapterHubApp

POLL_SECONDS = 1.0

Question = ParamSpec("Question")
Answer = TypeVar("Answer")


class HubScreen(Screen[None]):
    """A screen on the hub, with the bar above and the keys below."""

    PLACE: ClassVar[str] = ""
    """Of the five places, which one this is; empty for a screen that opens on top of one."""
    ABOUT: ClassVar[str] = ""
    """What `?` says of the screen, in a few plain sentences."""
    CHANGES: ClassVar[frozenset[str]] = frozenset()
    """Actions that change something: not offered, and refused, when the store is only looked at."""
    AUTO_FOCUS = ""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (110, "-wide")]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (30, "-high")]
    BINDINGS = [
        Binding(
            "y",
            "copy_command",
            "Copy",
            show=False,
            id="all.copy",
            tooltip="Copy the command line that does the same",
        ),
        Binding(
            "escape", "back", "Back", show=False, id="all.back", tooltip="Back to where it began"
        ),
        Binding("q", "back", "Back", id="all.leave", tooltip="Back to where it began"),
        Binding(
            "u", "undo", "Undo", show=False, id="all.undo", tooltip="Take back what was done last"
        ),
        Binding("U", "redo", "Redo", show=False, id="all.redo", tooltip="Take the last undo back"),
    ]

    def __init__(self, hub: Hub) -> None:
        super().__init__()
        self.hub = hub
        self._stamp: object = None
        self._settling = False
        self._looking = False

    @property
    def the_app(self) -> AdapterHubApp:
        """The application, by its own type."""
        return cast("AdapterHubApp", self.app)

    # The frame

    def compose(self) -> ComposeResult:
        yield TopBar(self.PLACE)
        yield from self.body()
        yield Lazy(Footer(show_command_palette=False))

    def body(self) -> ComposeResult:
        """What stands between the bar and the keys."""
        yield from ()

    def on_mount(self) -> None:
        self.set_interval(POLL_SECONDS, self._look)

    # What a screen overrides

    def arrive(self, **given: object) -> None:
        """Called when `app.go` leads here, with what it was given."""

    def command_line(self) -> str:
        """The command line that shows or does what this screen is about; empty where there is none."""
        return ""

    def stamp(self) -> object:
        """Changes whenever `changed` should be called. Asked in a thread, about once a second."""
        from adapterhub.tui.watching import names_stamp

        return names_stamp(self.hub.store)

    def changed(self) -> None:
        """Another process, or this one, has changed what `stamp` looks at."""

    def job_ended(self, record: RunRecord) -> None:
        """Work that was started from this application has ended."""

    # Asking the hub

    async def ask(
        self,
        question: Callable[Question, Answer],
        *args: Question.args,
        **kwargs: Question.kwargs,
    ) -> Answer:
        """The answer of `question(...)`, asked in a thread. Where it finds this screen left, nobody hears it."""
        try:
            return await in_thread(question, *args, **kwargs)
        finally:
            if not self.app.is_running or self not in self.the_app.open_screens:
                raise asyncio.CancelledError

    def _look(self) -> None:
        # A store that answers slowly is asked once, not once a second; a screen below another waits.
        if not self._looking and self.is_current:
            self._looking = True
            self.look_for_changes()

    @work(group="poll")
    async def look_for_changes(self) -> None:
        """Calls `changed` where the stamp differs.

        And once more at the next look: the journal is written just before the ref it speaks of.
        """
        try:
            found = await self.ask(self.stamp)
        except Exception:  # noqa: BLE001 - the screen's own reading says what is wrong
            found = None
        finally:
            self._looking = False
        differs, settling = found != self._stamp, self._settling
        self._stamp, self._settling = found, differs
        if differs or settling:
            self.changed()

    # Telling and asking the user

    def refuse(self, error: Exception, title: str = "Not done") -> None:
        """Says an error in the command line's words."""
        self.notify(str(Problem.of(error)), title=title, severity="error", markup=False, timeout=10)

    async def confirm(
        self, question: str, consequences: Sequence[str] = (), line: str = "", *, yes: str = "Yes"
    ) -> bool:
        """Whether the user wants it, told what follows. Only within a worker.

        Args:
            question: "Remove support/tone:v1?"
            consequences: a line each: what is freed, lost, used by whom.
            line: the command line that does the same.
            yes: the label of the button that does it.
        """
        from adapterhub.tui.screens.confirm import ConfirmScreen

        return (
            await self.app.push_screen_wait(ConfirmScreen(question, consequences, line, yes))
            or False
        )

    async def ask_text(
        self,
        question: str,
        *,
        value: str = "",
        hint: str = "",
        check: Callable[[str], str] | None = None,
    ) -> str | None:
        """A line that the user types, or None. Only within a worker. `check` gives the words against a text, or ""."""
        from adapterhub.tui.screens.confirm import TextScreen

        return await self.app.push_screen_wait(TextScreen(question, value, hint, check))

    def copy(self, line: str) -> None:
        """Puts a command line into the clipboard, and says which."""
        self.app.copy_to_clipboard(line)
        self.notify(line, title="Copied", markup=False, timeout=3)

    # Keys that work everywhere

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Keys that would do nothing where the user is are not offered."""
        if self.forbids(action):
            return False
        if action == "back":
            return not self.PLACE
        return True

    def forbids(self, action: str) -> bool:
        """Whether the action changes something where nothing may be changed."""
        return self.hub.readonly and (action in self.CHANGES or action in ("undo", "redo"))

    def say_readonly(self) -> None:
        """Why a key does nothing."""
        self.notify("Nothing is changed.", title="Read-only", severity="warning", timeout=3)

    def action_copy_command(self) -> None:
        line = self.command_line()
        if line:
            self.copy(line)

    def action_back(self) -> None:
        self.dismiss()

    @property
    def _itself(self) -> Any:
        """This screen. Seen by path and by name it is two classes to a type checker, so it is told neither."""
        return self

    @work(group="undo")
    async def action_undo(self) -> None:
        from adapterhub.tui.undoing import undo

        await undo(self._itself)

    @work(group="undo")
    async def action_redo(self) -> None:
        from adapterhub.tui.undoing import redo

        await redo(self._itself)
