"""`exporter`: adapters into a tiny base through the real store, with the folder that came out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

import pytest

from adapterhub.export.checked import Depth
from adapterhub.export.run import Exported, ProgressFactory, export
from adapterhub.merge.recipe import make_recipe
from adapterhub.merge.run import Resources
from adapterhub.store import Resolved, Store

ONE = Resources(workers=1)


class Bar:
    """Progress that calls `on_advance` with the total so far, which may raise."""

    def __init__(self, on_advance: Callable[[float], None]) -> None:
        self.done = 0.0
        self._on_advance = on_advance

    def advance(self, amount: float = 1, **_: object) -> None:
        self.done += amount
        self._on_advance(self.done)

    def update(self, text: str) -> None:
        """Nobody reads it."""


@contextmanager
def silent(_: str, __: float | None) -> Iterator[Bar]:
    yield Bar(lambda _: None)


@dataclass
class Exporter:
    """Adds folders under fresh names and exports them."""

    store: Store
    root: Path
    _numbers: Iterator[int] = field(default_factory=count)

    def add(self, folder: Path, **settings: Any) -> Resolved:
        name = f"n{next(self._numbers)}"
        self.store.add_folder(folder, name=name, **settings)
        return self.store.resolve(name)

    def __call__(
        self,
        adapters: Sequence[Path | Resolved],
        base: Path | None,
        method: str = "linear",
        *,
        weights: Sequence[float] | None = None,
        saved_from: str | None = None,
        base_view: str | None = None,
        quantize: Literal["nf4"] | None = None,
        into: Path | None = None,
        progress: ProgressFactory = silent,
        overwrite: bool = False,
        verify: Depth = "weights",
        resume: bool = False,
        resources: Resources = ONE,
        allow_mismatch: bool = False,
        note: Callable[[str], None] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
        **parameters: Any,
    ) -> Exported:
        parents = [self.add(one) if isinstance(one, Path) else one for one in adapters]
        recipe = make_recipe(
            method,
            [parent.digest for parent in parents],
            weights=weights,
            parameters=parameters,
        )
        recipe = replace(recipe, saved_from=saved_from)
        return export(
            self.store,
            parents,
            recipe,
            into or self.root / f"model{next(self._numbers)}",
            base=None if base is None else str(base),
            base_view=base_view,
            quantize=quantize,
            progress=progress,
            overwrite=overwrite,
            verify=verify,
            resume=resume,
            allow_mismatch=allow_mismatch,
            resources=resources,
            note=note,
            warn=warn,
        )


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests are about numbers: waiting for the disk would be most of their time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def exporter(store: Store, tmp_path: Path) -> Exporter:
    return Exporter(store, tmp_path / "exported")
