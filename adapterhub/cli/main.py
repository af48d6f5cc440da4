"""The entry point: finds the command that was typed and imports only that one.

Commands of the upper layers (train, serve, tui) and of other packages come through the entry-point group
`adapterhub.commands`, so the core never imports them.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer

GROUP = "adapterhub.commands"

# name -> (panel of `--help`, where it is). Order is the order of `--help`.
_CORE: dict[str, tuple[str, str]] = {
    "add": ("Store", "adapterhub.cli.library:add"),
    "ls": ("Store", "adapterhub.cli.library:ls"),
    "show": ("Store", "adapterhub.cli.library:show"),
    "checkout": ("Store", "adapterhub.cli.library:checkout"),
    "tag": ("Store", "adapterhub.cli.refs:tag"),
    "rm": ("Store", "adapterhub.cli.refs:rm"),
    "log": ("Store", "adapterhub.cli.refs:log"),
    "base": ("Base models", "adapterhub.cli.bases:app"),
    "fit": ("Base models", "adapterhub.cli.bases:fit"),
    "merge": ("Merge and export", "adapterhub.cli.merging:merge"),
    "methods": ("Merge and export", "adapterhub.cli.merging:methods"),
    "diff": ("Merge and export", "adapterhub.cli.comparing:diff"),
    "export": ("Merge and export", "adapterhub.cli.exporting:export"),
    "eval": ("Train and evaluate", "adapterhub.cli.evaluating:evaluate"),
}
_PANELS = {"train": "Train and evaluate", "serve": "Serve and watch", "tui": "Serve and watch"}


def build(only: str | None = None) -> typer.Typer:
    """The command line, whole or with just the command `only`."""
    app = typer.Typer(
        name="adapterhub",
        help="Keep, compare, merge, export, train and serve LoRA adapters.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    for name, (panel, where) in _CORE.items():
        if only in (None, name):
            module, _, attribute = where.partition(":")
            _register(app, name, panel, getattr(import_module(module), attribute))
    if only is None or only not in _CORE:
        for point in _outside():
            if only in (None, point.name):
                try:
                    target = point.load()
                except (ImportError, AttributeError) as error:
                    # One broken package must not take the other commands down.
                    sys.stderr.write(
                        f"warning: the command {point.name} can't be loaded: {error}\n"
                    )
                    continue
                _register(app, point.name, _PANELS.get(point.name, "Plug-ins"), target)
    return app


def main() -> None:
    """Runs the command line."""
    typed = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    completing = "_ADAPTERHUB_COMPLETE" in os.environ
    known = (
        {*_CORE, *(point.name for point in _outside())} if typed and typed not in _CORE else _CORE
    )
    build(typed if typed in known and not completing else None)(prog_name="adapterhub")


def _outside() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def _register(app: typer.Typer, name: str, panel: str, target: Any) -> None:
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=name, rich_help_panel=panel)
    else:
        app.command(name, rich_help_panel=panel)(target)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"adapterhub {version('adapterhub')}\n")
        raise typer.Exit


def _top(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    pass
