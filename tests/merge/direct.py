"""The engine without a store around it: parents are factors in memory, results whole float64 matrices.

For laws and comparisons that take hundreds of merges. What the store adds is tested through `merger`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any, cast

import numpy as np
import torch

from adapterhub.lora.memory import DEFAULT, Memory
from adapterhub.lora.rows import Factored, Rows, whole
from adapterhub.merge.engine import Engine
from adapterhub.merge.recipe import make_recipe
from adapterhub.merge.report import MergeReport
from adapterhub.merge.spool import Spool
from tests.support.adapters import Shapes
from tests.support.dense import Deltas

Pairs = dict[str, Factored]
"""Module -> B·A of one parent, the scale in B."""


@dataclass(frozen=True)
class Given:
    """A stage whose deltas are at hand."""

    deltas: Mapping[str, Rows]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {module: delta.shape for module, delta in self.deltas.items()}

    @property
    def largest_rank(self) -> int:
        return max((d.rank for d in self.deltas.values() if isinstance(d, Factored)), default=0)

    def open(self, module: str) -> Rows | None:
        return self.deltas.get(module)


def pairs(shapes: Shapes, rank: int, seed: int, scale: float = 1.0) -> Pairs:
    """Normal factors, each module with numbers of its own."""
    found = {}
    for place, (module, (out, width)) in enumerate(sorted(shapes.items())):
        random = np.random.default_rng((seed, place))
        b = scale * random.standard_normal((out, rank))
        a = random.standard_normal((rank, width))
        found[module] = factored(b, a)
    return found


def factored(b: Any, a: Any) -> Factored:
    """From any matrices, rounded to float32."""
    return Factored(*(torch.from_numpy(np.ascontiguousarray(m, np.float32)) for m in (b, a)))


def dense(parent: Mapping[str, Rows]) -> Deltas:
    """The deltas in float64: of factors the exact product, of other rows what they give."""
    return {
        module: (
            delta.b.double() @ delta.a.double()
            if isinstance(delta, Factored)
            else whole(delta).double()
        ).numpy()
        for module, delta in parent.items()
    }


def engine(
    parents: Sequence[Mapping[str, Rows]],
    method: str,
    *,
    weights: Sequence[float] | None = None,
    rank: str | int = "full",
    seed: int = 0,
    semantics: str = "paper",
    workers: int | None = 1,
    memory: int = DEFAULT,
    parameters: Mapping[str, Any] | None = None,
) -> Engine:
    """An engine on parents that are called 0, 1, ..."""
    names = [str(place) for place in range(len(parents))]
    recipe = make_recipe(
        method,
        names,
        weights=weights,
        parameters=parameters,
        semantics=semantics,
        rank=rank,
        seed=seed,
    )
    stages = {name: Given(parent) for name, parent in zip(names, parents, strict=True)}
    return Engine(recipe, stages, workers, Memory(memory))


def merged(parents: Sequence[Mapping[str, Rows]], method: str, **settings: Any) -> Deltas:
    """What `method` makes of the parents before anything is cut off; settings as `engine`."""
    result = engine(parents, method, **settings).result()
    return dense({module: _there(result.open(module)) for module in sorted(result.shapes)})


def cut(run: Engine) -> tuple[Deltas, MergeReport]:
    """The result at the recipe's rank, as it would be written in float32, and the report."""
    result = run.result()
    names = sorted(result.shapes)
    with NamedTemporaryFile() as file:
        spool = Spool(cast(IO[bytes], file), Path(file.name))
        report = run.factors(result, spool, names)
        found = {name: Factored(*spool.get(name, report.ranks[name])) for name in names}
    return dense(found), report


def _there(delta: Rows | None) -> Rows:
    assert delta is not None
    return delta
