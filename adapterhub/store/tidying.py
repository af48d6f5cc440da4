"""Collections and checks in words: what would be taken and whose it was, what is spared and why, whom a damage concerns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from adapterhub.settings import duration
from adapterhub.store.checking import Touched
from adapterhub.store.garbage import Item, Plan, make_plan
from adapterhub.store.store import Store
from adapterhub.words import counted, human_size, short, some


def graces(store: Store, grace: str | None = None, trash: str | None = None) -> tuple[float, float]:
    """Seconds for which garbage is spared, and for which the trash keeps it: as typed, else as config.toml says."""
    settings = store.settings.store
    return (
        duration(settings.grace if grace is None else grace, "for --grace"),
        duration(settings.trash if trash is None else trash, "for --trash-grace"),
    )


def plan_now(store: Store) -> Plan:
    """What `gc` would do now. Reads only; raises as `collect` does."""
    grace, trash_grace = graces(store)
    return make_plan(store, grace=grace, trash_grace=trash_grace)


def size_of(items: Iterable[Item]) -> int:
    """Their bytes."""
    return sum(item.size for item in items)


def taken(plan: Plan, *, done: bool) -> list[str]:
    """What goes, or went, into the trash and away for good."""
    verbs = ("went to", "deleted for good") if done else ("would go to", "would be deleted for good")  # fmt: skip
    said = ["There is no garbage."]
    if plan.garbage:
        size = human_size(size_of(plan.garbage))
        said = [f"{counted(len(plan.garbage), 'object')}, {size}: {verbs[0]} the trash."]
    if plan.deleted:
        size = human_size(size_of(plan.deleted))
        said.append(
            f"{len(plan.deleted)} old trash folders and temporary files, {size}: {verbs[1]}."
        )
    return said


def spared(plan: Plan) -> list[str]:
    """What stays although no name leads to it, by reason."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in plan.spared:
        reason = "undo may need it" if item.why.startswith("undo may") else item.why
        groups[reason].append(item)
    return [
        f"spared: {counted(len(items), 'object')}, {human_size(size_of(items))}, because {reason}"
        for reason, items in groups.items()
    ]


def last_names(store: Store) -> dict[str, str]:
    """For every adapter that ever had a name, the last one: of garbage, what people knew it by."""
    found = {}
    for change in store.log():
        for digest in (change.before, change.after):
            if change.ref and digest is not None:
                found[digest] = change.ref
    return found


def thing(item: Item, names: dict[str, str]) -> str:
    """What an item is, by a name that people know."""
    if not item.digest:
        return f"{item.kind} {item.path.name}"
    if item.kind == "trash":
        return f"trash {item.digest}"
    known = names.get(item.digest)
    kind = {"manifest": "adapter", "blob": "file"}.get(item.kind, item.kind)
    return f"{kind} @{short(item.digest)}" + (f" (was {known})" if known else "")


def reach(path: Path, touched: Touched) -> str:
    """Where a damage is, and whom it concerns."""
    parts = [f"Its place is {path}"]
    whom: tuple[tuple[Sequence[str], str], ...] = (
        (touched.names, "it is part of"),
        (touched.merges, "these were merged from it"),
        (touched.users, "it is in use by"),
    )
    parts += [f"{words} {some(names, 5)}" for names, words in whom if names]
    return "; ".join(parts) + "."
