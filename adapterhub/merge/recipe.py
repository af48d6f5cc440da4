"""A merge as a document: which parents, which method, which numbers. The same recipe gives the same adapter.

A recipe is complete (every default written out) and names its parents by digest, so it can be attested and done again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import UsageError
from adapterhub.merge.specs import MethodSpec, method

SERVABLE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values vLLM accepts for --max-lora-rank; a rank between two of them costs the memory of the next."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Recipe:
    """A validated merge recipe. `rank` is "auto", "full" or a number; `dtype` of the result, None for the parents'."""

    method: str
    parents: tuple[str, ...]
    weights: tuple[float, ...]
    parameters: Mapping[str, float | str]
    rank: int | str = "auto"
    dtype: str | None = None

    @property
    def spec(self) -> MethodSpec:
        return method(self.method)

    def document(self) -> dict[str, Any]:
        """The recipe as it is attested."""
        return {
            "method": self.method,
            "space": "delta",
            "parents": list(self.parents),
            "weights": list(self.weights),
            "parameters": dict(self.parameters),
            "rank": self.rank,
            "dtype": self.dtype,
        }


def make_recipe(
    method_name: str,
    parents: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    parameters: Mapping[str, Any] | None = None,
    rank: str | int = "auto",
    dtype: str | None = None,
) -> Recipe:
    """A complete recipe; UsageError names what is wrong and the allowed range."""
    spec = method(method_name)
    count = len(parents)
    if count < spec.min_inputs or (spec.max_inputs is not None and count > spec.max_inputs):
        most = f" and at most {spec.max_inputs}" if spec.max_inputs is not None else ""
        raise UsageError(
            f"{spec.name} takes at least {spec.min_inputs}{most} adapters; {count} were given."
        )
    if weights is None:
        weights = [1.0 / count if spec.default_weights == "mean" else 1.0] * count
    if len(weights) != count:
        raise UsageError(
            f"{len(weights)} weights were given for {count} adapters.",
            why="Each adapter needs one.",
            hint="For example: --weights 0.7,0.3",
        )
    if not all(math.isfinite(weight) for weight in weights):
        raise UsageError(
            "A weight is not a finite number.", why=f"The weights are {list(weights)}."
        )
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(
            f"--dtype {dtype} is not allowed.", why=f"dtype must be one of {', '.join(DTYPES)}."
        )
    return Recipe(
        method=spec.name,
        parents=tuple(parents),
        weights=tuple(float(weight) for weight in weights),
        parameters=spec.check_parameters(parameters or {}),
        rank=_rank(rank),
        dtype=dtype,
    )


def parse_weights(text: str) -> list[float]:
    """`0.7,0.3` or `1 -0.5`."""
    try:
        return [float(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise UsageError(
            f"--weights {text} can't be read.",
            why="It must be numbers.",
            hint="For example: --weights 0.7,0.3",
        ) from None


def _rank(rank: str | int) -> str | int:
    if rank in ("auto", "full"):
        return rank
    if isinstance(rank, str) and rank.isdecimal():
        rank = int(rank)
    number = rank if isinstance(rank, int) else 0
    if not 1 <= number <= 65536:
        raise UsageError(
            f"--rank {rank} is not allowed.",
            why="rank must be auto, full, or a whole number from 1 up.",
        )
    return number
