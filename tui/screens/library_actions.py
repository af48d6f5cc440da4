"""What the library's keys do to adapters: to the marked ones, else to the one under the cursor.

Dialogs are imported when they are first opened: nobody waits for them at the start.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar, ParamSpec, TypeVar

from textual import work
from textual.binding import Binding, BindingType
from textual.reactive import reactive

from adapterhub.errors import AdapterHubError, UsageError
from adapterhub.names import Name, parse_name
from adapterhub.store import Resolved, Store
from adapterhub.tui.library.model import SORTS, Library
from adapterhub.tui.library.reading import gates_before, known_bases, misfits, removal
from adapterhub.tui.library.rows import Row, full_name
from adapterhub.tui.outcome import Result
from adapterhub.tui.problem import Problem
from adapterhub.tui.screens.base import HubScreen
from adapterhub.words import counted, some

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord

FILTERS = "filters"
"""Under which the saved filters are remembered: name -> filter."""
_NEEDS_ROWS = frozenset(
    [
        "compare",
        "evaluations",
        "merge",
        "export",
        "serve",
        "chat",
        "tag",
        "remove",
        "mark_all",
        "invert",
        "sort",
        "reverse",
        "base",
    ]
)
_PATIENCE_SECONDS = 1.0
"""How long a change may take before something is said."""

Question = ParamSpec("Question")
Done = TypeVar("Done")


class LibraryActions(HubScreen):
    """The part of the library screen that does things."""

    CHANGES: ClassVar[frozenset[str]] = frozenset(("add", "tag", "remove"))
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("a", "add", "Add", id="library.add", tooltip="Put an adapter in, from a folder or the Hub"),
        Binding("c", "compare", "Compare", id="library.compare", tooltip="Hold two or more adapters side by side"),
        Binding("v", "evaluations", "Evaluations", show=False, id="library.evaluations", tooltip="What they were evaluated on, side by side with the base"),
        Binding("m", "merge", "Merge", id="library.merge", tooltip="Merge the marked adapters"),
        Binding("e", "export", "Export", show=False, id="library.export", tooltip="Bake it into a whole model"),
        Binding("S", "serve", "Serve", show=False, id="library.serve", tooltip="Serve them with vLLM"),
        Binding("p", "chat", "Chat", show=False, id="library.chat", tooltip="One prompt to all of them, side by side"),
        Binding("T", "tag", "Tag", show=False, id="library.tag", tooltip="Give another name; to several, a tag"),
        Binding("d,delete", "remove", "Remove", key_display="d", id="library.remove", tooltip="Remove names; u undoes it"),
        Binding("A", "mark_all", "Mark all", show=False, id="library.mark_all", tooltip="Mark all that are listed, or none"),
        Binding("asterisk", "invert", "Invert", key_display="*", show=False, id="library.invert",
                tooltip="Mark what isn't marked, and the other way round"),
        Binding("s", "sort", "Sort", show=False, id="library.sort", tooltip="Sort by the next column; a click on a title too"),
        Binding("R", "reverse", "Reverse", show=False, id="library.reverse", tooltip="The other way round"),
        Binding("b", "base", "Base", show=False, id="library.base", tooltip="Choose a base; x marks who doesn't fit it"),
        Binding("F", "filters", "Filters", show=False, id="library.filters", tooltip="Take or forget a saved filter"),
    ]  # fmt: skip

    state: reactive[Library] = reactive(Library())
    _added = ""
    """The run that adds an adapter, to select it when it is there."""

    # What the screen itself brings

    def read_again(self) -> None:
        raise NotImplementedError

    def filter_by(self, query: str) -> None:
        raise NotImplementedError

    def select(self, name: str) -> None:
        raise NotImplementedError

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """In an empty store there is nothing to do anything to."""
        if action in _NEEDS_ROWS and not self.state.rows:
            return False
        return super().check_action(action, parameters)

    # Marks and order

    def action_mark_all(self) -> None:
        self.state = self.state.marking_all()

    def action_invert(self) -> None:
        self.state = self.state.inverted()

    def action_sort(self) -> None:
        following = SORTS[(SORTS.index(self.state.sort) + 1) % len(SORTS)]
        self.state = replace(self.state, sort=following, reverse=False).ordered()
        self.notify(f"By {following}. R turns it round.", timeout=2)

    def action_reverse(self) -> None:
        self.state = replace(self.state, reverse=not self.state.reverse).ordered()

    def sort_by(self, key: str) -> None:
        """As a click on a title does: the second one turns it round."""
        for known in SORTS:
            if known == key:
                again = known == self.state.sort
                self.state = replace(
                    self.state, sort=known, reverse=again and not self.state.reverse
                ).ordered()

    # On to other screens

    def action_compare(self) -> None:
        if names := self._several("compare"):
            self.the_app.visit("compare", names=names)

    def action_evaluations(self) -> None:
        if names := self._names():
            self.the_app.visit("evaluations", names=names)

    def action_merge(self) -> None:
        if names := self._several("merge"):
            self.the_app.visit("merge", names=names)

    def action_export(self) -> None:
        if names := self._names():
            self.the_app.visit("export", names=names)

    def action_chat(self) -> None:
        if names := self._names():
            self.the_app.visit("chat", names=names)

    async def action_serve(self) -> None:
        if names := self._names():
            await self.the_app.go("serve", names=names)

    def _names(self) -> tuple[str, ...]:
        return tuple(row.name for row in self.state.chosen)

    def _several(self, what: str) -> tuple[str, ...]:
        """The names, where there are two or more; else it is said how to choose them."""
        names = self._names()
        if len(names) < 2:
            self.notify(
                f"Mark two or more with space, then {what} them.",
                title="One is too few",
                markup=False,
            )
            return ()
        return names

    # Adding

    @work(exclusive=True, group="dialog")
    async def action_add(self) -> None:
        from adapterhub.tui.screens.add import AddScreen

        bases = await self.ask(_base_labels, self.hub.store)
        words = await self.app.push_screen_wait(AddScreen(bases))
        if words is None:
            return
        try:
            self._added = await self.the_app.start(words, title=f"Add {words[1]}")
        except AdapterHubError as error:
            self.refuse(error, "Not added")
            return
        self.notify(shlex.join(["adapterhub", *words]), title="Adding", markup=False, timeout=4)

    def job_ended(self, record: RunRecord) -> None:
        name = record.result.get("name")
        if record.id == self._added and record.state == "done" and isinstance(name, str):
            self.select(name)
        else:
            self.read_again()

    # Other names

    @work(exclusive=True, group="dialog")
    async def action_tag(self) -> None:
        rows = self.state.chosen
        if len(rows) == 1:
            begun = f"{rows[0].path}:"
            text = await self.ask_text(
                f"Another name for {rows[0].name}",
                value=begun,
                hint="name:tag",
                check=lambda name: "" if name == begun else _wrong_name(name),
            )
            if text and text != begun:
                await self._tag(rows, _always(text))
        elif rows:
            text = await self.ask_text(
                f"A tag for {counted(len(rows), 'adapter')}",
                hint="prod",
                check=_wrong_tag,
            )
            if text:
                await self._tag(rows, _tagged(text))

    async def _tag(self, rows: Sequence[Row], called: Callable[[Row], str]) -> None:
        """Gives the names, once the user has seen what gates ask for."""
        try:
            asked = [(row, called(row)) for row in rows]
            gates = await self.ask(gates_before, self.hub.store, asked)
        except Exception as error:  # noqa: BLE001 - told
            self.refuse(error, "Not tagged")
            return
        shut = {str(one.name) for one in gates if not one.open}
        if gates:
            from adapterhub.tui.screens.gate import GateScreen

            subjects = {str(parse_name(target)): row.name for row, target in asked}
            question = GateScreen(gates, subjects, len(rows) - len(gates))
            answer = await self.app.push_screen_wait(question)
            if answer is None:
                return
            if answer == "open":
                rows = [row for row, target in asked if str(parse_name(target)) not in shut]
        moved = {str(one.name) for one in gates if one.now is not None}
        results = []
        options = []
        for row in rows:
            target = called(row)
            name = str(parse_name(target))
            how = {"move": name in moved, "without_gates": name in shut}
            options = [f"--{key.replace('_', '-')}" for key, given in how.items() if given]
            try:
                created = await self._change(_tag, self.hub.store, row, target, **how)
            except Exception as error:  # noqa: BLE001 - told
                results.append(Result(row.name, problem=Problem.of(error)))
            else:
                results.append(
                    Result(row.name, f"is {target}" if created else f"was {target} already")
                )
        if len(rows) == 1 and results[0].problem is None:
            self.select(called(rows[0]))
        line = shlex.join(["adapterhub", "tag", rows[0].name, called(rows[0]), *options])
        self._tell("Tag", results, line + (" ..." if len(rows) > 1 else ""))

    # Removing

    @work(exclusive=True, group="dialog")
    async def action_remove(self) -> None:
        names = [parse_name(name) for name in self._names()]
        if not names:
            return
        try:
            consequences = (await self.ask(removal, self.hub.store, names)).words
        except Exception as error:  # noqa: BLE001 - the question is asked all the same
            consequences = (f"what follows isn't known: {Problem.of(error).what}",)
        line = shlex.join(["adapterhub", "rm", *map(_exactly, names)])
        what = (
            str(names[0])
            if len(names) == 1
            else f"{len(names)} names: {some([str(name) for name in names], 6)}"
        )
        if not await self.confirm(f"Remove {what}?", consequences, line, yes="Remove"):
            return
        results = await self._remove(names)
        self.state = replace(self.state, marked=frozenset())
        self._tell("Remove", results, "u takes it back")

    async def _remove(self, names: Sequence[Name]) -> list[Result]:
        """Removes them as one operation, so that one undo brings all back. What can't be removed stays, and says why."""
        failed: list[Result] = []
        removed: list[str] = []
        try:
            for name in names:
                try:
                    await self.ask(self.hub.store.refs.require, name)
                except AdapterHubError as error:
                    failed.append(Result(str(name), problem=Problem.of(error)))
            sound = [name for name in names if str(name) not in {one.name for one in failed}]
            if sound:
                done = await self._change(self.hub.store.remove, sound)
                removed = [str(name) for name, _ in done]
        except Exception as error:  # noqa: BLE001 - told for each of them
            problem = Problem.of(error)
            failed = [Result(str(name), problem=problem) for name in names]
        return [*failed, *(Result(name, "removed") for name in removed)]

    def _tell(self, title: str, results: Sequence[Result], hint: str) -> None:
        """One that went well is a toast; of several, or where something failed, each is told."""
        self.read_again()
        if len(results) == 1:
            [one] = results
            if one.problem is None:
                self.notify(f"{one.name} {one.done}\n{hint}", title=title, markup=False)
            else:
                self.notify(
                    str(one.problem), title="Not done", severity="error", markup=False, timeout=10
                )
        else:
            from adapterhub.tui.screens.results import ResultsScreen

            self.app.push_screen(ResultsScreen(title, results, hint))

    async def _change(
        self, question: Callable[Question, Done], *args: Question.args, **kwargs: Question.kwargs
    ) -> Done:
        """As `ask`, for what waits for the store's lock: says so where that takes a while."""

        async def say() -> None:
            await asyncio.sleep(_PATIENCE_SECONDS)
            self.notify(
                "Waiting until another adapterhub has finished changing the store.", title="Busy"
            )

        waiting = asyncio.create_task(say())
        try:
            return await self.ask(question, *args, **kwargs)
        finally:
            waiting.cancel()

    # The base that adapters are held against

    @work(exclusive=True, group="base")
    async def action_base(self) -> None:
        try:
            known = await self.ask(known_bases, self.hub.store)
        except Exception as error:  # noqa: BLE001 - told
            self.refuse(error, "Bases not read")
            return
        if not known:
            self.notify(
                "No base models are known on this machine.\nadapterhub base add FOLDER_OR_REPO",
                title="No base", markup=False,
            )  # fmt: skip
            return
        from adapterhub.tui.screens.choose import Choosable, ChooseScreen

        things = [
            Choosable("", "none", "mark nobody"),
            *(Choosable(one.path, one.label, one.path) for one in known),
        ]
        chosen = await self.app.push_screen_wait(ChooseScreen("Who doesn't fit this base?", things))
        if chosen is None:
            return
        base = next((one for one in known if one.path == chosen.id), None)
        self.state = replace(self.state, base=base)
        await self.hold_against_base()

    async def hold_against_base(self) -> None:
        """Finds out who doesn't fit the current base. The first time, that reads the heads of all weights."""
        base = self.state.base
        if base is None:
            return
        try:
            found = await self.ask(misfits, self.hub.store, base)
        except Exception as error:  # noqa: BLE001 - told
            self.state = replace(self.state, base=None)
            self.refuse(error, f"Nobody was held against {base.label}")
            return
        if self.state.base is not None and self.state.base.path == base.path:
            self.state = replace(self.state, base=found)

    # Saved filters

    @work(exclusive=True, group="dialog")
    async def action_filters(self) -> None:
        saved = await self.ask(self.hub.memory.get, FILTERS, {})
        if not saved:
            self.notify(
                "Type a filter with /, then ctrl+s keeps it under a name.",
                title="No saved filter yet",
            )
            return
        from adapterhub.tui.screens.choose import Choosable, ChooseScreen

        things = [Choosable(name, name, str(saved[name])) for name in sorted(saved)]
        chosen = await self.app.push_screen_wait(
            ChooseScreen("Saved filters", things, forgettable=not self.hub.readonly)
        )
        if chosen is None:
            return
        if chosen.forget:
            rest = {name: query for name, query in saved.items() if name != chosen.id}
            await self.ask(self.hub.memory.set, FILTERS, rest)
            self.notify(f"Forgot the filter {chosen.id}.", markup=False, timeout=2)
        else:
            self.filter_by(str(saved[chosen.id]))

    @work(exclusive=True, group="dialog")
    async def save_filter(self) -> None:
        """Keeps the present filter under a name that is asked for."""
        query = self.state.query.strip()
        if self.hub.readonly:
            self.say_readonly()
        if self.hub.readonly or not query:
            return
        name = await self.ask_text(f"Keep “{query}” as", hint="a name")
        if name:
            saved = await self.ask(self.hub.memory.get, FILTERS, {})
            await self.ask(self.hub.memory.set, FILTERS, {**saved, name: query})
            self.notify(f"F brings {name} back.", title="Kept", markup=False, timeout=3)


def _base_labels(store: Store) -> list[str]:
    try:
        return [one.label for one in known_bases(store)]
    except AdapterHubError:  # they are only suggestions
        return []


def _tag(store: Store, row: Row, target: str, *, move: bool, without_gates: bool) -> bool:
    return store.tag(
        Resolved(row.digest, store.manifest(row.digest), parse_name(row.name)),
        parse_name(target),
        move=move,
        without_gates=without_gates,
    )


def _always(name: str) -> Callable[[Row], str]:
    return lambda _: name


def _tagged(tag: str) -> Callable[[Row], str]:
    return lambda row: full_name(row.path, tag)


def _wrong_name(text: str) -> str:
    try:
        parse_name(text)
    except UsageError as error:
        return error.what
    return ""


def _wrong_tag(tag: str) -> str:
    """As `_wrong_name`, in words that only know the tag."""
    return f"'{tag}' is not a valid tag" if ":" in tag or _wrong_name(f"a:{tag}") else ""


def _exactly(name: Name) -> str:
    """The name with its tag: without one, `rm` means all tags."""
    return f"{name.path}:{name.tag}"
