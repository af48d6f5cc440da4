"""What merge methods there are: frozen data from which flags, help, recipes and forms are made. No torch in here.

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

Family = Literal["sum", "elementwise"]
Law = Literal[
    "gauge",  # unchanged when (B, A) becomes (B·R, R⁻¹·A)
    "single",  # merging one adapter with weight 1 gives that adapter
    "same",  # merging an adapter with itself, default weights, gives that adapter
    "order",  # the order of the parents doesn't matter
    "scaling",  # all weights times c: the result times c
]


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter of a method. The same word is the flag, the recipe's key and the kernel's argument."""

    name: str
    help: str
    default: float | str
    minimum: float | None = None
    maximum: float | None = None
    above_minimum: bool = False
    """The minimum itself is not allowed."""
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """The allowed values, in words."""
        if self.choices:
            return " or ".join(self.choices)
        low = (
            f"{'above' if self.above_minimum else 'from'} {self.minimum:g}"
            if self.minimum is not None
            else ""
        )
        high = f"up to {self.maximum:g}" if self.maximum is not None else ""
        return " ".join(part for part in (low, high) if part) or "any number"

    def check(self, value: object) -> float | str:
        """`value` if it is allowed; UsageError naming the range if not."""
        if self.choices:
            if value in self.choices:
                return str(value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and self._inside(value):
            return float(value)
        raise UsageError(
            f"{self.flag} {value} is not allowed.", why=f"{self.name} must be {self.range}."
        )

    def _inside(self, value: float) -> bool:
        low, high = self.minimum, self.maximum
        if value != value or value in (float("inf"), float("-inf")):
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
    """`module:function`, imported when it runs."""
    default_weights: Literal["mean", "one"]
    """1/K each, or 1 each."""
    parameters: tuple[ParameterSpec, ...] = ()
    min_inputs: int = 1
    max_inputs: int | None = None
    spaces: tuple[str, ...] = ("delta",)
    laws: tuple[Law, ...] = field(default=("gauge", "order"))

    def parameter(self, name: str) -> ParameterSpec | None:
        return next((parameter for parameter in self.parameters if parameter.name == name), None)

    def check_parameters(self, given: Mapping[str, Any]) -> dict[str, float | str]:
        """All parameters of the method with their values; UsageError for a foreign name or a value out of range."""
        for name in given:
            if self.parameter(name) is None:
                known = ", ".join(parameter.flag for parameter in self.parameters) or "none"
                raise UsageError(
                    f"The method {self.name} has no parameter {name}.",
                    why=f"Its parameters: {known}.",
                    hint=f"adapterhub methods {self.name}",
                )
        return {
            p.name: p.check(given[p.name]) if p.name in given else p.default
            for p in self.parameters
        }


LINEAR = MethodSpec(
    name="linear",
    title="Weighted sum",
    paper="Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv:2212.04089",
    good_for="Adapters that hardly interfere; interpolation; a negative weight takes a behaviour out.",
    family="sum",
    kernel="adapterhub.merge.methods.linear:coefficients",
    default_weights="mean",
    laws=("gauge", "single", "same", "order", "scaling"),
)

TIES = MethodSpec(
    name="ties",
    title="Trim, elect sign, disjoint merge",
    paper="Yadav et al. 2023, TIES-Merging: Resolving Interference When Merging Models, arXiv:2306.01708",
    good_for="Adapters whose signs conflict: keeps each one's largest changes and averages only those that agree.",
    family="elementwise",
    kernel="adapterhub.merge.methods.ties:prepare",
    default_weights="one",
    parameters=(
        ParameterSpec(
            "density",
            "Share of each adapter's elements that survives the trim.",
            0.2,
            0,
            1,
            above_minimum=True,
        ),
        ParameterSpec("lambda", "Factor on the merged delta.", 1.0),
        ParameterSpec(
            "trim_scope",
            "Trim over the adapter's whole task vector (model, as in the paper) or module by module.",
            "model",
            choices=("model", "module"),
        ),
    ),
    laws=("gauge", "order", "scaling"),
)

_BUILT_IN = (LINEAR, TIES)


@cache
def methods() -> Mapping[str, MethodSpec]:
    """All methods by name: ours, and those of other packages (entry-point group `adapterhub.merge_methods`)."""
    found = {spec.name: spec for spec in _BUILT_IN}
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
    if name not in known:
        raise UsageError(
            f"There is no merge method '{name}'.",
            why=did_you_mean(name, known) or f"There are: {', '.join(known)}.",
            hint="adapterhub methods",
        )
    return known[name]
