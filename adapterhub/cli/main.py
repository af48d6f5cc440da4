"""The entry point: finds the command that was typed and imports only that one.

Commands of the upper layers (train, serve, tui) and of other packages come through the entry-point group
`adapterhub.commands`, so the core never imports them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from adapterhub.cli.output import Output
from adapterhub.cli.quick import Quick, QuickCommand
from adapterhub.errors import AdapterHubError, ExitCode, UsageError
from adapterhub.process import HERE

if TYPE_CHECKING:  # only a command that isn't of the core needs to be looked for
    from importlib.metadata import EntryPoint

GROUP = "adapterhub.commands"

# name -> (panel of `--help`, where it is). Order is the order of `--help`.
_CORE: dict[str, tuple[str, str]] = {
    "add": ("Store", "adapterhub.cli.adding:add"),
    "ls": ("Store", "adapterhub.cli.listing:ls"),
    "show": ("Store", "adapterhub.cli.library:show"),
    "checkout": ("Store", "adapterhub.cli.library:checkout"),
    "convert": ("Store", "adapterhub.cli.converting:convert"),
    "lineage": ("Store", "adapterhub.cli.finding:lineage"),
    "duplicates": ("Store", "adapterhub.cli.finding:duplicates"),
    "affected-by": ("Store", "adapterhub.cli.finding:affected_by_base"),
    "tag": ("Store", "adapterhub.cli.refs:tag"),
    "rm": ("Store", "adapterhub.cli.refs:rm"),
    "log": ("Store", "adapterhub.cli.refs:log"),
    "undo": ("Store", "adapterhub.cli.refs:undo"),
    "rollback": ("Store", "adapterhub.cli.refs:rollback"),
    "gc": ("Store", "adapterhub.cli.keeping:gc"),
    "fsck": ("Store", "adapterhub.cli.keeping:fsck"),
    "base": ("Base models", "adapterhub.cli.bases:app"),
    "fit": ("Base models", "adapterhub.cli.bases:fit"),
    "merge": ("Merge and export", "adapterhub.cli.merging:merge"),
    "methods": ("Merge and export", "adapterhub.cli.methods:methods"),
    "rebuild": ("Merge and export", "adapterhub.cli.merging:rebuild"),
    "diff": ("Merge and export", "adapterhub.cli.comparing:diff"),
    "export": ("Merge and export", "adapterhub.cli.exporting:export"),
    "data": ("Train and evaluate", "adapterhub.cli.datasets:app"),
    "eval": ("Train and evaluate", "adapterhub.cli.evaluating:evaluate"),
    "chat": ("Train and evaluate", "adapterhub.cli.chatting:chat"),
    "ps": ("Serve and watch", "adapterhub.cli.watching:ps"),
    "logs": ("Serve and watch", "adapterhub.cli.watching:logs"),
    "stop": ("Serve and watch", "adapterhub.cli.watching:stop"),
}
_PANELS = {
    "train": "Train and evaluate",
    "recipe": "Train and evaluate",
    "doctor": "Train and evaluate",
    "serve": "Serve and watch",
    "server": "Serve and watch",
    "tui": "Serve and watch",
}


class _Group(Quick, TyperGroup):
    """Tells a wrong call as JSON where `--json` was typed."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        words = list(sys.argv[1:] if args is None else args)
        HERE.words = tuple(words)
        try:
            return self._main(words, *rest, **extra)
        finally:
            HERE.words = ()

    def _main(self, words: list[str], *rest: Any, **extra: Any) -> Any:
        if words[:1] == ["fsck"]:  # an option whose value may be left out, which typer doesn't know
            words = ["--read-data=all" if word == "--read-data" else word for word in words]
        if "--json" not in words or not extra.get("standalone_mode", True):
            return super().main(words, *rest, **extra)
        try:
            code = super().main(words, *rest, **{**extra, "standalone_mode": False})
        except typer.Abort:
            sys.exit(int(ExitCode.FAILED))
        except Exception as error:
            told = getattr(error, "format_message", None)
            if told is None:
                raise
            named = next((f"{word} " for word in words if not word.startswith("-")), "")
            Output("json").error(UsageError(told(), hint=f"adapterhub {named}--help"))
            sys.exit(int(ExitCode.USAGE))
        sys.exit(code if isinstance(code, int) else 0)


def build(only: str | None = None) -> typer.Typer:
    """The command line, whole or with just the command `only`."""
    app = typer.Typer(
        name="adapterhub",
        cls=_Group,
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
            if only in (None, point.name) and point.name not in _CORE:
                try:
                    target = point.load()
                except Exception as error:  # noqa: BLE001 - one broken package must not take the others down
                    sys.stderr.write(
                        f"warning: the command {point.name} can't be loaded: {error}\n"
                    )
                    continue
                _register(app, point.name, _PANELS.get(point.name, "Plug-ins"), target)
    return app


def main() -> None:
    """Runs the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(
                errors="backslashreplace"
            )  # a terminal in another encoding is no reason to fail
    completing = "_ADAPTERHUB_COMPLETE" in os.environ
    if len(sys.argv) == 1 and not completing and _opens_the_screen():
        sys.argv.append("tui")
    typed = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), None)
    known = (
        {*_CORE, *(point.name for point in _outside())} if typed and typed not in _CORE else _CORE
    )
    with _given_run():
        build(typed if typed in known and not completing else None)(prog_name="adapterhub")


@contextmanager
def _given_run() -> Iterator[None]:
    """Where another process started this one as a run, what the command says is told to that."""
    if "ADAPTERHUB_RUN" not in os.environ:
        yield
        return
    from adapterhub.handover import taken_over

    with ExitStack() as stack:
        try:
            Output.listener = stack.enter_context(taken_over())
        except AdapterHubError as error:  # before any command has begun
            Output("json" if "--json" in sys.argv else "human").error(error)
            sys.exit(int(error.exit_code))
        yield


def _opens_the_screen() -> bool:
    """Whether `adapterhub` alone opens the terminal UI: where there is one, and a terminal. Else it prints its help."""
    from importlib.util import find_spec

    on_terminal = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    return (
        on_terminal
        and find_spec("textual") is not None
        and any(point.name == "tui" for point in _outside())
    )


def _outside() -> list[EntryPoint]:
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def _register(app: typer.Typer, name: str, panel: str, target: Any) -> None:
    if isinstance(target, typer.Typer):
        app.add_typer(target, name=name, rich_help_panel=panel)
    else:
        app.command(name, cls=QuickCommand, rich_help_panel=panel)(target)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

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
