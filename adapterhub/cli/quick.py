"""A quicker start: typer loads pydantic to turn words into values, and plain words need no turning.

Loading it takes longer than all the rest of `adapterhub ls`. An option that was left out and one that is text are taken
as they are; anything else (a number, a path, a list of choices) goes typer's way. Should another version of typer not
know the attribute set here, nothing is lost but the time.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class Quick:
    """To be mixed into typer's commands and groups."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, `--help` among them."""
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for parameter in found:
            if getattr(parameter, "_runtime_param", ...) is None:
                parameter._runtime_param = _Plain(parameter)
        return found


class QuickCommand(Quick, TyperCommand):
    """A command whose plain options don't load pydantic."""


class _Plain:
    """In the place of typer's own conversion of one parameter, which it calls where it has to."""

    def __init__(self, parameter: Any) -> None:
        kind = parameter.type_descriptor
        own = (
            kind.parameter_info.parser is not None or kind.is_choice or kind.is_path or kind.is_file
        )
        self._is_text = kind.annotation is str and not own

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        several = param.multiple or param.nargs == -1
        if value is None:
            return () if several else None
        if self._is_text and not several and type(value) is str:
            return value
        param._runtime_param = None  # typer makes its own
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)
