"""`merger`: merges folders through the real store and hands back what is there then, read by the tests' own reader."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from adapterhub.lora.memory import DEFAULT
from adapterhub.merge.recipe import Recipe, make_recipe
from adapterhub.merge.run import MergeOutcome, Resources, merge
from adapterhub.merge.schedule import Number
from adapterhub.store import Resolved, Store
from tests.support.adapters import AdapterMaker
from tests.support.dense import Deltas, read_deltas


class Counter:
    """A progress bar that only counts."""

    def __init__(self) -> None:
        self.done = 0.0

    def advance(self, amount: float = 1, **_: object) -> None:
        self.done += amount

    def update(self, description: str) -> None:
        """What is being done now."""


@contextmanager
def silent(_: str, __: float | None) -> Iterator[Counter]:
    yield Counter()


def state(store: Store) -> dict[str, bytes]:
    """Every file of the store but locks and runs, which record the attempt."""
    found = {}
    for path in sorted(store.home.rglob("*")):
        relative = path.relative_to(store.home).as_posix()
        if path.is_file() and not relative.startswith("runs/") and path.name != "lock":
            found[relative] = path.read_bytes()
    return found


@dataclass(frozen=True)
class Merged:
    """The result of one merge, as a PEFT folder."""

    outcome: MergeOutcome
    folder: Path
    warnings: list[str]

    @cached_property
    def deltas(self) -> Deltas:
        return read_deltas(self.folder)

    @property
    def report(self) -> Mapping[str, Any]:
        return self.outcome.report

    @property
    def content(self) -> str:
        return self.outcome.manifest.content


@dataclass
class Merger:
    """Adds folders to `store` under fresh names and merges them."""

    store: Store
    make: AdapterMaker
    _numbers: Iterator[int] = field(default_factory=count)

    def adapter(self, **settings: Any) -> Path:
        """A folder of its own name; settings as `make_adapter`."""
        return self.make(f"a{next(self._numbers)}", **settings)

    def add(self, folder: Path, **settings: Any) -> Resolved:
        name = f"n{next(self._numbers)}"
        self.store.add_folder(folder, name=name, **settings)
        return self.store.resolve(name)

    def __call__(self, folders: Sequence[Path], method: str = "linear", **settings: Any) -> Merged:
        """As `of`, for folders that are added first."""
        return self.of([self.add(folder) for folder in folders], method, **settings)

    def of(
        self,
        parents: Sequence[Resolved],
        method: str = "linear",
        *,
        weights: Sequence[Number] | None = None,
        rank: str | int = "full",
        dtype: str | None = "float32",
        seed: int = 0,
        semantics: str = "paper",
        dora: str | None = None,
        saved_from: Resolved | None = None,
        **settings: Any,
    ) -> Merged:
        """Merges; `settings` that `run` doesn't know are the method's parameters."""
        known = ("workers", "memory", "base", "allow_mismatch")
        recipe = make_recipe(
            method,
            [parent.digest for parent in parents],
            weights=weights,
            parameters={key: value for key, value in settings.items() if key not in known},
            rank=rank,
            dtype=dtype,
            seed=seed,
            semantics=semantics,
        )
        kept = None if saved_from is None else saved_from.digest
        recipe = replace(recipe, dora=dora, saved_from=kept)
        return self.run(parents, recipe, **{k: v for k, v in settings.items() if k in known})

    def run(
        self,
        parents: Sequence[Resolved],
        recipe: Recipe,
        *,
        workers: int | None = 1,
        memory: int = DEFAULT,
        base: str | None = None,
        allow_mismatch: bool = False,
    ) -> Merged:
        """Runs a recipe under a fresh name, whether or not it was run before."""
        warnings: list[str] = []
        outcome = merge(
            self.store,
            parents,
            recipe,
            name=f"m{next(self._numbers)}",
            progress=silent,
            redo=True,
            base=base,
            resources=Resources(workers=workers, memory=memory),
            allow_mismatch=allow_mismatch,
            warn=warnings.append,
        )
        return Merged(outcome, self.store.view(outcome.digest), warnings)


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about numbers: waiting for the disk would be most of their time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def merger(store: Store, make_adapter: AdapterMaker) -> Merger:
    return Merger(store, make_adapter)
