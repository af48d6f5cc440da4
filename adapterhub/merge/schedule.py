"""A number that may differ from module to module: rules by name and layer, and gradients over the layers.

In a recipe it is a number, a list of numbers (a gradient: spread evenly over the model's layers, straight lines between
them), or a list of rules `{modules: REGEX, layers: [first, last], value: NUMBER_OR_GRADIENT}` of which the first that fits
counts. A gradient under `layers` is spread over those layers; what is in no layer passes it by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from adapterhub.errors import UsageError
from adapterhub.words import briefly, did_you_mean, shown

_LAYER = re.compile(r"(?:^|\.)(\d+)(?=\.)")
_PATTERN_SECONDS = 1.0
_EITHER = "It must be a number, a list of numbers (a gradient over the layers), or a list of rules."
_RULE = "A rule is like {modules: 'mlp.*', layers: [0, 9], value: 0.3}; modules and layers may be left out."
_NUMBERS = "It must be a number, or a list of numbers."


def layer_of(module: str) -> int | None:
    """The layer a module belongs to: the first number between dots of its name; None where there is none."""
    found = _LAYER.search(module)
    return int(found[1]) if found else None


def count_layers(modules: Iterable[str]) -> int:
    """How many layers the model has of which these are modules: gradients are spread over them."""
    numbers = [layer_of(name) for name in modules]
    return 1 + max((number for number in numbers if number is not None), default=0)


@dataclass(frozen=True)
class Rule:
    """`value` (a number or a gradient) for the modules that `modules` matches, in `layers` (both included).

    As in PEFT's patterns, `modules` is a regular expression for a module's name or for its end from a dot on: `q_proj`,
    `mlp\\..*`.
    """

    value: tuple[float, ...]
    modules: str | None = None
    layers: tuple[int, int] | None = None

    def fits(self, module: str) -> bool:
        """Whether the rule is for `module`. UsageError for a pattern that takes too long."""
        if self.layers is not None:
            layer = layer_of(module)
            if layer is None or not self.layers[0] <= layer <= self.layers[1]:
                return False
        if self.modules is None:
            return True
        import regex

        try:
            pattern = rf"(?:.*\.)?(?:{self.modules})"
            found = regex.fullmatch(pattern, module, timeout=_PATTERN_SECONDS)
        except TimeoutError:
            raise UsageError(
                f"The pattern {self.modules} takes too long.",
                why=f"It was still searching {module} after {_PATTERN_SECONDS:g} s.",
            ) from None
        return found is not None

    def document(self) -> dict[str, Any]:
        """As a recipe says it."""
        row: dict[str, Any] = {} if self.modules is None else {"modules": self.modules}
        if self.layers is not None:
            row["layers"] = list(self.layers)
        return {**row, "value": self.value[0] if len(self.value) == 1 else list(self.value)}

    def at(self, module: str, layers: int) -> float | None:
        """The value for a module that fits; None where a gradient meets a module that is in no layer."""
        if len(self.value) == 1:
            return self.value[0]
        layer = layer_of(module)
        if layer is None:
            return None
        first, last = self.layers or (0, layers - 1)
        place = (layer - first) / max(1, last - first) * (len(self.value) - 1)
        left = min(int(place), len(self.value) - 2)
        low, high = self.value[left], self.value[left + 1]
        return low + (high - low) * (place - left)


@dataclass(frozen=True)
class Schedule:
    """Rules in order; modules that none fits have the value `otherwise`."""

    rules: tuple[Rule, ...]
    otherwise: float

    def at(self, module: str, layers: int) -> float:
        """The value for `module` of a model of `layers` layers."""
        for rule in self.rules:
            if rule.fits(module) and (value := rule.at(module, layers)) is not None:
                return value
        return self.otherwise

    def checked(self, check: Callable[[object], Any]) -> Schedule:
        """The same schedule; UsageError where `check` refuses one of its numbers."""
        for value in (self.otherwise, *(value for rule in self.rules for value in rule.value)):
            check(value)
        return self

    def idle(self, modules: Collection[str]) -> list[Rule]:
        """The rules that fit none of `modules`."""
        return [rule for rule in self.rules if not any(map(rule.fits, modules))]

    def document(self) -> list[dict[str, Any]]:
        """As a recipe says it; `parse_schedule` reads it again. The last rule is what holds otherwise."""
        return [*(rule.document() for rule in self.rules), {"value": self.otherwise}]


Number = float | Schedule


def value_at(number: Any, module: str, layers: int) -> Any:
    """`number` for `module`, whether or not it varies."""
    return number.at(module, layers) if isinstance(number, Schedule) else number


def document_of(number: Any) -> Any:
    """`number` as a recipe says it."""
    return number.document() if isinstance(number, Schedule) else number


def parse_schedule(
    value: object, path: str, otherwise: float, check: Callable[[object], Any] | None = None
) -> Number:
    """A number, a gradient, or rules. UsageError with the path of what is wrong, also where `check` refuses a number.

    `otherwise` holds for the modules that no rule fits, unless the last rule is a number for all the rest.
    """
    if not isinstance(value, list):
        return _number(value, path, check, _EITHER)
    if not value:
        raise UsageError(f"{path}: the list is empty.", why=_EITHER)
    if not isinstance(value[0], dict):
        numbers = (_number(item, f"{path}[{i}]", check, _EITHER) for i, item in enumerate(value))
        return Schedule((Rule(tuple(numbers)),), otherwise)
    rules = [_rule(item, f"{path}[{place}]", check) for place, item in enumerate(value)]
    last = rules[-1]
    if last == Rule(last.value) and len(last.value) == 1:
        return Schedule(tuple(rules[:-1]), last.value[0])
    return Schedule(tuple(rules), otherwise)


def _number(value: object, path: str, check: Callable[[object], Any] | None, why: str) -> float:
    found = math.nan
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
    if not math.isfinite(found):
        raise UsageError(f"{path}: {shown(value)} is no number.", why=why)
    if check is not None:
        try:
            check(found)
        except UsageError as error:
            raise UsageError(f"{path}: {found:g} is not allowed.", why=error.why) from None
    return found


def _rule(item: object, path: str, check: Callable[[object], Any] | None) -> Rule:
    if not isinstance(item, dict):
        raise UsageError(f"{path}: {shown(item)} is no rule.", why=_RULE)
    for key in item:
        if key not in ("modules", "layers", "value"):
            raise UsageError(
                f"{path}.{briefly(key)}: there is no such key.",
                why=did_you_mean(str(key), ("modules", "layers", "value")) or _RULE,
            )
    if "value" not in item:
        raise UsageError(f"{path}.value is missing.", why=_RULE)
    value, where = item["value"], f"{path}.value"
    if isinstance(value, list) and value:
        numbers = [_number(one, f"{where}[{i}]", check, _NUMBERS) for i, one in enumerate(value)]
    else:
        numbers = [_number(value, where, check, _NUMBERS)]
    return Rule(tuple(numbers), _pattern(item, path), _layers(item.get("layers"), f"{path}.layers"))


def _pattern(item: dict[Any, Any], path: str) -> str | None:
    modules = item.get("modules")
    if modules is None:
        return None
    import regex

    why = "It must be text."
    if isinstance(modules, str):
        try:
            regex.compile(modules)
        except (regex.error, OverflowError, RecursionError) as error:
            why = f"{error}."
        else:
            return modules
    raise UsageError(f"{path}.modules: {shown(modules)} is no regular expression.", why=why)


def _layers(value: object, path: str) -> tuple[int, int] | None:
    if value is None:
        return None
    given: list[object] = value if isinstance(value, list) else [value, value]
    ends = [one for one in given if isinstance(one, int) and not isinstance(one, bool)]
    if len(ends) == len(given) == 2 and 0 <= ends[0] <= ends[1]:
        return ends[0], ends[1]
    raise UsageError(
        f"{path}: {shown(value)} is no range of layers.",
        why="It must be a layer, or [first, last] with both included, counted from 0.",
    )
