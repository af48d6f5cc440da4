"""`methods`: what can be done with adapters, and each way in full."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from adapterhub.cli.command import Context, command
from adapterhub.merge.specs import SEMANTICS, MethodSpec, Semantics, method
from adapterhub.merge.specs import methods as all_methods
from adapterhub.words import counted, hanging, word_of

_FAMILIES = {
    "sum": "a weighted sum of the deltas: exact in factors, of low rank",
    "elementwise": "element by element, so of any rank: cut to one, or exported whole",
}
_WEIGHTS = {"mean": "1/K each by default", "one": "1 each by default", "none": "none"}
_LAWS = {
    "gauge": "the same in whatever factors the adapters come",
    "single": "one adapter at weight 1 is that adapter",
    "same": "an adapter merged with itself is that adapter",
    "order": "the order of the adapters doesn't matter",
    "scaling": "all weights times c: the result times c",
    "homogeneous": "all adapters times c: the result times c",
    "permutation": "rows and columns permuted before or after: the same",
    "dense": "density 1 is the plain weighted sum",
    "unbiased": "over all seeds, the mean is the plain weighted sum",
}
_WIDEST = 100


@command
def methods(
    ctx: Context,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One method, in full.")
    ] = None,
) -> None:
    """List the merge methods, or explain one."""
    if name is None:
        ctx.out.table(
            [row_of(spec) for spec in all_methods().values()], ("name", "family", "good_for")
        )
        return
    spec = method(name)
    if ctx.out.mode != "human":
        ctx.out.record(row_of(spec), ids=("name",))
        return
    width = min(ctx.out.width or _WIDEST, _WIDEST)
    ctx.out.text("\n".join(_explained(spec, width)))  # fmt: skip


def row_of(spec: MethodSpec) -> dict[str, Any]:
    """A method as JSON has it."""
    row = asdict(spec)
    del row["kernel"]
    row["parameters"] = [
        {
            "name": p.name,
            "flag": p.flag,
            "kind": p.kind,
            "default": p.default,
            "minimum": p.minimum,
            "maximum": p.maximum,
            "above_minimum": p.above_minimum,
            "choices": list(p.choices),
            "range": p.range,
            "varies": p.varies,
            "help": p.help,
        }
        for p in spec.parameters
    ]
    row["semantics"] = {whose: spec.defaults(whose) for whose in _known(spec)}
    for key in ("laws", "spaces", "requires"):
        row[key] = list(row[key])
    return row


def _known(spec: MethodSpec) -> list[Semantics]:
    return [one for one in SEMANTICS if one == "paper" or spec.semantics.get(one) is not None]


def _explained(spec: MethodSpec, width: int) -> list[str]:
    lines = [f"{spec.name}: {spec.title}", ""]
    for key, text in {
        "Good for": spec.good_for,
        "From": spec.paper,
        "Takes": _takes(spec),
        "Result": _FAMILIES[spec.family] + _rank(spec),
    }.items():
        lines += hanging(f"{key:<10}", text, width)
    if spec.parameters:
        lines += ["", "Parameters"]
    for parameter in spec.parameters:
        varies = "; may vary by module in a recipe" if parameter.varies else ""
        lines.append(
            f"  {parameter.flag:<18}default {word_of(parameter.default)}; {parameter.range}{varies}"
        )
        lines += hanging(" " * 20, parameter.help, width)
    lines += _semantics(spec)
    lines += ["", "Laws, with these defaults"]
    lines += [f"  {_LAWS[law]}" for law in spec.laws]
    return [*lines, "", f"  adapterhub merge {_example(spec)}"]


def _takes(spec: MethodSpec) -> str:
    least, most = spec.min_inputs, spec.max_inputs
    if least == most:
        count = counted(least, "adapter")
    else:
        count = f"{least} or more adapters" if most is None else f"{least} to {most} adapters"
    seed = "; --seed" if "seed" in spec.requires else ""
    return f"{count}; weights: {_WEIGHTS[spec.default_weights]}{seed}"


def _rank(spec: MethodSpec) -> str:
    return "" if spec.default_rank == "auto" else f"; --rank {spec.default_rank} by default"


def _semantics(spec: MethodSpec) -> list[str]:
    """Whose defaults differ, as a table; nothing where there is but one function of this name."""
    if not spec.semantics:
        return []
    names = _known(spec)
    defaults = {name: spec.defaults(name) for name in names}
    differ = [
        p for p in spec.parameters if len({str(row[p.name]) for row in defaults.values()}) > 1
    ]
    if not differ:
        return ["", f"  --semantics {' or '.join(names[1:])}: the same defaults"]
    lines = ["", f"  {'--semantics':<18}" + "".join(f"{name:<12}" for name in names).rstrip()]
    for p in differ:
        cells = "".join(f"{word_of(defaults[name][p.name]):<12}" for name in names)
        lines.append(f"  {p.flag:<18}{cells}".rstrip())
    return lines  # fmt: skip


def _example(spec: MethodSpec) -> str:
    names = ["A"] if spec.max_inputs == 1 else ["A", "B"]
    numeric = next((p for p in spec.parameters if p.kind == "number"), None)
    flag = f" {numeric.flag} {word_of(numeric.default)}" if numeric is not None else ""
    return f"{' '.join(names)} --method {spec.name}{flag} --name C"
