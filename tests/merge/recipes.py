"""Recipe files followed from the text to the adapter in the store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.merge.recipe_file import read_recipe
from tests.support.dense import read_deltas

if TYPE_CHECKING:
    from adapterhub.merge.recipe import Recipe
    from tests.merge.conftest import Merged, Merger
    from tests.support.dense import Deltas

FULL = "\nrank: full\ndtype: float32\n"
"""What comparisons with dense deltas want: nothing cut off, nothing rounded."""


class Cook:
    """Adapters under short names, and recipes that use those."""

    def __init__(self, merger: Merger, folders: Mapping[str, Path]) -> None:
        self.merger = merger
        self.parents = {name: merger.add(folder) for name, folder in folders.items()}
        self.deltas: dict[str, Deltas] = {n: read_deltas(folder) for n, folder in folders.items()}

    def recipe(self, text: str) -> Recipe:
        """The recipe in `text`, of this store's adapters."""
        path = self.merger.store.home.parent / "recipe.yaml"
        path.write_text(text)
        return read_recipe(path).recipe({n: one.digest for n, one in self.parents.items()})

    def __call__(self, text: str, **settings: Any) -> Merged:
        """Merges as `text` says, untruncated."""
        recipe = self.recipe(text + FULL)
        by_digest = {parent.digest: parent for parent in self.parents.values()}
        return self.merger.run([by_digest[one] for one in recipe.parents], recipe, **settings)
