"""A store under everything people and accidents do to it, in any order, against what it promises (`promises.py`).

After every step: the names mean what they should, whatever is promised is there with its own bytes, fsck finds no
damage, the catalogue lists the same, and the journal tells the same story. $ADAPTERHUB_MACHINE_EXAMPLES makes it run
longer, with other sequences every time.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from adapterhub.errors import ConflictError, FormatError, NotFoundError, UsageError
from adapterhub.names import parse_name
from adapterhub.store.garbage import collect
from adapterhub.store.history import plan_undo, rollback, undo
from adapterhub.store.repair import repair
from tests.store.ageing import DAY, age
from tests.store.leavings import (
    killed_after,
    leave_files,
    leave_lease,
    leave_operation,
    leave_temporary,
    leave_torn_line,
)
from tests.store.promises import Moved
from tests.store.watched import Pool, Watched, differences, files_of, ref_of
from tests.store.watching import at, listing

NAMES = ("tone", "tone:prod", "Tone", "a/legal", "a/legal:v1", "terms")

names = st.sampled_from(NAMES)
which = st.integers(0, 4)
graces = st.sampled_from([0.0, 0.0, 1.5 * DAY, 10 * DAY])
trash_graces = st.sampled_from([0.0, 3 * DAY, 30 * DAY])


class StoreMachine(Watched):
    """What people and accidents do."""

    # Adding and naming

    @initialize(numbers=st.lists(which, min_size=1, max_size=3, unique=True))
    def it_has_seen_some_life(self, numbers: list[int]) -> None:
        for number, name in zip(numbers, NAMES[3:], strict=False):
            self.add(number, name, move=False, merged=False)

    @rule(number=which, name=names, move=st.booleans(), merged=st.booleans())
    def add(self, number: int, name: str, move: bool, merged: bool) -> None:
        known = self.adapter(number)
        how: dict[str, Any] = {}
        if merged:  # what a merge does once it has made its folder
            parents = [{"digest": digest} for digest in sorted(self.promised.shelf)[:2]]
            how = {"op": "merge", "provenance": {"event": "merged", "parents": parents}}
        self.promised.settle()
        if self.promised.is_refused(name, known.digest, move=move):
            self.take_back()
            before = self.shelves()
            with pytest.raises(ConflictError):
                self.store.add_folder(known.folder, name=name, move=move, **how)
            assert self.shelves() == before
            return
        created = self.promised.refs.get(name) != known.digest
        added = self.store.add_folder(known.folder, name=name, move=move, **how)
        assert (added.digest, added.created) == (known.digest, created)
        self.promised.shelf.add(known.digest)
        if created:
            self.promised.do(
                how.get("op", "add"), [(name, self.promised.refs.get(name), known.digest)]
            )
        if merged:
            self.tell(known.digest, "provenance", how["provenance"])
        said = [item.type for item in self.store.attestations(known.digest)]
        assert "provenance" in said
        young = [f"manifests/sha256/{known.digits[:2]}/{known.digits}"]
        young += [f"blobs/sha256/{digits[:2]}/{digits}" for digits in known.blobs]
        assert [path for path in young if time.time() - self.stamp(path) > DAY / 2] == []

    @rule(name=names)
    def add_a_damaged_folder(self, name: str) -> None:
        before = listing(self.home) if self.home.exists() else {}
        with pytest.raises(FormatError):
            self.store.add_folder(self.pool.damaged, name=name)
        assert not before or listing(self.home) == before

    @precondition(lambda self: self.promised.shelf)
    @rule(number=which, name=names, move=st.booleans(), collected=st.booleans())
    def tag(self, number: int, name: str, move: bool, collected: bool) -> None:
        """With `collected`, a collection gets between reading what the source is and giving it the name."""
        known = self.on_shelf(number)
        source = self.store.resolve(f"@{known.digits[:16]}")
        if collected:
            self.gc(0.0, 30 * DAY)
        self.promised.settle()
        self.promised.shelf.add(known.digest)
        if self.promised.is_refused(name, known.digest, move=move):
            with pytest.raises(ConflictError):
                self.store.tag(source, parse_name(name), move=move)
            return
        before = self.promised.refs.get(name)
        assert self.store.tag(source, parse_name(name), move=move) == (before != known.digest)
        if before != known.digest:
            self.promised.do("tag", [(name, before, known.digest)])

    @rule(numbers=st.lists(which, min_size=1, max_size=3), other=st.none() | names)
    def rm(self, numbers: list[int], other: str | None) -> None:
        """Several names at once, all or none."""
        self.promised.settle()
        known = {self.a_name(number) for number in numbers if self.promised.refs} or {"nobody"}
        some = sorted({*known, other or min(known)})
        if not set(some) <= self.promised.refs.keys():
            with pytest.raises(NotFoundError):
                self.store.remove([parse_name(name) for name in some])
            return
        self.store.remove([parse_name(name) for name in some])
        self.promised.do("rm", [(name, self.promised.refs[name], None) for name in some])

    # Going back

    @rule(number=which, other=st.none() | names)
    def rollback(self, number: int, other: str | None) -> None:
        self.promised.settle()
        name = self.a_name(number) if self.promised.refs and not other else other or "nobody"
        previous = self.promised.before(name) if name in self.promised.refs else None
        if previous is None or not self.can_come_back({previous}):
            with pytest.raises(NotFoundError):
                rollback(self.store, parse_name(name))
            return
        present, now = rollback(self.store, parse_name(name))
        assert (present, now.digest) == (self.promised.refs[name], previous)
        self.promised.do("rollback", [(name, present, previous)])
        self.promised.shelf.add(previous)

    @rule(count=st.sampled_from([1, 1, 1, 2, 3, 5]), dry=st.booleans())
    def undo(self, count: int, dry: bool) -> None:
        """As the dry run says, which changes nothing."""
        before = listing(self.home)
        planned = None
        with suppress(NotFoundError, UsageError):
            planned = plan_undo(self.store, count) if dry else None
            assert listing(self.home) == before
        self.promised.settle()
        if count > len(self.promised.done):
            with pytest.raises(UsageError):
                undo(self.store, count)
            return
        taken = self.promised.taken_back(count)
        wanted = {after for _, _, after in taken.moves if after is not None}
        if taken.is_impossible or not self.can_come_back(wanted):
            with pytest.raises(NotFoundError):
                undo(self.store, count)
            self.promised.shelf |= self.manifests_there()  # what could be given back is no harm
            return
        for verb, trash in taken.trash:
            if verb == "restore":
                self.promised.shelf |= self.in_trash(trash)
        contents = [self.contents(trash) for verb, trash in taken.trash if verb == "sweep"]
        done = undo(self.store, count)
        for undone in (done, planned or done):
            moves = [(str(move.name), move.before, move.after) for move in undone.moves]
            assert sorted(moves) == sorted(taken.moves)
        self.promised.do("undo", taken.moves, taken.trash)
        self.promised.shelf |= wanted
        self.promised.shelf -= set().union(*contents) - self.promised.needed()

    # Collecting

    @rule(grace=graces, trash_grace=trash_graces)
    def gc(self, grace: float, trash_grace: float) -> None:
        """What goes and what stays is foretold for every file; and a second collection has nothing to do."""
        self.promised.settle()
        if not self.home.exists():
            return
        before, kept, returning = self.shelves(), self.kept(grace), self.returning()
        expired = {
            trash
            for trash, day in self.promised.trash.items()
            if (self.promised.today - day) * DAY >= trash_grace
        }
        old = self.old(grace)
        staying = {path for path in before if not old[path] or self.is_needed(path, kept)}
        done = collect(self.store, grace=grace, trash_grace=trash_grace)
        wanted = {path: before[path] for path in staying} | returning
        assert differences(self.shelves(), wanted) == []
        if done.trash is None:
            assert staying == set(before)
        else:
            prefix = f"trash/{done.trash}/"
            there = {
                path.removeprefix(prefix): what
                for path, what in listing(self.home).items()
                if path.startswith(prefix) and not path.endswith("/contents.json")
            }
            wanted = {path: before[path] for path in before.keys() - staying}
            assert differences(there, wanted) == []
            self.promised.trash[done.trash] = self.promised.today
            self.promised.do("gc", [], [("sweep", done.trash)])
        for trash in expired:
            del self.promised.trash[trash]
        self.promised.shelf &= kept
        self.promised.shelf |= {f"sha256:{Path(path).name}" for path in returning if path.startswith("manifests/")}  # fmt: skip
        self.forget_what_is_gone()
        assert {path.name for path in (self.home / "store" / "trash").glob("*")} == set(
            self.promised.trash
        )
        if not expired:  # what was deleted for good may have left garbage
            again = collect(self.store, grace=grace, trash_grace=1000 * DAY)
            assert (again.trash, again.plan.garbage) == (None, [])

    @rule(grace=graces, number=which | st.none(), twice=st.booleans())
    def gc_and_undo(self, grace: float, number: int | None, twice: bool) -> None:
        """To the bit as before; and an undo of the undo is the collection again, save what has come to be needed.

        With `twice`, collection and undo are taken back together, and that changes nothing.
        """
        self.take_back()
        before, done = self.shelves() | self.returning(), len(self.promised.done)
        self.gc(grace, 30 * DAY)
        if len(self.promised.done) == done:
            return
        collected = self.shelves()
        self.undo(1, dry=False)
        assert differences(self.shelves(), before) == []
        if twice:
            self.undo(2, dry=False)
            assert differences(self.shelves(), before) == []
            return
        if number is not None and self.promised.shelf:
            self.begin_work([number], killed=False)
        self.undo(1, dry=False)
        needed = {path for path in before if self.is_needed(path, self.promised.needed())}
        wanted = {path: before[path] for path in collected.keys() | needed}
        assert differences(self.shelves(), wanted) == []

    @precondition(lambda self: self.promised.shelf)
    @rule(number=which, days=st.sampled_from([1, 20]), grace=graces, again=st.booleans())
    def an_adapter_loses_its_names(self, number: int, days: int, grace: float, again: bool) -> None:
        """It is collected, and perhaps added again before the trash is emptied."""
        known = self.on_shelf(number)
        self.time_passes(days)
        self.take_back()
        mine = [name for name, digest in self.promised.refs.items() if digest == known.digest]
        if mine:
            self.store.remove([parse_name(name) for name in mine])
            self.promised.do("rm", [(name, known.digest, None) for name in mine])
        self.gc(grace, 30 * DAY)
        if again:
            self.add(self.pool.adapters.index(known), "terms", move=True, merged=False)
            self.gc(0.0, 0.0)

    @rule(days=st.sampled_from([1, 2, 20]))
    def time_passes(self, days: int) -> None:
        if self.home.exists():
            renamed = age(self.home, days * DAY)
            self.promised.trash = {
                renamed[trash]: day for trash, day in self.promised.trash.items()
            }
            done = self.promised.done
            for place, operation in enumerate(done):
                trash = tuple((verb, renamed.get(name, name)) for verb, name in operation.trash)
                done[place] = type(operation)(operation.op, operation.moves, operation.day, trash)
            self.promised.today += days

    # Using

    @precondition(lambda self: self.promised.shelf)
    @rule(number=which, text=st.sampled_from(["good", "bad"]))
    def attest(self, number: int, text: str) -> None:
        known = self.on_shelf(number)
        self.store.attest(known.digest, "note", {"text": text})
        self.tell(known.digest, "note", {"text": text})

    @precondition(lambda self: self.promised.shelf and len(self.running) < 2)
    @rule(numbers=st.lists(which, min_size=1, max_size=2), killed=st.booleans())
    def begin_work(self, numbers: list[int], killed: bool) -> None:
        """A server starts with these adapters; one that is killed leaves its lease behind."""
        digests = frozenset(self.on_shelf(number).digest for number in numbers)
        lease, before = ExitStack(), self.store.leases.paths()
        lease.enter_context(self.store.leases.held("serve", sorted(digests), "a server"))
        if killed:
            (left,) = set(self.store.leases.paths()) - set(before)
            document = json.loads(left.read_bytes())
            lease.close()
            leave_lease(self.home, document)
            return
        self.running.append((digests, lease))
        self.promised.leases.append(digests)

    @precondition(lambda self: self.running)
    @rule()
    def end_work(self) -> None:
        digests, lease = self.running.pop(0)
        lease.close()
        self.promised.leases.remove(digests)

    @precondition(lambda self: self.promised.shelf)
    @rule(number=which)
    def view(self, number: int) -> None:
        known = self.on_shelf(number)
        assert files_of(self.store.view(known.digest)) == known.files

    @precondition(lambda self: self.promised.refs)
    @rule(number=which)
    def checkout(self, number: int) -> None:
        name = self.a_name(number)
        folder = self.root / "checked-out"
        self.store.checkout(self.store.resolve(name), folder)
        assert files_of(folder) == self.by_digest[self.promised.refs[name]].files
        shutil.rmtree(folder)

    # Accidents

    @precondition(lambda self: self.promised.shelf)
    @rule(number=which, stage=st.integers(0, 3))
    def a_writer_is_killed_while_adding(self, number: int, stage: int) -> None:
        """It leaves half a copy, and perhaps a blob, all blobs, and the manifest."""
        known = self.adapter(number)
        leave_temporary(self.home, known.manifest[:7])
        some = dict(list(known.blobs.items())[: stage and (1 if stage == 1 else 9)])
        leave_files(self.home, "blobs", some)
        if stage == 3:
            leave_files(self.home, "manifests", {known.digits: known.manifest})
            self.promised.shelf.add(known.digest)

    @precondition(lambda self: self.promised.shelf)
    @rule(
        some=st.lists(
            st.sampled_from(NAMES).filter(str.islower), min_size=1, max_size=3, unique=True
        ),
        meant=st.lists(which | st.none(), min_size=3, max_size=3),
        applied=st.integers(0, 3),
        torn=st.booleans(),
    )
    def a_writer_is_killed_while_it_changes_names(
        self, some: list[str], meant: list[int | None], applied: int, torn: bool
    ) -> None:
        """Lines without their end, and any number of the refs changed. A torn line was never followed by a change."""
        self.take_back()
        moves: list[Moved] = []
        for name, number in zip(some, meant, strict=False):
            after = None if number is None else self.on_shelf(number).digest
            before = self.promised.refs.get(name)
            twin = after is not None and self.promised.is_refused(name, after, move=True)
            if after != before and not twin:
                moves.append((name, before, after))
        if not moves:
            return
        applied = 0 if torn else min(applied, len(moves))
        leave_operation(
            self.home,
            [(ref_of(name), before, after) for name, before, after in moves],
            now=datetime.now(UTC).isoformat(timespec="seconds"),
            applied=applied,
            torn=torn,
        )
        if len(moves) > torn:
            self.promised.cut("rm", tuple(moves[: len(moves) - torn]), applied)

    @precondition(lambda self: self.promised.done and not self.promised.cut_short)
    @rule()
    def a_writer_is_killed_while_it_appends(self) -> None:
        leave_torn_line(self.home)

    @precondition(lambda self: self.promised.shelf)
    @rule(grace=graces, renames=st.integers(0, 6))
    def a_collection_is_killed(self, grace: float, renames: int) -> None:
        """It is in the journal; some of the garbage is in the trash, the rest is still where it was."""
        self.promised.settle()
        before = self.promised.trash.keys()
        with killed_after(renames):
            collect(self.store, grace=grace, trash_grace=1000 * DAY)
        new = {path.name for path in (self.home / "store" / "trash").glob("*")} - before
        for trash in new:
            self.promised.trash[trash] = self.promised.today
            self.promised.do("gc", [], [("sweep", trash)])
            self.promised.shelf -= self.in_trash(trash)
        self.promised.shelf |= self.manifests_there() & self.promised.needed()  # given back first

    @precondition(lambda self: self.promised.done and self.promised.done[-1].trash)
    @rule(renames=st.integers(0, 6))
    def an_undo_is_killed_before_it_is_done(self, renames: int) -> None:
        """Some of what it was to bring back is there again, and no line says so."""
        self.take_back()
        verb, trash = (*self.promised.done[-1].trash, ("", ""))[0]
        if verb != "sweep" or trash not in self.promised.trash:
            return
        files = (self.home / "store" / "trash" / trash).rglob("*")
        moving = len([path for path in files if path.is_file() and path.name != "contents.json" and "views" not in path.parts])  # fmt: skip
        if renames < moving:
            with killed_after(renames):
                undo(self.store)
            self.promised.shelf |= self.manifests_there()

    @precondition(lambda self: self.promised.shelf and not self.promised.cut_short)
    @rule(number=which, what=st.sampled_from(["blob", "manifest", "ref"]), lost=st.booleans(), served=st.booleans())  # fmt: skip
    def the_disk_is_damaged(self, number: int, what: str, lost: bool, served: bool) -> None:
        """fsck names it, and mends it from another store; the folders made for servers too, whose files may be the same."""
        known = self.on_shelf(number)
        if served:
            self.view(number)
        path = at(self.home / "store" / "manifests", known.digits)
        if what == "blob":
            path = at(self.home / "store" / "blobs", sorted(known.blobs)[number % len(known.blobs)])
        if what == "ref":
            if not self.promised.refs:
                return
            path = self.home / "store" / "refs" / ref_of(self.a_name(number))
        if lost:
            path.unlink()
        else:
            path.chmod(0o644)
            path.write_bytes(b"\0" + path.read_bytes()[1:])
        if lost and what == "manifest" and known.digest not in self.promised.refs.values():
            self.promised.shelf.discard(known.digest)  # nothing says that it was ever there
            self.forget_what_is_gone()
            return
        report = self.checked()
        assert {damage.kind for damage in report.damages} - {"view"} == {what}
        mended = repair(self.store, report, [self.pool.home])
        assert all(item.mended for item in mended), mended
        if what == "ref":
            name = self.a_name(number)
            self.promised.do("repair", [(name, None, self.promised.refs[name])])


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool.make(tmp_path_factory.mktemp("machine"))


def run(pool: Pool, *, examples: int, steps: int) -> None:
    longer = os.environ.get("ADAPTERHUB_MACHINE_EXAMPLES")
    run_state_machine_as_test(
        lambda: StoreMachine(pool),  # type: ignore[arg-type]  # a factory will do, its documentation says
        settings=settings(
            max_examples=int(longer or examples),
            stateful_step_count=steps,
            derandomize=longer is None,
            deadline=None,
            # Making a failure smaller takes minutes; the same steps fail again without.
            phases=[Phase.generate, *([Phase.shrink] if longer else [])],
            suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
        ),
    )


def test_a_store_keeps_its_promises_whatever_happens(pool: Pool) -> None:
    run(pool, examples=5, steps=30)


@pytest.mark.slow
def test_a_store_keeps_its_promises_for_long(pool: Pool) -> None:
    run(pool, examples=12, steps=60)
