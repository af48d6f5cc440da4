"""What a merge method is, as frozen data from which flags, help, recipes and forms are made. No torch in here.

A method's *family* says what its kernel computes. `sum`: coefficients c with ΔW = Σ cᵢ ΔWᵢ, exact in factored form.
`elementwise`: a function of the parents' deltas element by element, streamed in row blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Any, Literal

from adapterhub.errors import UsageError
from adapterhub.words import did_you_mean

Value = float | int | str | bool
"""What a parameter can be; a number may also vary from module to module (adapterhub.merge.schedule)."""
Family = Literal["sum", "elementwise"]
Kind = Literal["number", "integer", "choice", "flag"]
Semantics = Literal["paper", "peft", "mergekit"]
SEMANTICS: tuple[Semantics, ...] = ("paper", "peft", "mergekit")
Requirement = Literal[
    "gram",  # inner products of the parents' deltas
    "seed",  # random masks
]
Law = Literal[
    "gauge",  # unchanged when (B, A) becomes (B·R, R⁻¹·A)
    "single",  # merging one adapter with weight 1 gives that adapter
    "same",  # merging an adapter with itself, default weights, gives that adapter
    "order",  # the order of the parents doesn't matter
    "scaling",  # all weights times c: the result times c
    "homogeneous",  # all parents times c: the result times c
    "permutation",  # rows and columns permuted in all parents: in the result too
    "dense",  # density 1 (and no other cut) is the weighted sum
    "unbiased",  # the mean over seeds is the weighted sum
]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a method. The same word is the flag, the recipe's key and the kernel's argument."""

    name: str
    help: str
    default: Value
    kind: Kind = "number"
    minimum: float | None = None
    maximum: float | None = None
    above_minimum: bool = False
    """The minimum itself is not allowed."""
    choices: tuple[str, ...] = ()
    varies: bool = False
    """Whether a recipe may give it module by module."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """The allowed values, in words."""
        if self.kind == "choice":
            return " or ".join(self.choices)
        if self.kind == "flag":
            return "yes or no"
        low = (
            f"{'above' if self.above_minimum else 'from'} {self.minimum:g}"
            if self.minimum is not None
            else ""
        )
        high = f"up to {self.maximum:g}" if self.maximum is not None else ""
        what = "any whole number" if self.kind == "integer" else "any number"
        return " ".join(part for part in (low, high) if part) or what

    def check(self, value: object) -> Value:
        """`value` if it is allowed; UsageError naming the range if not."""
        if self.kind == "choice":
            if value in self.choices:
                return str(value)
        elif self.kind == "flag":
            if isinstance(value, bool):
                return value
        elif isinstance(value, int | float) and not isinstance(value, bool) and self._inside(value):
            return int(value) if self.kind == "integer" else float(value)
        raise UsageError(
            f"{self.flag} {value} is not allowed.", why=f"{self.name} must be {self.range}."
        )

    def _inside(self, value: float) -> bool:
        low, high = self.minimum, self.maximum
        if value != value or value in (float("inf"), float("-inf")):
            return False
        if self.kind == "integer" and value != int(value):
            return False
        if low is not None and (value < low or (self.above_minimum and value == low)):
            return False
        return high is None or value <= high


@dataclass(frozen=True)
class MethodSpec:
    """One merge method: what it is, what it takes, what it promises, and where its kernel is."""

    name: str
    title: str
    paper: str
    good_for: str
    family: Family
    kernel: str
    """`module:function`, imported when it runs. Its signature is that of the family: see adapterhub.merge.stages."""
    default_weights: Literal["mean", "one", "none"]
    """1/K each, 1 each, or the method takes none."""
    parameters: tuple[ParameterSpec, ...] = ()
    semantics: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    """Other projects' defaults of the parameters, where a method of this name is another function there."""
    min_inputs: int = 1
    max_inputs: int | None = None
    requires: tuple[Requirement, ...] = ()
    spaces: tuple[str, ...] = ("delta",)
    default_rank: str = "auto"
    laws: tuple[Law, ...] = ("gauge", "order")
    """What holds with the default parameters."""

    def parameter(self, name: str) -> ParameterSpec | None:
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    def defaults(self, semantics: Semantics = "paper") -> dict[str, Value]:
        """Every parameter's default; UsageError where no method of this name has these semantics."""
        if semantics != "paper" and semantics not in self.semantics:
            known = ", ".join(["paper", *self.semantics])
            raise UsageError(
                f"The method {self.name} has no semantics '{semantics}'.",
                why=f"It has: {known}.",
                hint=f"adapterhub methods {self.name}",
            )
        return {p.name: p.default for p in self.parameters} | dict(
            self.semantics.get(semantics, {})
        )

    def require(self, name: str) -> ParameterSpec:
        """The parameter `name`; UsageError naming those there are."""
        found = self.parameter(name)
        if found is None:
            known = ", ".join(parameter.flag for parameter in self.parameters) or "none"
            raise UsageError(
                f"The method {self.name} has no parameter {name}.",
                why=did_you_mean(name, [p.name for p in self.parameters])
                or f"Its parameters: {known}.",
                hint=f"adapterhub methods {self.name}",
            )
        return found


@cache
def methods() -> Mapping[str, MethodSpec]:
    """All methods by name: ours, and those of other packages (entry-point group `adapterhub.merge_methods`)."""
    from adapterhub.merge.builtin import BUILT_IN

    found = {spec.name: spec for spec in BUILT_IN}
    for point in entry_points(group="adapterhub.merge_methods"):
        spec = point.load()
        if not isinstance(spec, MethodSpec) or spec.name in found:
            raise UsageError(
                f"The package {point.dist.name if point.dist else '?'} offers a merge method that can't be taken.",
                why=f"{point.value} is no MethodSpec, or its name is taken.",
            )
        found[spec.name] = spec
    return MappingProxyType(found)


def method(name: str) -> MethodSpec:
    """The method called `name`; UsageError with the nearest names when there is none."""
    known = methods()
    plain = name.lower().replace("-", "_")
    if plain not in known:
        raise UsageError(
            f"There is no merge method '{name}'.",
            why=did_you_mean(plain, known) or f"There are: {', '.join(known)}.",
            hint="adapterhub methods",
        )
    return known[plain]


def check_parameters(
    spec: MethodSpec, given: Mapping[str, Any], semantics: Semantics = "paper"
) -> dict[str, Any]:
    """All parameters of `spec`, checked, the rest from `semantics`. Values that vary by module come as Schedules."""
    from adapterhub.merge.schedule import Schedule

    resolved: dict[str, Any] = spec.defaults(semantics)
    for name, value in given.items():
        parameter = spec.require(name)
        if isinstance(value, Schedule):
            if not parameter.varies:
                raise UsageError(
                    f"{name} can't differ from module to module.",
                    why=f"{spec.title} has one {name} for the whole adapter.",
                )
            resolved[name] = value.checked(parameter.check)
        else:
            resolved[name] = parameter.check(value)
    return resolved
