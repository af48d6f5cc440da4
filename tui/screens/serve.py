"""The Serve place: the plan of a new server with its checklist, and the servers that run, live and changed while they run.

`planned` and `serving` are all there is to know; whatever happens makes new ones, and the watchers draw them. Servers are
asked about once a second, in a thread; those that were started elsewhere appear by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.timer import Timer
from textual.widgets import Input, Log, OptionList, Static
from textual.widgets.option_list import Option

from adapterhub.cli.output import clean
from adapterhub.tui.hub import Hub
from adapterhub.tui.problem import Problem
from adapterhub.tui.screens.base import POLL_SECONDS, HubScreen
from adapterhub.tui.serving import asking, changing
from adapterhub.tui.serving.state import PLAN, Planned, Serving
from adapterhub.tui.serving.words import about, checklist, headline
from adapterhub.tui.widgets.detail_pane import Sections
from adapterhub.tui.widgets.form import FormChanged
from adapterhub.tui.widgets.server_table import ServerTable
from adapterhub.tui.widgets.setting_form import SettingForm

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord
    from adapterhub.serve.watching import Watch
    from adapterhub.tail import Tail

DEBOUNCE_SECONDS = 0.3
MOST_LINES = 2000
_NEW = "plan"


class ServeScreen(HubScreen):
    """What is served, and what might be."""

    PLACE = "serve"
    ABOUT = (
        "Here a server is planned, started, watched and changed. The plan is what `adapterhub serve --dry-run` says: each"
        " check with its mark (✓ well, ! to know, ✗ refused, – not known), and the memory it takes. A server goes on when this"
        " screen is closed, and one that was started elsewhere appears by itself. Names can be added, moved to other versions,"
        " taken back and removed while it answers. Clients ask the door, an HTTP server in front of vLLM that loads adapters as"
        " they are asked for. f1 on a setting says what it means."
    )
    CHANGES = frozenset({"start", "update", "rollback", "verify", "stop"})
    CSS_PATH = "../styles/serve.tcss"
    AUTO_FOCUS = "#chosen"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+r", "start", "Start", id="serve.start", tooltip="Start a server as planned"),
        Binding("a", "add", "Add", id="serve.add", tooltip="Add an adapter: to the plan, or to the server while it runs"),
        Binding("d", "remove", "Remove", id="serve.remove", tooltip="Take an adapter out of the plan, or a name off the server"),
        Binding("o", "update", "Update", id="serve.update", tooltip="Let a name mean another version, or split it between several"),
        Binding("b", "rollback", "Back", id="serve.rollback", tooltip="Let a name mean what it meant before"),
        Binding("V", "verify", "Verify", show=False, id="serve.verify", tooltip="Ask everything again: does each answer as it was trained?"),
        Binding("l", "logs", "Logs", id="serve.logs", tooltip="Show or hide vLLM's log as it grows"),
        Binding("x", "stop", "Stop", id="serve.stop", tooltip="Stop the server; running answers finish first"),
        Binding("p", "chat", "Chat", id="serve.chat", tooltip="Ask several of them the same, side by side"),
        Binding("n", "new", "New", show=False, id="serve.new", tooltip="Plan a new server"),
        Binding("r", "reload", "Reload", show=False, id="serve.reload", tooltip="Look again"),
    ]  # fmt: skip

    planned: reactive[Planned] = reactive(Planned())
    serving: reactive[Serving] = reactive(Serving())

    def __init__(self, hub: Hub, names: Sequence[str] = ()) -> None:
        super().__init__(hub)
        self.set_reactive(ServeScreen.planned, Planned(tuple(names)))
        self._watch: Watch | None = None
        self._asking = False
        self._again = False
        self._started: set[str] = set()
        self._soon: Timer | None = None
        self._tail: Tail | None = None
        self._reading = False

    def body(self) -> ComposeResult:
        yield OptionList(id="servers", classes="panel", compact=True)
        with Horizontal(id="plan"):
            with Vertical(id="choice"):
                yield OptionList(id="chosen", classes="panel", compact=True)
                yield SettingForm()
            with VerticalScroll(id="checks", classes="panel"):
                yield Sections()
        with Vertical(id="server"):
            with VerticalScroll(id="about", classes="panel"):
                yield Sections()
            yield ServerTable()
            yield Log(id="log", classes="panel", max_lines=MOST_LINES)
        yield Static(id="line", markup=False)

    def on_mount(self) -> None:
        titles = (("#servers", "Servers"), ("#chosen", "Adapters"), ("#checks", "Checklist"), ("#about", "Server"), ("#log", "vLLM's log"))  # fmt: skip
        for selector, title in titles:
            self.query_one(selector).border_title = Content(title)
        self.query_one("#log").border_subtitle = Content("l hides it")
        self.planned = replace(self.planned, values=self.query_one(SettingForm).values)
        self.look_soon()
        self._poll()
        self.set_interval(POLL_SECONDS, self._poll)
        self.set_interval(POLL_SECONDS / 2, self._follow_log)

    def on_screen_resume(self) -> None:
        self._poll()

    # What comes from elsewhere

    def arrive(self, **given: object) -> None:
        """Adapters that were chosen in the library."""
        names = given.get("names")
        if isinstance(names, list | tuple):
            self.choose([str(name) for name in names])

    def choose(self, names: Sequence[str]) -> None:
        """Plans a server of these adapters."""
        self.serving = self.serving.show(PLAN)
        self.planned = replace(self.planned, names=tuple(dict.fromkeys(names)), stale=True)

    def job_ended(self, record: RunRecord) -> None:
        if record.id in self._started:
            self.serving = asking.ended(self.serving, record)
        elif record.kind == changing.VERIFYING:
            self._tell_verified(record)
        self._poll()

    def command_line(self) -> str:
        look = self.serving.current
        if self.serving.shown == PLAN:
            return self.planned.line
        return asking.ls_line(look)

    # The plan

    def on_form_changed(self, event: FormChanged) -> None:
        event.stop()
        values = self.query_one(SettingForm).values
        if values != self.planned.values and self.planned.values:
            self.planned = replace(self.planned, values=values, stale=True)

    def look_soon(self) -> None:
        """Looks at the plan once nothing has been typed for a moment."""
        if self._soon is not None:
            self._soon.stop()
        self._soon = self.set_timer(DEBOUNCE_SECONDS, self.look_at_plan)

    @work(exclusive=True, group="plan")
    async def look_at_plan(self) -> None:
        """Everything that is looked at before a start. What was asked before something changed is dropped."""
        asked = self.planned
        seen = await self.ask(asking.look_at, self.hub.store, asked)
        if (asked.names, asked.values) == (self.planned.names, self.planned.values):
            self.planned = seen

    # The servers

    def _poll(self) -> None:
        if self._asking:
            self._again = True
        elif self.is_current or not self.serving.looked:
            self._asking = True
            self.look_at_servers()

    @work(group="servers")
    async def look_at_servers(self) -> None:
        """Asks every server. Those that are gone are told."""
        try:
            if self._watch is None:
                self._watch = await self.ask(asking.watch, self.hub.store)
            looks = await self.ask(self._watch.look)
            before = self.serving.looks
            self.serving, gone = self.serving.seen(looks)
            for look in gone:
                if look.run not in self._started and before:
                    self.notify(f"{look.url or look.run} has ended.", title="Server", severity="warning", markup=False)  # fmt: skip
            for run in self.serving.ended:
                record = await self.ask(self._watch.ended, run)
                self.serving = self.serving.told(run, record)
        except Exception as error:  # noqa: BLE001 - a screen outlives whatever a store can do to it
            self.serving = replace(self.serving, problem=Problem.of(error), looked=True)
        finally:
            self._asking = False
        if self._again:
            self._again = False
            self._poll()

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        if event.option_list.id == "servers" and event.option_list.has_focus:
            run = event.option_id or _NEW
            self.serving = self.serving.show(PLAN if run == _NEW else run)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        if event.option_list.id == "servers":
            run = event.option_id or _NEW
            self.serving = self.serving.show(PLAN if run == _NEW else run)
            self._focus_shown()

    @work(group="log", exclusive=True)
    async def read_log(self) -> None:
        """Writes what has come since the last look."""
        look = self.serving.current
        if look is None:
            self._reading = False
            return
        try:
            if self._tail is None or self._tail.log != look.log_file:
                self._tail = await self.ask(asking.tail, look.log_file)
                self.query_one(Log).clear()
            lines = await self.ask(self._tail.new, MOST_LINES)
            self.query_one(Log).write_lines(clean(line) for line in lines)
        finally:
            self._reading = False

    def _follow_log(self) -> None:
        if self.has_class("-logs") and self.is_current and not self._reading:
            self._reading = True
            self.read_log()

    # What the user does

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """The plan and a server have different keys."""
        if action == "back":
            return isinstance(self.focused, Input)
        planning = self.serving.shown == PLAN
        asked = self.serving.current is not None and self.serving.current.status is not None
        if action in ("add", "remove"):
            return planning or (asked and not self.hub.readonly)
        if action == "start" and not planning:
            return False
        if action in ("update", "rollback", "verify") and not asked:
            return False
        if action in ("stop", "logs", "new") and planning:
            return False
        return super().check_action(action, parameters)

    def action_back(self) -> None:
        """Out of a field."""
        self.query_one("#chosen").focus()

    def action_new(self) -> None:
        self.serving = self.serving.show(PLAN)
        self._focus_shown()

    def action_reload(self) -> None:
        self.planned = replace(self.planned, stale=True)
        self._poll()

    def action_logs(self) -> None:
        self.toggle_class("-logs")
        self._follow_log()

    def action_chat(self) -> None:
        names: Sequence[str] = self.planned.names
        look = self.serving.current
        if look is not None and look.status is not None:
            names = ["base", *(alias["name"] for alias in look.status["aliases"])]
        self.the_app.visit("chat", names=tuple(names))

    @work(group="change")
    async def action_start(self) -> None:
        if not self.planned.startable:
            said = "It is still being looked at." if self.planned.stale else "See what is marked ✗."
            self.notify(said, title="Not like this", severity="warning", markup=False)
            return
        try:
            words = await self.ask(asking.words, self.planned)
            title = f"serve {' '.join(self.planned.names)}"
            run = await self.the_app.start(words, title=title)
        except Exception as error:  # noqa: BLE001 - told, and the screen goes on
            self.refuse(error, "Not started")
            return
        self._started.add(run)
        self.serving = self.serving.show(run)
        self._poll()

    @work(group="change")
    async def action_add(self) -> None:
        look = self.serving.current
        taken = set(self.planned.names)
        if look is not None and look.status is not None:
            taken = {alias["name"] for alias in look.status["aliases"]}
        name = await changing.pick(self, taken)
        if name is None:
            return
        if look is None:
            self.planned = replace(self.planned, names=(*self.planned.names, name), stale=True)
        else:
            await changing.add(self, look, name)
            self._poll()

    @work(group="change")
    async def action_remove(self) -> None:
        look = self.serving.current
        if look is not None:
            await self._with_name(changing.remove)
            return
        place = self.query_one("#chosen", OptionList).highlighted
        if place is not None and place < len(self.planned.names):
            names = list(self.planned.names)
            del names[place]
            self.planned = replace(self.planned, names=tuple(names), stale=True)

    @work(group="change")
    async def action_update(self) -> None:
        await self._with_name(changing.update)

    @work(group="change")
    async def action_rollback(self) -> None:
        await self._with_name(changing.rollback)

    @work(group="change")
    async def action_verify(self) -> None:
        if look := self.serving.current:
            await changing.verify(self, look)

    @work(group="change")
    async def action_stop(self) -> None:
        if look := self.serving.current:
            await changing.stop(self, look)
            self._poll()

    async def _with_name(self, change: changing.Change) -> None:
        """A change of the name under the cursor."""
        look, row = self.serving.current, self.query_one(ServerTable).current
        if look is not None and row is not None:
            await change(self, look, row)
            self._poll()

    @work(group="verified")
    async def _tell_verified(self, record: RunRecord) -> None:
        """A verification from here has ended: what it found stands where the start's report stood."""
        report = await self.ask(asking.report_of, record)
        if report is not None:
            self.serving = asking.with_report(self.serving, record, report)
            if self._watch is not None:
                self._watch.remember(asking.server_of(self.serving, record), report)

    # How it is drawn

    def watch_planned(self, before: Planned, now: Planned) -> None:
        if not self.is_mounted:
            return
        self.query_one("#checks Sections", Sections).sections = checklist(now)
        if before.names != now.names or not self.query_one("#chosen", OptionList).option_count:
            _fill(
                self.query_one("#chosen", OptionList), [(name, clean(name)) for name in now.names]
            )
        if now.stale and not (before.stale and before == now):
            self.look_soon()
        self._draw_line()

    def watch_serving(self, before: Serving, now: Serving) -> None:
        if not self.is_mounted:
            return
        servers = self.query_one("#servers", OptionList)
        self.set_class(bool(now.all), "-some")
        self.set_class(now.shown != PLAN, "-server")
        options = [(look.run, headline(asking.as_it_is(now, look))) for look in now.all]
        _fill(servers, [*options, (_NEW, "+ a new server")])
        places = [run for run, _ in options]
        servers.highlighted = places.index(now.shown) if now.shown in places else len(places)
        self.query_one("#about Sections", Sections).sections = about(now)
        rows = asking.served(now.current)
        self.set_class(not rows, "-unserved")
        self.query_one(ServerTable).show(rows)
        if before.shown != now.shown:
            self._tail = None
            self.query_one(Log).clear()
            self._follow_log()
            if not servers.has_focus:
                self.call_after_refresh(self._focus_shown)
        self._draw_line()
        self.refresh_bindings()

    def _focus_shown(self) -> None:
        """What has just come in view."""
        self.query_one("#chosen" if self.serving.shown == PLAN else ServerTable).focus()

    def _draw_line(self) -> None:
        line = self.command_line()
        if self.serving.problem is not None and self.serving.shown == PLAN:
            line = f"! {self.serving.problem.what}  {line}"
        self.query_one("#line", Static).update(clean(line))


def _fill(choices: OptionList, options: Sequence[tuple[str, str]]) -> None:
    """Draws these options (id, text), with the cursor where it was, if they aren't drawn already."""
    texts: list[Any] = [Content(text) for _, text in options]
    drawn = [choices.get_option_at_index(i) for i in range(choices.option_count)]
    if [(one.id, one.prompt) for one in drawn] == list(zip((i for i, _ in options), texts, strict=True)):  # fmt: skip
        return
    before = choices.highlighted
    choices.clear_options()
    choices.add_options([Option(text, id=key) for (key, _), text in zip(options, texts, strict=True)])  # fmt: skip
    if options:
        choices.highlighted = min(before or 0, len(options) - 1)
