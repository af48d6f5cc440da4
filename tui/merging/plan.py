"""A merge as it is planned: what the form holds, the words it stands for, and what is wrong with it.

Nothing here touches the store. A field that the user has left alone has the method's default, whichever method that is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub.errors import AdapterHubError
from adapterhub.merge.recipe import (
    Recipe,
    check_count,
    check_seed,
    default_weight,
    make_recipe,
    parse_rank,
)
from adapterhub.merge.specs import SEMANTICS, MethodSpec, ParameterSpec, Semantics, method
from adapterhub.names import parse_name
from adapterhub.tui.problem import Problem

PLAIN_METHOD = "linear"
"""What `merge` does where no method is named."""


@dataclass(frozen=True)
class Plan:
    """A merge of one step. Numbers that are typed are kept as they were typed until they are asked for."""

    names: tuple[str, ...]
    method: str = PLAIN_METHOD
    weights: Mapping[str, float] | None = None
    """By name; None for the method's own."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Those that were set, of whichever method."""
    semantics: Semantics = "paper"
    rank: str = ""
    dtype: str = ""
    seed: str = ""
    name: str = ""
    move: bool = False
    allow_mismatch: bool = False

    @classmethod
    def of(cls, names: Sequence[str], given: Mapping[str, Any] | None) -> Plan:
        """A plan to begin with; `given` may have method, weights (in order of the names), parameters, rank, name."""
        given = dict(given or {})
        weights = dict(zip(names, given.pop("weights", None) or (), strict=False))
        parameters = dict(given.pop("parameters", None) or {})
        plan = cls(tuple(names), parameters=parameters, weights=weights or None)
        return replace(plan, **{key: value for key, value in given.items() if value is not None})

    @property
    def spec(self) -> MethodSpec:
        return method(self.method)

    @property
    def takes_weights(self) -> bool:
        return self.spec.default_weights != "none"

    @property
    def asks_for_seed(self) -> bool:
        return "seed" in self.spec.requires

    @property
    def has_an_order(self) -> bool:
        """Whether another order of the adapters may give another result."""
        return "order" not in self.spec.laws or not self.takes_weights

    @property
    def default_weight(self) -> float:
        """The method's own weight of each adapter."""
        return default_weight(self.spec, len(self.names))

    def weight(self, name: str) -> float:
        """The weight of one adapter."""
        return (self.weights or {}).get(name, self.default_weight)

    def weights_in_order(self) -> list[float] | None:
        """None where they are the method's own."""
        if not self.takes_weights or self.weights is None:
            return None
        found = [self.weight(name) for name in self.names]
        return None if all(weight == self.default_weight for weight in found) else found

    def default(self, parameter: ParameterSpec) -> Any:
        """A parameter's default with these semantics."""
        return self._defaults().get(parameter.name, parameter.default)

    def value(self, parameter: ParameterSpec) -> Any:
        return self.parameters.get(parameter.name, self.default(parameter))

    def set_parameters(self) -> dict[str, Any]:
        """Those of this method that differ from its defaults."""
        values = {one.name: self.value(one) for one in self.spec.parameters}
        return {key: value for key, value in values.items() if value != self._defaults()[key]}

    def _defaults(self) -> Mapping[str, Any]:
        known = self.semantics == "paper" or self.semantics in self.spec.semantics
        return self.spec.defaults(self.semantics if known else "paper")

    def with_weight(self, name: str, weight: float) -> Plan:
        weights = {one: self.weight(one) for one in self.names}
        return replace(self, weights={**weights, name: weight})

    def with_parameter(self, name: str, value: Any) -> Plan:
        return replace(self, parameters={**self.parameters, name: value})

    def with_method(self, name: str) -> Plan:
        """The same with another method; semantics that it doesn't have become the paper's."""
        there = self.semantics in method(name).semantics
        return replace(self, method=name, semantics=self.semantics if there else "paper")

    def moved(self, name: str, steps: int) -> Plan:
        """With an adapter further up or down."""
        names = list(self.names)
        place = names.index(name)
        to = max(0, min(len(names) - 1, place + steps))
        names.insert(to, names.pop(place))
        return replace(self, names=tuple(names))

    def with_names(self, names: Sequence[str]) -> Plan:
        """Weights of those that stay are kept."""
        weights = self.weights and {name: w for name, w in self.weights.items() if name in names}
        return replace(self, names=tuple(names), weights=weights or None)

    def recipe(self, digests: Sequence[str]) -> Recipe:
        """As the command line makes it; AdapterHubError says what is wrong."""
        return make_recipe(
            self.spec.name,
            digests,
            weights=self.weights_in_order(),
            parameters=self.set_parameters(),
            semantics=self.semantics,
            rank=self.rank or None,
            dtype=self.dtype or None,
            seed=_seed(self.seed) if self.asks_for_seed else 0,
        )

    def words(self) -> list[str]:
        """What is typed after `adapterhub`: only what isn't a default."""
        found = ["merge", *self.names]
        if self.method != PLAIN_METHOD:
            found += ["--method", self.method]
        if (weights := self.weights_in_order()) is not None:
            found += _option("--weights", ",".join(map(_number, weights)))
        if self.semantics != "paper":
            found += _option("--semantics", self.semantics)
        for key, value in self.set_parameters().items():
            flag = self.spec.require(key).flag
            if isinstance(value, bool):
                found.append(flag if value else f"--no-{flag.removeprefix('--')}")
            else:
                found += _option(flag, _number(value))
        if self.rank and self.rank != self.spec.default_rank:
            found += _option("--rank", self.rank)
        if self.dtype:
            found += _option("--dtype", self.dtype)
        if self.asks_for_seed and self.seed.strip() not in ("", "0"):
            found += _option("--seed", self.seed.strip())
        if self.name:
            found += _option("--name", self.name)
        return [
            *found,
            *(["--move"] if self.move else []),
            *(["--allow-mismatch"] if self.allow_mismatch else []),
        ]


def problems(plan: Plan) -> dict[str, str]:
    """What is wrong with single fields, in the command line's words, by field: `rank`, `parameter:density`, ..."""
    found: dict[str, str] = {}

    def check(field: str, ask: Callable[[], object]) -> None:
        try:
            ask()
        except AdapterHubError as error:
            told = Problem.of(error)
            found[field] = f"{told.what} {told.why}".strip()

    check("names", lambda: check_count(plan.spec, len(plan.names)))
    for one in plan.spec.parameters:
        check(f"parameter:{one.name}", lambda one=one: one.check(plan.value(one)))  # type: ignore[misc]
    check("rank", lambda: parse_rank(plan.rank or plan.spec.default_rank))
    if plan.asks_for_seed:
        check("seed", lambda: _seed(plan.seed))
    if plan.name:
        check("name", lambda: parse_name(plan.name))
    if not found:
        check("method", lambda: plan.recipe([f"sha256:{place:064x}" for place in range(len(plan.names))]))  # fmt: skip
    return found


def semantics_of(spec: MethodSpec) -> list[Semantics]:
    """Whose defaults there are."""
    return [one for one in SEMANTICS if one == "paper" or one in spec.semantics]


def _number(value: object) -> str:
    """As short as it can be typed without becoming another number."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _option(flag: str, value: str) -> list[str]:
    """A value that looks like a flag has to be tied to its own."""
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]


def _seed(text: str) -> int:
    seed: object = int(text) if text.strip().isdecimal() else text
    check_seed(seed if text.strip() else 0)
    return int(text) if text.strip() else 0
