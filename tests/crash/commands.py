"""The commands that are swept, and the store they find: one that has seen some life.

old        another adapter first, then moved; that one is reached by no name any more
old:prod   what old is
third      with a second name in a namespace
stays      what no command here touches
gone       what only the collecting commands touch
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.crash.power import State
from tests.crash.running import Place

Words = tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A command line, where FOLDERS/ is the folder of the adapters to add.

    Args:
        before: commands run first, once.
        cut_short: a command that was killed half-way before that, so that this one finds its remains.
        empty: there is no store at all.
        again: whether the same command on its own result changes nothing.
    """

    name: str
    words: Words
    before: tuple[Words, ...] = ()
    cut_short: Words = ()
    empty: bool = False
    again: bool = True

    def probe(self) -> Words:
        """Another command that writes and shares nothing with this one."""
        return ("add", "FOLDERS/other", "--name", "probe") if self.empty else ("tag", "stays", "probe")  # fmt: skip


LIFE: tuple[Words, ...] = (
    ("add", "FOLDERS/other", "--name", "old"),
    ("add", "FOLDERS/old", "--name", "old", "--move"),
    ("tag", "old", "old:prod"),
    ("add", "FOLDERS/third", "--name", "third"),
    ("tag", "third", "a/third:v1"),
    ("tag", "third", "stays"),
    ("add", "FOLDERS/gone", "--name", "gone"),
)
_REMOVE = ("rm", "old:prod", "a/third:v1", "third", "--yes")
_COLLECT = ("gc", "--grace", "0s", "--yes")
_UNDO = ("undo",)
_FORGET = ("rm", "gone", "--yes")
_NEW_TO_OLD = ("add", "FOLDERS/new", "--name", "old", "--move")
_MERGE = ("merge", "old", "third", "--workers", "1", "--name")

COMMANDS: tuple[Command, ...] = (
    Command("add", ("add", "FOLDERS/new", "--name", "new")),
    Command("first add", ("add", "FOLDERS/new", "--name", "new"), empty=True),
    Command("add in a namespace", ("add", "FOLDERS/new", "--name", "b/new:v1")),
    Command("add --move", _NEW_TO_OLD),
    Command("add again", ("add", "FOLDERS/old", "--name", "old")),
    Command("add under another name", ("add", "FOLDERS/old", "--name", "more")),
    Command("tag", ("tag", "old", "kept")),
    Command("tag --move", ("tag", "third", "old:prod", "--move")),
    Command("rm", ("rm", "old:prod", "--yes"), again=False),
    Command("rm of several", _REMOVE, again=False),
    Command("tag after half an rm", ("tag", "stays", "more"), cut_short=_REMOVE),
    Command("gc", _COLLECT, before=(_FORGET,)),
    Command("undo of rm", _UNDO, before=(_REMOVE,), again=False),
    Command("undo of add --move", _UNDO, before=(_NEW_TO_OLD,), again=False),
    Command("undo of gc", _UNDO, before=(_FORGET, _COLLECT), again=False),
    Command("undo of gc and rm", (*_UNDO, "2"), before=(_FORGET, _COLLECT), again=False),
    Command("undo of undo of gc", _UNDO, before=(_FORGET, _COLLECT, _UNDO), again=False),
    Command("rollback", ("rollback", "old"), again=False),
    Command("merge", (*_MERGE, "merged")),
    Command("merge --move", (*_MERGE, "old:prod", "--move")),
)


@dataclass(frozen=True)
class Ground:
    """Adapters to add, and a store made with the product's own commands."""

    folders: Path
    life: State

    def words(self, words: Sequence[str]) -> list[str]:
        """A command line with the real folder in it."""
        return [word.replace("FOLDERS", str(self.folders)) for word in words]


def make_ground(place: Place, folders: Path | None = None) -> Ground:
    """A store below the folder of `place`, from the adapters in `folders` or from new ones."""
    if folders is None:
        folders = place.folder / "adapters"
        place.apart(lambda: write_adapters(place.folder / "adapters"))
    ground = Ground(folders, {})
    place.put({})
    for words in LIFE:
        must(place, ground.words(words))
    return Ground(folders, place.get())


def write_adapters(folder: Path) -> None:
    """The adapters that the commands add."""
    from tests.support.adapters import AdapterMaker

    for seed, name in enumerate(("old", "new", "other", "third", "gone")):
        AdapterMaker(folder)(name, seed=seed)


def must(place: Place, words: Sequence[str]) -> str:
    """Runs a command that has to succeed, and returns what it printed."""
    done = place.run(words)
    if done.code != 0:
        raise RuntimeError(f"{' '.join(words)} gives {done.code}: {done.said}")
    return done.out
