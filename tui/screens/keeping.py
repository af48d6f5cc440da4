"""What the store may forget, and whether it holds what it recorded: `gc` and `fsck` with what they would do, before it is done."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widgets import Static

from adapterhub.cli.output import clean
from adapterhub.tui.hub import Hub
from adapterhub.tui.past import keeping
from adapterhub.tui.past.keeping import Checked, Left, Tidy
from adapterhub.tui.screens.base import HubScreen
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.line_table import LineTable
from adapterhub.words import human_size

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord

DRAW_SECONDS = 0.3


class GcScreen(HubScreen):
    """What a collection of garbage would take."""

    ABOUT = (
        "What no name, lease or recent change leads to: adapters that lost their last name, files that only they had, what"
        " killed processes left. A collection moves it into the trash, and deletes for good what has been there long enough."
        " undo brings back what is in the trash. Below stands what is spared, and why."
    )
    CHANGES = frozenset({"collect"})
    CSS_PATH = "../styles/keeping.tcss"
    AUTO_FOCUS = "LineTable"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "collect", "Collect", id="gc.collect", tooltip="Move all this to the trash"),
        Binding("r", "reload", "Reload", id="gc.reload", tooltip="Look again"),
    ]

    state: reactive[Tidy] = reactive(Tidy())

    def body(self) -> ComposeResult:
        yield LineTable("Garbage", keeping.GARBAGE, id="found")
        yield Static("reading …", id="words", classes="panel", markup=False)

    def on_mount(self) -> None:
        self.query_one("#words").border_title = Content("What a collection would do")
        self.reload()

    def changed(self) -> None:
        self.reload()

    def job_ended(self, record: RunRecord) -> None:
        self.reload()

    def command_line(self) -> str:
        return "adapterhub gc --dry-run"

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "collect" and self.state.nothing:
            return False
        return super().check_action(action, parameters)

    @work(exclusive=True, group="plan")
    async def reload(self) -> None:
        self.state = await self.ask(keeping.tidy, self.hub.store)

    def action_reload(self) -> None:
        self.reload()

    @work(group="collect")
    async def action_collect(self) -> None:
        line = "adapterhub gc --yes"
        follows = [*self.state.words[:3], "undo brings back what went to the trash"]
        if not await self.confirm("Collect the garbage?", follows, line, yes="Collect"):
            return
        try:
            await self.the_app.start(["gc", "--yes"], title="Collect garbage")
        except Exception as error:  # noqa: BLE001 - told, and the screen goes on
            self.refuse(error, "Not collected")

    def watch_state(self, before: Tidy, now: Tidy) -> None:
        if not self.is_mounted:
            return
        table = self.query_one(LineTable)
        table.display = bool(now.lines)
        self.set_class(not now.lines, "-nothing")
        table.show(now.lines)
        said = str(now.problem) if now.problem else "\n".join(now.words) or "reading …"
        self.query_one("#words", Static).update(clean(said, keep_newlines=True))
        self.refresh_bindings()


class FsckScreen(HubScreen):
    """Whether the store holds what it recorded."""

    ABOUT = (
        "Every name is followed to its adapter and its files, and every document must be what its name says. d reads the"
        " files' bytes as well, which takes as long as the disk needs. For each damage it says which adapters, merges and"
        " servers are concerned. R looks for what is lost everywhere it may be, and sets aside what can't be mended."
    )
    CHANGES = frozenset({"repair"})
    CSS_PATH = "../styles/keeping.tcss"
    AUTO_FOCUS = "LineTable"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "check", "Check", id="fsck.check", tooltip="Check again"),
        Binding("d", "deep", "Read data", id="fsck.deep", tooltip="Check again, and read every byte of every file"),
        Binding("R", "repair", "Repair", id="fsck.repair", tooltip="Mend what is damaged from other copies"),
    ]  # fmt: skip

    state: reactive[Checked] = reactive(Checked())

    def __init__(self, hub: Hub) -> None:
        super().__init__(hub)
        self._read = 0
        self._at = 0

    def body(self) -> ComposeResult:
        yield LineTable("Findings", keeping.FINDINGS, id="found")
        with VerticalScroll(id="about", classes="panel"):
            yield Sections()
        yield Static("", id="words", classes="panel", markup=False)

    def on_mount(self) -> None:
        self.query_one("#about").border_title = Content("Finding")
        self.query_one("#words").border_title = Content("Check")
        self.watch_state(self.state, self.state)
        self.check(deep=False)
        self.set_interval(DRAW_SECONDS, self._draw_progress)

    def command_line(self) -> str:
        return "adapterhub fsck" + (" --read-data" if self.state.deep else "")

    def job_ended(self, record: RunRecord) -> None:
        if record.kind == "fsck":
            self.check(deep=self.state.deep)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("check", "deep", "repair") and self.state.running:
            return False
        if action == "repair" and not self.state.damages:
            return False
        return super().check_action(action, parameters)

    @work(exclusive=True, group="check")
    async def check(self, *, deep: bool) -> None:
        """Checks the store, in a thread that ends when the screen does."""
        self.state = Checked(running=True, deep=deep)
        self._read = 0
        self.state = await self.ask(keeping.checked, self.hub.store, deep, self._tell)

    def _tell(self, size: int) -> None:
        """Called in the thread."""
        if not self.is_attached:
            raise Left
        self._read += size

    def _draw_progress(self) -> None:
        if self.state.running and self._read != self.state.read:
            self.state = replace(self.state, read=self._read)

    def action_check(self) -> None:
        self.check(deep=False)

    def action_deep(self) -> None:
        self.check(deep=True)

    @work(group="repair")
    async def action_repair(self) -> None:
        words = ["fsck", "--repair", *(["--read-data"] if self.state.deep else [])]
        follows = [
            "What is lost is looked for in the trash, where adapters came from, in caches and on the Hub",
            "What can't be mended is set aside in the store's quarantine/; nothing is deleted",
        ]
        line = " ".join(["adapterhub", *words])
        if not await self.confirm(f"Repair? {self.state.verdict}", follows, line, yes="Repair"):
            return
        try:
            await self.the_app.start(words, title="Repair the store")
        except Exception as error:  # noqa: BLE001 - told, and the screen goes on
            self.refuse(error, "Not repaired")

    def on_line_table_moved(self, event: LineTable.Moved) -> None:
        event.stop()
        places = [line.key for line in self.state.lines]
        if event.key in places:
            self._at = places.index(event.key)
            self._draw_finding()

    def _draw_finding(self) -> None:
        about = self.state.about
        found = about[min(self._at, len(about) - 1)] if about else ()
        self.query_one("#about Sections", Sections).sections = found

    def watch_state(self, before: Checked, now: Checked) -> None:
        if not self.is_mounted:
            return
        table = self.query_one(LineTable)
        table.display = bool(now.lines)
        self.set_class(not now.lines, "-nothing")
        self.query_one("#about").display = bool(now.lines)
        table.show(now.lines)
        self._draw_finding()
        said = str(now.problem) if now.problem else now.verdict
        if now.running:
            said = "checking …" + (f" {human_size(now.read)} read" if now.read else "")
        self.query_one("#words", Static).update(clean(said, keep_newlines=True))
        self.refresh_bindings()
