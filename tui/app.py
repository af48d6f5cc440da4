"""The application: its places, the screens on top of them, the work it starts, and the keys that work everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual import work
from textual._path import CSSPathType
from textual.actions import ActionParseResult, parse
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.reactive import reactive
from textual.screen import Screen
from textual.worker import WorkerFailed

from adapterhub.store import Store
from adapterhub.tui.hub import Hub, in_thread
from adapterhub.tui.inorder import InOrder
from adapterhub.tui.palette import Actions
from adapterhub.tui.personal import Choices, PersonalApp
from adapterhub.tui.places import PLACES, VISITS, make
from adapterhub.tui.problem import Problem

if TYPE_CHECKING:
    from adapterhub.jobs import Job
    from adapterhub.runs import RunRecord
    from adapterhub.tui.screens.base import HubScreen

_LOOK_SECONDS = 0.2
"""How often a job's process is asked whether it has ended."""


class AdapterHubApp(InOrder, PersonalApp):
    """The terminal UI on one store."""

    TITLE = "adapterhub"
    # What the start needs, parsed in one go.
    CSS_PATH: ClassVar[CSSPathType | None] = ["app.tcss", "styles/library.tcss"]
    DEFAULT_MODE = "library"
    COMMANDS = App.COMMANDS | {Actions}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "question_mark,f1",  # f1 within a text, where ? is a character
            "help",
            "Help",
            key_display="?",
            id="app.help",
            tooltip="What is on screen, and all keys",
        ),
        Binding(
            "ctrl+o",
            "jump",
            "Jump",
            show=False,
            id="app.jump",
            tooltip="Jump to a part of the screen",
        ),
        *(
            Binding(
                place.key,
                f"go('{place.id}')",
                place.title,
                show=False,
                id=f"app.{place.id}",
                tooltip=f"{place.title}: {place.about[0].lower()}{place.about[1:]}",
            )
            for place in PLACES
        ),
        Binding(
            "q", "leave", "Quit", id="app.quit", tooltip="Back, or leave; what was started goes on"
        ),
    ]

    running_jobs: reactive[int] = reactive(0)
    """Work that was started from here and hasn't ended."""

    def __init__(self, hub: Hub | Store, choices: Choices | None = None) -> None:
        super().__init__(Hub.of(hub) if isinstance(hub, Store) else hub, choices)
        self._jobs: list[Job] = []
        for place in PLACES:
            self.add_mode(place.id, partial(make, place.screen, self.hub))

    # Where one is

    async def go(self, place: str, **given: object) -> None:
        """Leads to one of the places, and tells its screen what it was given (`HubScreen.arrive`)."""
        await self.switch_mode(place)
        while len(self.screen_stack) > 1:
            await self.pop_screen()
        if given:
            self._at(self.screen).arrive(**given)

    def visit(self, what: str, **given: object) -> None:
        """Opens one of VISITS on top of where the user is."""
        self.push_screen(make(VISITS[what], self.hub, **given))

    @property
    def open_screens(self) -> list[HubScreen]:
        """Every screen of ours that is open, seen or not."""
        from adapterhub.tui.screens.base import HubScreen

        found = [one for stack in self._screen_stacks.values() for one in stack]
        return [one for one in found if isinstance(one, HubScreen)]

    @staticmethod
    def _at(screen: Screen[Any]) -> HubScreen:
        from adapterhub.tui.screens.base import HubScreen

        assert isinstance(screen, HubScreen), "a place is a screen on the hub"
        return screen

    # Work

    async def start(self, words: Sequence[str], *, title: str) -> str:
        """Starts `adapterhub WORDS` as a run that outlives the screen; returns the run's id.

        Its end is told in a toast, and to every open screen (`HubScreen.job_ended`). Raises AdapterHubError where it
        can't be started.
        """
        from adapterhub.jobs import start

        store = self.hub.store
        job = await in_thread(
            start, store.runs_dir, list(words), kind=words[0], title=title, home=store.home
        )
        self._jobs.append(job)
        self.running_jobs += 1
        self._follow(job)
        return job.run.id

    @work(group="jobs")
    async def _follow(self, job: Job) -> None:
        """Waits for the end of a job. By looking: a thread that waits would keep the application from leaving."""
        from adapterhub.runs import read_run

        while job.process.poll() is None:  # noqa: ASYNC110 - a process sets no event
            await asyncio.sleep(_LOOK_SECONDS)
        self._jobs.remove(job)
        self.running_jobs -= 1
        try:
            record = await in_thread(read_run, job.run.path)
        except Exception as error:  # noqa: BLE001 - its folder may be gone
            self.notify(str(Problem.of(error)), severity="error", markup=False)
            return
        self._tell(record)
        for screen in self.open_screens:
            screen.job_ended(record)

    def _tell(self, record: RunRecord) -> None:
        from adapterhub.tui.outcome import outcome

        title, text, severity = outcome(record)
        self.notify(text, title=title, severity=severity, markup=False, timeout=8)

    # A fault of ours

    @property
    def failure(self) -> Exception | None:
        """What ended the application before its time."""
        found = self._exception
        return found.error if isinstance(found, WorkerFailed) else found  # type: ignore[return-value]

    def _fatal_error(self) -> None:
        """Leaves without a word: the command tells `failure` as it tells any other error."""
        self._close_messages_no_wait()

    # Keys

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Does it, or says that nothing is changed here: a key that is refused is never silent."""
        from adapterhub.tui.screens.base import HubScreen

        _, name, _ = parse(action) if isinstance(action, str) else action
        if isinstance(default_namespace, HubScreen) and default_namespace.forbids(name):
            default_namespace.say_readonly()
            return True
        return await super().run_action(action, default_namespace, namespaces)

    async def action_go(self, place: str) -> None:
        await self.go(place)

    def action_help(self) -> None:
        """Explains the focused part, the screen, and their keys."""
        from adapterhub.tui.screens.help import HelpScreen

        focused = self.screen.focused
        abouts = [getattr(focused, "HELP", None), getattr(self.screen, "ABOUT", None)]
        self.push_screen(
            HelpScreen(
                tuple(str(about) for about in abouts if about),
                list(self.screen.active_bindings.values()),
                str(self.hub.store.home),
            )
        )

    def action_jump(self) -> None:
        """Letters on everything that can have the focus."""
        from adapterhub.tui.jump import JumpScreen

        self.push_screen(JumpScreen())

    async def action_leave(self) -> None:
        """Back from a screen on top of a place; from a place, out."""
        if len(self.screen_stack) > 1:
            await self.pop_screen()
        else:
            self.exit()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """A dialog is answered before one goes anywhere."""
        leads_away = action in ("go", "jump", "help", "leave")
        return not (leads_away and self.screen.is_modal)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """What the palette has beside our own actions."""
        yield SystemCommand("Theme", "Change the colours", self.action_change_theme)
        yield SystemCommand(
            "Screenshot",
            "Save a picture of the screen (SVG)",
            lambda: self.set_timer(0.1, self.deliver_screenshot),
        )
