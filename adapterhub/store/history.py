"""Going back: `undo` takes the last operations back, `rollback` gives a name its previous adapter.

Both are operations of their own, so they can be undone too: an undo of an undo does the thing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub.errors import ConflictError, NotFoundError, UsageError
from adapterhub.names import Name, parse_name
from adapterhub.store.garbage import still_garbage
from adapterhub.store.journal import RESTORE, SWEEP, Operation
from adapterhub.store.refs import Move, Transaction
from adapterhub.store.store import Resolved, Store
from adapterhub.store.trash import Trash
from adapterhub.words import short


@dataclass(frozen=True)
class Undone:
    """What an undo does: the operations it takes back (newest first), the names it changes, and what it does to the trash."""

    operations: tuple[Operation, ...]
    moves: tuple[Move, ...]
    abouts: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """What it does, a sentence a change."""
        told = [_moved(move) for move in self.moves]
        for about in self.abouts:
            verb = "goes back into" if about.startswith(SWEEP) else "comes back from"
            told.append(f"what was collected {verb} the trash")
        return tuple(told) or ("Together they change nothing: one takes back the other.",)


def past(store: Store) -> list[Operation]:
    """What was done, newest first: the first so many are what `undo` takes back."""
    half_done = store.refs.half_done()
    return [done for done in reversed(store.refs.journal.operations()) if done != half_done]


def plan_undo(store: Store, count: int = 1) -> Undone:
    """What `undo(store, count)` would do now. Raises as it does; changes nothing."""
    half_done = store.refs.half_done()  # a crash left it; to a writer it is as if it had never been
    going_back = {change.ref: change.before for change in half_done.refs} if half_done else {}
    operations = [done for done in store.refs.journal.operations() if done != half_done]
    if count > len(operations):
        known = (
            f"The journal knows {len(operations)} operations."
            if operations
            else "Nothing was ever done here."
        )
        raise UsageError(
            f"There are no {count} operations to undo."
            if count > 1
            else "There is nothing to undo.",
            why=known,
            hint="`adapterhub log` shows them." if operations else "",
        )
    last = tuple(reversed(operations[-count:]))
    before: dict[str, str | None] = {}
    after: dict[str, str | None] = {}
    for operation in last:  # from the newest to the oldest
        for change in operation.refs:
            after.setdefault(change.ref, change.after)
            before[change.ref] = change.before
    moves = []
    for ref, expected in after.items():
        name = parse_name(ref)
        found = going_back[ref] if ref in going_back else store.refs.read(name)
        if found != expected:
            raise ConflictError(
                f"{ref} can't be taken back: it is no longer what the journal says.",
                why=f"It is {_shown(found)}; after the last recorded change it was {_shown(expected)}.",
                hint=f"Set it yourself: adapterhub tag @{short(before[ref] or 'DIGEST')} {ref} --move",
            )
        if before[ref] != found:
            moves.append(Move(name, found, before[ref]))
    return Undone(last, tuple(moves), _possible(store, last, moves))


def undo(store: Store, count: int = 1, *, meant: Undone | None = None) -> Undone:
    """Takes back the last `count` operations, all or none, as one new operation.

    Args:
        meant: what it was planned to be; where something was done since, nothing is taken back.

    Raises UsageError where there are not so many, ConflictError where a ref is no longer what the journal says or
    something else than `meant` would be taken back, and NotFoundError where what would have to come back has been
    deleted for good.
    """
    trash = Trash(store.layout)
    if store.refs.journal.unfinished():  # that isn't what was done last, so it is ended first
        with store.writing(), store.refs.changing():
            pass
    last = store.refs.journal.operations()[-count:]
    sweeping = _sweeps(_abouts(last[::-1]))
    with store.alone() if sweeping else store.writing(), store.refs.changing() as change:
        undone = plan_undo(store, count)
        other = meant is not None and meant.operations != undone.operations
        if other or (_sweeps(undone.abouts) and not sweeping):
            raise ConflictError(
                "Another adapterhub has just changed the store.",
                why="What was done last isn't what it was a moment ago.",
                hint="`adapterhub log` shows it; then run the same command again.",
            )
        contents = {about: trash.contents(_trash_of(about)) for about in undone.abouts}
        if sweeping:
            still_garbage(store, ())  # refuses while something can't be read
        for about, paths in contents.items():  # first what comes back, then what leads to it
            if about.startswith(RESTORE):
                trash.give_back(_trash_of(about), paths)
        for move in undone.moves:
            if move.after is not None:
                trash.require(move.after)
        why = "undo of " + ", ".join(
            "an undo" if done.op == "undo" else done.why or done.op for done in undone.operations
        )
        change.commit(undone.moves, op="undo", why=why, abouts=undone.abouts)
        for about, paths in contents.items():
            if about.startswith(SWEEP):
                trash.take(_trash_of(about), still_garbage(store, paths))
    return undone


def rollback(store: Store, name: Name) -> tuple[str, Resolved]:
    """Gives `name` the adapter it had before; returns the digest it had and what it is now.

    Done again, it goes back one more. NotFoundError where the journal knows of none before.
    """
    with store.writing(), store.refs.changing() as change:
        present = store.refs.require(name)
        previous = _previous(store, name, present)
        Trash(store.layout).require(previous)
        _move(change, name, present, previous)
    return present, Resolved(previous, store.manifest(previous), name)


def _previous(store: Store, name: Name, present: str) -> str:
    row = store.refs.journal.releases().get(str(name), [])
    if present in row:
        row = row[: len(row) - 1 - row[::-1].index(present)]
    if not row:
        raise NotFoundError(
            f"{name} has had no other adapter before.",
            why=f"The journal knows only @{short(present)}.",
            hint=f"adapterhub log {name}",
        )
    return row[-1]


def _move(change: Transaction, name: Name, before: str, after: str) -> None:
    change.commit([Move(name, before, after)], op="rollback", why=f"rollback {name}")


def _abouts(operations: Sequence[Operation]) -> tuple[str, ...]:
    """What taking these back (newest first) does to trash folders; nothing where they are as they were before."""
    now: dict[str, str] = {}
    before: dict[str, str] = {}
    for operation in operations:
        for line in operation.trash:
            verb, _, name = line.about.partition(" ")
            now.setdefault(name, verb)
            before[name] = RESTORE if verb == SWEEP else SWEEP
    return tuple(f"{verb} {name}" for name, verb in before.items() if verb != now[name])


def _possible(store: Store, last: Sequence[Operation], moves: Sequence[Move]) -> tuple[str, ...]:
    """What can be done of `_abouts`: a trash that was deleted for good gives nothing back."""
    wanted = _abouts(last)
    there = set(Trash(store.layout).ids())
    possible = tuple(about for about in wanted if _trash_of(about) in there)
    if wanted and not possible and not moves:
        raise NotFoundError(
            "What was collected can't come back: its trash was deleted for good.",
            why="That was done by a later collection, or by one with a shorter --trash-grace.",
            hint=f"To take back what was done before it: adapterhub undo {len(last) + 1}",
        )
    return possible


def _sweeps(abouts: Sequence[str]) -> bool:
    return any(about.startswith(SWEEP) for about in abouts)


def _trash_of(about: str) -> str:
    return about.partition(" ")[2]


def _moved(move: Move) -> str:
    if move.after is None:
        return f"{move.name} goes away (it is {_shown(move.before)})"
    if move.before is None:
        return f"{move.name} comes back, as {_shown(move.after)}"
    return f"{move.name}: from {_shown(move.before)} back to {_shown(move.after)}"


def _shown(digest: str | None) -> str:
    return f"@{short(digest)}" if digest else "not there"
