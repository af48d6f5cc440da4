"""What a store promises, in a few dictionaries: names, operations, what is protected. It shares no code with the product.

Names are texts as people type them, adapters are digests, times are days of a calendar that only `test_machine` turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.store.ageing import DAY

KEPT_RELEASES = 3

Moved = tuple[str, str | None, str | None]
"""Name, what it meant, what it means."""
Swept = tuple[str, str]
"""`sweep` or `restore`, and a trash folder."""


@dataclass(frozen=True)
class Operation:
    """What one command did."""

    op: str
    moves: tuple[Moved, ...]
    day: float
    trash: tuple[Swept, ...] = ()


@dataclass(frozen=True)
class CutShort:
    """An operation of a writer that was killed: in the journal, with only the first `applied` of its moves made."""

    op: str
    moves: tuple[Moved, ...]
    applied: int
    day: float


@dataclass(frozen=True)
class Taken:
    """What an undo is to do: the names it changes, and the trash folders it fills or empties.

    It is impossible where all it could do is to bring back what was deleted for good.
    """

    moves: tuple[Moved, ...]
    trash: tuple[Swept, ...]
    is_impossible: bool


@dataclass
class Promises:
    """The state of a store, as far as anybody has been promised something."""

    today: float = 0.0
    refs: dict[str, str] = field(default_factory=dict)
    done: list[Operation] = field(default_factory=list)
    cut_short: CutShort | None = None
    shelf: set[str] = field(default_factory=set)
    """Adapters that are in the store, whole."""
    told: dict[str, set[str]] = field(default_factory=dict)
    """What was attested about an adapter and acknowledged."""
    trash: dict[str, float] = field(default_factory=dict)
    """The trash folders, and the day each was filled."""
    leases: list[frozenset[str]] = field(default_factory=list)

    # Changes

    def settle(self) -> None:
        """What the next writer makes of an operation that was cut short: it is done if it was, else nothing of it is."""
        cut, self.cut_short = self.cut_short, None
        if cut is None:
            return
        if all(self.refs.get(name) == after for name, _, after in cut.moves):
            self.done.append(Operation(cut.op, cut.moves, cut.day))
            return
        for name, before, after in cut.moves:
            if self.refs.get(name) == after:
                self._put(name, before)

    def cut(self, op: str, moves: tuple[Moved, ...], applied: int) -> None:
        """A writer is killed when it has made so many of its moves."""
        self.cut_short = CutShort(op, moves, applied, self.today)
        for name, _, after in moves[:applied]:
            self._put(name, after)

    def do(self, op: str, moves: Iterable[Moved], trash: Iterable[Swept] = ()) -> None:
        """An operation that is acknowledged."""
        moves = tuple(moves)
        for name, _, after in moves:
            self._put(name, after)
        self.done.append(Operation(op, moves, self.today, tuple(trash)))

    def _put(self, name: str, digest: str | None) -> None:
        if digest is None:
            self.refs.pop(name, None)
        else:
            self.refs[name] = digest

    # Questions

    def is_refused(self, name: str, digest: str, *, move: bool) -> bool:
        """Whether `name` can't be given to an adapter: another has it, or a name that differs in case only is there."""
        if self.refs.get(name, digest) != digest and not move:
            return True
        mine = parts(name)
        return any(
            mine[:depth] == parts(other)[:depth]
            and mine[depth] != parts(other)[depth]
            and mine[depth].lower() == parts(other)[depth].lower()
            for other in self.refs
            for depth in range(3)
        )

    def releases(self, name: str) -> list[str]:
        """What a name has meant, its present meaning last. Going back shortens the row."""
        row: list[str] = []
        for operation in self.done:
            for moved, _, after in operation.moves:
                if moved != name or after is None or row[-1:] == [after]:
                    continue
                if operation.op in ("rollback", "undo") and after in row:
                    while row[-1] != after:
                        row.pop()
                else:
                    row.append(after)
        return row

    def before(self, name: str) -> str | None:
        """What a rollback gives the name; None where there was nothing before."""
        row = self.releases(name)
        while row and row[-1] != self.refs[name]:
            row.pop()
        return row[-2] if len(row) > 1 else None

    def needed(self) -> set[str]:
        """Adapters that a name, a rollback or running work needs."""
        found = set(self.refs.values()).union(*self.leases)
        for name in self.refs:
            found.update(self.releases(name)[:-1][-KEPT_RELEASES:])
        return found

    def protected(self, grace: float) -> set[str]:
        """`needed`, and what an undo of the last `grace` seconds needs."""
        recent = [done for done in self.done if (self.today - done.day) * DAY < grace]
        named = {digest for done in recent for _, *both in done.moves for digest in both}
        return self.needed() | {digest for digest in named if digest is not None}

    def taken_back(self, count: int) -> Taken:
        """What an undo of the last `count` operations does."""
        first: dict[str, str | None] = {}
        now: dict[str, str] = {}
        then: dict[str, str] = {}
        for operation in reversed(self.done[-count:]):
            first.update({name: before for name, before, _ in operation.moves})
            for verb, trash in operation.trash:
                now.setdefault(trash, verb)
                then[trash] = "restore" if verb == "sweep" else "sweep"
        moves = [
            (name, self.refs.get(name), digest)
            for name, digest in first.items()
            if self.refs.get(name) != digest
        ]
        asked = [(then[trash], trash) for trash in then if then[trash] != now[trash]]
        possible = tuple((verb, trash) for verb, trash in asked if trash in self.trash)
        return Taken(tuple(moves), possible, bool(asked) and not possible and not moves)


def parts(name: str) -> tuple[str, str, str]:
    """Namespace, name and tag."""
    path, _, tag = name.partition(":")
    namespace, _, last = path.rpartition("/")
    return namespace, last, tag or "latest"
