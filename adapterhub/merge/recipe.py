"""A merge as a document: which parents, which methods, which numbers. The same recipe gives the same adapter.

A recipe is complete (every default written out) and names its parents by digest, so it can be attested and done again.
It has one step, or several, of which a later one may take an earlier one's result, untruncated, as an input.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import FormatError, UsageError
from adapterhub.merge.schedule import Number, Schedule, document_of, parse_schedule
from adapterhub.merge.specs import SEMANTICS, MethodSpec, Semantics, check_parameters, method
from adapterhub.words import counted

SERVABLE_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values vLLM accepts for --max-lora-rank; a rank between two of them costs the memory of the next."""
DTYPES = ("float32", "bfloat16", "float16")
MAX_RANK = 65536


@dataclass(frozen=True)
class StepInput:
    """What a step takes: a stored adapter, or the result of an earlier step."""

    digest: str | None = None
    step: str | None = None

    def document(self) -> str | dict[str, str]:
        return self.digest if self.digest is not None else {"step": str(self.step)}


@dataclass(frozen=True)
class Step:
    """One application of a method. `rank` cuts its result before the next step; None passes it on whole."""

    method: str
    inputs: tuple[StepInput, ...]
    weights: tuple[Number, ...]
    """One an input; empty for a method that takes none."""
    parameters: Mapping[str, Any]
    name: str = ""
    rank: int | None = None

    @property
    def spec(self) -> MethodSpec:
        return method(self.method)

    @property
    def schedules(self) -> dict[str, Schedule]:
        """What differs from module to module, by the word of the recipe."""
        numbers = {f"weights[{place}]": weight for place, weight in enumerate(self.weights)}
        found = {**numbers, **self.parameters}
        return {key: value for key, value in found.items() if isinstance(value, Schedule)}

    def document(self) -> dict[str, Any]:
        """The step as it is attested."""
        return {
            "method": self.method,
            "space": "delta",
            "parents": [one.document() for one in self.inputs],
            "weights": [document_of(weight) for weight in self.weights],
            "parameters": {key: document_of(value) for key, value in self.parameters.items()},
        }


@dataclass(frozen=True)
class Recipe:
    """A validated merge recipe. `rank` is "auto", "full", "energy=SHARE" or a number; `dtype` None for the parents'."""

    steps: tuple[Step, ...]
    rank: int | str = "auto"
    dtype: str | None = None
    seed: int = 0
    dora: str | None = None
    """"approximate": DoRA parents are taken as the plain delta that they are on their base."""
    saved_from: str | None = None
    """The digest of the parent whose whole weights and biases the result takes."""
    base: str | None = None
    """The fingerprint of the base that deltas of whole weights, or of DoRA, were taken from."""

    @property
    def method(self) -> str:
        """The method of the last step, by which people call the merge."""
        return self.steps[-1].method

    @property
    def parents(self) -> tuple[str, ...]:
        """The digests of all stored adapters that go in, each once, in order."""
        found = [one.digest for step in self.steps for one in step.inputs if one.digest]
        return tuple(dict.fromkeys(found))

    def idle_rules(self, modules: Collection[str]) -> list[str]:
        """Rules that fit none of `modules`, in words."""
        return [
            f"no module fits the rule {json.dumps(rule.document())} for {key} of {step.name or step.method}"
            for step in self.steps
            for key, schedule in step.schedules.items()
            for rule in schedule.idle(modules)
        ]

    def document(self) -> dict[str, Any]:
        """The recipe as it is attested: flat with one step that isn't cut."""
        if len(self.steps) == 1 and self.steps[0].rank is None:
            plan: dict[str, Any] = self.steps[0].document()
        else:
            steps = [{"name": s.name, **s.document(), "rank": s.rank} for s in self.steps]
            plan = {"method": self.method, "steps": steps}
        plan |= {"rank": self.rank, "dtype": self.dtype}
        if any("seed" in step.spec.requires for step in self.steps):
            plan["seed"] = self.seed
        for key in ("dora", "saved_from", "base"):
            if (value := getattr(self, key)) is not None:
                plan[key] = value
        return plan


def make_step(
    method_name: str,
    inputs: Sequence[str | StepInput],
    *,
    weights: Sequence[Number] | None = None,
    parameters: Mapping[str, Any] | None = None,
    semantics: str = "paper",
    name: str = "",
    rank: int | None = None,
) -> Step:
    """A complete step; UsageError names what is wrong and the allowed range."""
    spec = method(method_name)
    check_count(spec, len(inputs))
    taken = tuple(one if isinstance(one, StepInput) else StepInput(digest=one) for one in inputs)
    return Step(
        method=spec.name,
        inputs=taken,
        weights=_weights(spec, len(taken), weights),
        parameters=check_parameters(spec, parameters or {}, parse_semantics(semantics)),
        name=name,
        rank=rank,
    )


def make_recipe(
    method_name: str,
    parents: Sequence[str],
    *,
    weights: Sequence[Number] | None = None,
    parameters: Mapping[str, Any] | None = None,
    semantics: str = "paper",
    rank: str | int | None = None,
    dtype: str | None = None,
    seed: int = 0,
) -> Recipe:
    """A complete recipe of one step; UsageError names what is wrong and the allowed range."""
    step = make_step(
        method_name, parents, weights=weights, parameters=parameters, semantics=semantics
    )
    return recipe_of((step,), rank=rank, dtype=dtype, seed=seed)


def recipe_of(
    steps: Sequence[Step], *, rank: str | int | None = None, dtype: str | None = None, seed: int = 0
) -> Recipe:
    """A complete recipe of these steps."""
    check_dtype(dtype)
    check_seed(seed)
    chosen = steps[-1].spec.default_rank if rank is None else rank
    return Recipe(tuple(steps), rank=parse_rank(chosen), dtype=dtype, seed=seed)


def check_dtype(dtype: object) -> None:
    """UsageError for what is neither a dtype nor None."""
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(
            f"--dtype {dtype} is not allowed.", why=f"dtype must be one of {', '.join(DTYPES)}."
        )


def check_seed(seed: object) -> None:
    """UsageError for what is no seed."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UsageError(
            f"--seed {seed} is not allowed.", why="seed must be a whole number from 0 to 2^63 - 1."
        )


def check_dora(dora: object) -> None:
    """UsageError for what is neither None nor a way to merge DoRA adapters."""
    if dora not in (None, "approximate"):
        raise UsageError(f"--dora {dora} is not allowed.", why="It may be approximate.")


def parse_recipe(document: Mapping[str, Any]) -> Recipe:
    """An attested recipe again. FormatError where this version can't read it."""
    try:
        rows = document.get("steps", [document])
        steps = [_parse_step(row, nested="steps" in document) for row in rows]
        recipe = Recipe(
            steps=tuple(steps),
            rank=parse_rank(document["rank"]),
            dtype=document["dtype"],
            seed=document.get("seed", 0),
            dora=document.get("dora"),
            saved_from=document.get("saved_from"),
            base=document.get("base"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            "The attested recipe can't be read.",
            why=f"It lacks something that this version of adapterhub needs: {error}.",
        ) from None
    except UsageError as error:
        raise FormatError(
            "The attested recipe can't be followed by this version of adapterhub.",
            why=" ".join(part for part in (error.what, error.why) if part),
        ) from None
    return recipe


def _parse_step(row: Mapping[str, Any], *, nested: bool) -> Step:
    inputs = [
        StepInput(digest=one) if isinstance(one, str) else StepInput(step=one["step"])
        for one in row["parents"]
    ]
    # What a recipe doesn't name came later than the recipe; the paper's default is what was done before.
    return make_step(
        row["method"],
        inputs,
        weights=[parse_schedule(one, "weights", 1.0) for one in row["weights"]] or None,
        parameters={
            key: parse_schedule(value, key, 1.0) if isinstance(value, list) else value
            for key, value in row["parameters"].items()
        },
        name=row["name"] if nested else "",
        rank=row["rank"] if nested else None,
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


def parse_rank(rank: object) -> str | int:
    """auto, full, energy=SHARE, or a number. UsageError otherwise."""
    if rank in ("auto", "full"):
        return str(rank)
    if isinstance(rank, str) and rank.startswith("energy="):
        return f"energy={_share(rank)!r}"
    if isinstance(rank, str) and rank.isdecimal() and len(rank) < 9:
        rank = int(rank)
    number = rank if isinstance(rank, int) and not isinstance(rank, bool) else 0
    if not 1 <= number <= MAX_RANK:
        raise UsageError(
            f"--rank {rank} is not allowed.",
            why="rank must be auto, full, a whole number from 1 up, or energy=SHARE.",
            hint="For example: --rank 16   or   --rank energy=0.99",
        )
    return number


def energy_share(rank: str | int) -> float | None:
    """The share of `energy=SHARE`; None for the other rules."""
    return _share(rank) if isinstance(rank, str) and rank.startswith("energy=") else None


def _share(rank: str) -> float:
    try:
        share = float(rank.removeprefix("energy="))
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise UsageError(
            f"--rank {rank} is not allowed.",
            why="The share of the energy must be above 0 and up to 1.",
            hint="For example: --rank energy=0.99",
        )
    return share


def check_count(spec: MethodSpec, count: int) -> None:
    """UsageError where the method doesn't take so many adapters."""
    if count < spec.min_inputs or (spec.max_inputs is not None and count > spec.max_inputs):
        raise UsageError(
            f"{spec.name} takes {_how_many(spec)}; {count} {'was' if count == 1 else 'were'} given."
        )


def default_weight(spec: MethodSpec, count: int) -> float:
    """The weight of each of `count` adapters where none is given."""
    return 1.0 / count if spec.default_weights == "mean" else 1.0


def _weights(spec: MethodSpec, count: int, weights: Sequence[Number] | None) -> tuple[Number, ...]:
    if spec.default_weights == "none":
        if weights is not None:
            raise UsageError(
                f"{spec.name} takes no weights.",
                why="Its parameters: "
                + (", ".join(p.flag for p in spec.parameters) or "none")
                + ".",
                hint=f"adapterhub methods {spec.name}",
            )
        return ()
    if weights is None:
        weights = [default_weight(spec, count)] * count
    if len(weights) != count:
        raise UsageError(
            f"{counted(len(weights), 'weight')} {'was' if len(weights) == 1 else 'were'} given for {counted(count, 'adapter')}.",
            why="Each adapter needs one.",
            hint="For example: --weights 0.7,0.3",
        )
    if not all(isinstance(weight, Schedule) or math.isfinite(weight) for weight in weights):
        raise UsageError(
            "A weight is not a finite number.", why=f"The weights are {list(weights)}."
        )
    return tuple(weight if isinstance(weight, Schedule) else float(weight) for weight in weights)


def _how_many(spec: MethodSpec) -> str:
    least, most = spec.min_inputs, spec.max_inputs
    if least == most:
        return f"exactly {least} adapter{'s' if least > 1 else ''}"
    return f"at least {least}" + (f" and at most {most}" if most is not None else "") + " adapters"


def parse_semantics(text: object) -> Semantics:
    """paper, peft or mergekit. UsageError otherwise."""
    for known in SEMANTICS:
        if text == known:
            return known
    raise UsageError(
        f"--semantics {text} is not allowed.", why=f"It must be {' or '.join(SEMANTICS)}."
    )
