"""The form of a merge, made from the method's spec: a new method appears by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Button, Static

from adapterhub.cli.output import clean
from adapterhub.merge.recipe import DTYPES
from adapterhub.merge.specs import MethodSpec, ParameterSpec, methods
from adapterhub.tui.merging.plan import Plan, semantics_of
from adapterhub.tui.widgets.form import Choice, Form, FormRow, Number, Text, Toggle
from adapterhub.tui.widgets.slider import Slider

WEIGHT, PARAMETER = "weight:", "parameter:"
_FINEST = 2
"""Digits behind the point that a slider can set: a default with more of them is typed instead."""


class Fixed(Static, can_focus=True):
    """An adapter that has no weight; it can still be moved and taken out."""

    HELP: ClassVar[str | None] = "An adapter of the merge. This method gives it no weight."


class MergeForm(Form):
    """Draws a plan. What the user does is posted as `FormChanged`; the fields are the plan's."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(id="form", classes="panel")
        self._plan = plan
        self.border_title = Content("Merge")

    def compose(self) -> ComposeResult:
        plan = self._plan
        choices = [(f"{spec.name}: {spec.title}", spec.name) for spec in methods().values()]
        yield FormRow("method", Choice(choices, plan.method, name="method"))
        yield Static(_about(plan.spec), id="about", classes="quiet", markup=False)
        yield Vertical(*_adapters(plan), id="adapters")
        yield Vertical(*_parameters(plan), id="parameters")
        yield FormRow(
            "rank", Text(plan.rank, name="rank", placeholder="auto, full, 16, energy=0.99")
        )
        dtypes = [("the adapters'", ""), *((one, one) for one in DTYPES)]
        yield FormRow("dtype", Choice(dtypes, plan.dtype, name="dtype"))
        yield FormRow("seed", Number(plan.seed, name="seed", placeholder="0"), id="seed")
        yield FormRow("name", Text(plan.name, name="name"), id="name")
        yield FormRow(
            "", Toggle(plan.move, name="move", text="move the name to the result"), id="move"
        )
        yield FormRow(
            "",
            Toggle(plan.allow_mismatch, name="allow_mismatch", text="merge them all the same"),
            id="differ",
        )
        with Horizontal(id="buttons"):
            yield Button("Merge", id="run", variant="primary", compact=True)

    def show(self, plan: Plan, problems: Mapping[str, str]) -> None:
        """Draws another plan, and what is wrong with its fields."""
        before, self._plan = self._plan, plan
        shape = (plan.names, plan.method, plan.semantics)
        if shape != (before.names, before.method, before.semantics):
            self._rebuild(before, plan)
        self.query_one("#seed").display = plan.asks_for_seed
        for row in self.query(FormRow):
            row.problem = problems.get(row.control_name, "")

    def expect(self, name: str, *, taken: bool, differ: bool) -> None:
        """Says which name the result gets by itself, and offers what gets around a conflict."""
        self.query_one("#name", FormRow).query_one(Text).placeholder = clean(name)
        self.query_one("#move").display = taken or self._plan.move
        self.query_one("#differ").display = differ or self._plan.allow_mismatch

    @property
    def adapter(self) -> str | None:
        """The adapter whose row has the focus."""
        focused = self.screen.focused
        field = focused.name if focused is not None else None
        if field is None or not field.startswith(WEIGHT):
            return None
        return field.removeprefix(WEIGHT)

    def focus_adapter(self, name: str) -> None:
        row = self.row(WEIGHT + name)
        if row is not None:
            row.field.focus()

    def _rebuild(self, before: Plan, plan: Plan) -> None:
        """The rows that depend on the method and the adapters."""
        if plan.method != before.method:
            self.query_one("#about", Static).update(_about(plan.spec))
            choice = self.row("method")
            if choice is not None and isinstance(choice.field, Choice):
                choice.field.value = plan.method
        adapters, parameters = self.query_one("#adapters"), self.query_one("#parameters")
        if (plan.names, plan.method) != (before.names, before.method):
            adapters.remove_children()
            adapters.mount(*_adapters(plan))
        if (plan.method, plan.semantics) != (before.method, before.semantics):
            focused = self.screen.focused
            in_semantics = focused is not None and focused.name == "semantics"
            parameters.remove_children()
            rows = list(_parameters(plan))
            parameters.mount(*rows)
            if in_semantics:
                same = [row.field for row in rows if row.control_name == "semantics"]
                self.call_after_refresh(same[0].focus) if same else None


def _about(spec: MethodSpec) -> str:
    return f"{spec.good_for}\n{spec.paper}"


def _adapters(plan: Plan) -> Iterator[FormRow]:
    for name in plan.names:
        field: Widget
        if plan.takes_weights:
            field = Slider(plan.weight(name), low=-1, high=2, step=0.01, name=WEIGHT + name)
            field.default = plan.default_weight
        else:
            field = Fixed("no weight", name=WEIGHT + name, classes="quiet", markup=False)
        yield FormRow(clean(name), field)


def _parameters(plan: Plan) -> Iterator[FormRow]:
    for one in plan.spec.parameters:
        row = FormRow(one.name, _control(one, plan))
        row.tooltip = one.help
        yield row
    choices = semantics_of(plan.spec)
    if len(choices) > 1:
        words = [(f"{one}'s defaults", str(one)) for one in choices]
        yield FormRow("semantics", Choice(words, plan.semantics, name="semantics"))


def _control(one: ParameterSpec, plan: Plan) -> Widget:
    field, value, default = PARAMETER + one.name, plan.value(one), plan.default(one)
    if one.kind == "choice":
        return Choice([(word, word) for word in one.choices], str(value), name=field)
    if one.kind == "flag":
        return Toggle(bool(value), name=field)
    if (ends := _ends(one, default)) is None or not isinstance(value, int | float):
        return Number(str(value), name=field)
    slider = Slider(float(value), low=ends[0], high=ends[1], step=0.01, name=field)
    slider.default = float(default)
    return slider


def _ends(one: ParameterSpec, default: Any) -> tuple[float, float] | None:
    """The ends of a slider; None for a number that is better typed."""
    if one.kind != "number" or round(float(default), _FINEST) != float(default):
        return None
    if one.minimum is None and one.maximum is None:
        return -2.0, 2.0
    if one.minimum is None or one.maximum is None:
        return None
    return one.minimum, one.maximum
