"""How operations are said: a line of the table, and everything about one."""

from __future__ import annotations

from collections.abc import Iterator

from adapterhub.cli.output import clean
from adapterhub.store.journal import SWEEP, Change, Operation
from adapterhub.tui.facts import MOST_LINES, Fact, Section, moment
from adapterhub.tui.past.state import MOST, Past
from adapterhub.tui.widgets.line_table import Column, Line
from adapterhub.words import counted, short

COLUMNS = (
    Column("when"),
    Column("who", goes=3),
    Column("what", takes_rest=True),
    Column("from", goes=1),
    Column("to", goes=2),
)
NOTHING = (
    "Nothing was ever changed here.\n\n"
    "Every change of a name is written down: who, when, from which adapter to which. What was done\n"
    "last can be taken back (u), and that can be taken back too (U).\n\n"
    "1, then a  add an adapter"
)


def line_of(since: int, operation: Operation) -> Line:
    """An operation in a line."""
    before, after = _ends(operation)
    when = clean(f"{operation.time[:10]} {operation.time[11:16]}")
    return Line(str(since), (when, clean(operation.who), what(operation), before, after))


def what(operation: Operation) -> str:
    """What was done, with the name where it was one."""
    why = clean(operation.why)
    said = why if why.split(" ")[0] in (operation.op, "undo") else f"{operation.op} {why}".strip()
    if len(operation.refs) == 1 and (name := clean(operation.refs[0].ref)) not in said.split():
        if said.startswith("undo of"):
            return f"{said}: {name}"
        rest = said.removeprefix(operation.op).strip()
        return f"{operation.op} {name}" + (f": {rest}" if rest else "")
    return said


def count(state: Past) -> str:
    """What the table's frame says of it."""
    if not state.loaded:
        return "reading …"
    listed, all_of_them = len(state.visible), len(state.operations)
    if listed == all_of_them:
        return counted(listed, "operation")
    found = f"the newest {MOST}" if listed == MOST else str(listed)
    return f"{found} of {counted(all_of_them, 'operation')}"


def about(operation: Operation, since: int, *, readonly: bool = False) -> tuple[Section, ...]:
    """Everything about an operation."""
    newest = "nothing" if readonly else "nothing: u takes it back"
    facts = [
        Fact("what", what(operation), "strong"),
        Fact("when", moment(operation.time)),
        Fact("who", clean(operation.who)),
        Fact("since then", counted(since, "operation") if since else newest),
    ]
    if operation.id:
        facts.append(Fact("id", clean(operation.id)))
    return (Section("", tuple(facts)), Section("Names", tuple(_changes(operation))))


def _changes(operation: Operation) -> Iterator[Fact]:
    for change in operation.refs[:MOST_LINES]:
        yield Fact("", clean(change.ref))
        yield Fact("", f"  {_from_to(change)}")
    if len(operation.refs) > MOST_LINES:
        yield Fact("", f"and {len(operation.refs) - MOST_LINES} more")
    for line in operation.trash:
        done = "went into" if line.about.startswith(SWEEP) else "came back from"
        yield Fact("", f"garbage {done} the trash")
    if not operation.changes:
        yield Fact("", "none")


def _from_to(change: Change) -> str:
    return f"{_digest(change.before)} -> {_digest(change.after)}"


def _ends(operation: Operation) -> tuple[str, str]:
    if len(operation.refs) == 1:
        change = operation.refs[0]
        return _digest(change.before), _digest(change.after)
    return (counted(len(operation.refs), "name") if operation.refs else "", "")


def _digest(digest: str | None) -> str:
    return f"@{short(digest, 8)}" if digest else "–"
