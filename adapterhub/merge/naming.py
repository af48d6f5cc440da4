"""The name that a merge's result gets, and whether it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adapterhub.errors import ConflictError
from adapterhub.merge.done import was_made_by
from adapterhub.merge.recipe import Recipe
from adapterhub.names import Name, parse_name, slug
from adapterhub.store import Resolved, Store
from adapterhub.words import short


@dataclass(frozen=True)
class ResultName:
    """A name, and the digest that has it already."""

    name: Name
    there: str | None

    def require_same(self, store: Store, recipe: Recipe, but: tuple[str, ...] = ()) -> None:
        """ConflictError where the name's adapter is not one that this recipe gave, not looking at its keys `but`."""
        if self.there is not None and not was_made_by(store, self.there, recipe, but=but):
            raise ConflictError(
                f"The name {self.name} is taken by another adapter ({short(self.there)}).",
                hint=f"Choose another with --name, or move it: --move (the old one stays as @{short(self.there)})",
            )


def result_name(
    store: Store, parents: Sequence[Resolved], recipe: Recipe, name: str | None, *, move: bool
) -> ResultName:
    """The name asked for, or one made of the parents and the method. ConflictError where it is taken, unless `move`."""
    target = parse_name(name) if name is not None else _free(store, parents, recipe)
    found = ResultName(target, store.refs.read(target))
    if not move:
        # Whether the recipe needs a base is only known once the parents are open.
        found.require_same(store, recipe, but=("base",))
    return found


def _default(parents: Sequence[Resolved], method: str) -> Name:
    """A name made of the parents and the method, in their namespace if they share one."""
    parts = [(parent.name.name if parent.name else short(parent.digest, 8)) for parent in parents]
    namespaces = {parent.name.namespace if parent.name else "" for parent in parents}
    namespace = namespaces.pop() if len(namespaces) == 1 else ""
    return Name(namespace, slug("-".join([*parts, method])))


def _free(store: Store, parents: Sequence[Resolved], recipe: Recipe) -> Name:
    """The default name, or with a number where another merge has it: the second experiment needs no --name."""
    plain = _default(parents, recipe.method)
    for number in range(1, 1000):
        name = plain if number == 1 else replace(plain, name=f"{plain.name}-{number}")
        there = store.refs.read(name)
        if there is None or was_made_by(store, there, recipe, but=("base",)):
            return name
    return plain
