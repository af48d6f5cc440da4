"""What every command has in common: `--json`, `-q`, `--debug`, the store, and errors turned into exit codes."""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import traceback
import types
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, update_wrapper
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_type_hints

import typer

from adapterhub.cli.output import Output
from adapterhub.errors import AdapterHubError, ExitCode, MissingDependencyError
from adapterhub.fsio import in_words

if TYPE_CHECKING:  # most of a command's start is imports; these come with the first use
    from adapterhub.store import Store
    from adapterhub.store.catalogue.catalogue import Catalogue

F = TypeVar("F", bound=Callable[..., Any])

_COMMON = (
    (
        "as_json",
        Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel="Output")],
    ),
    (
        "quiet",
        Annotated[
            bool, typer.Option("--quiet", "-q", help="Print ids only.", rich_help_panel="Output")
        ],
    ),
    (
        "debug",
        Annotated[
            bool,
            typer.Option(
                "--debug", help="Show the traceback of an error.", rich_help_panel="Output"
            ),
        ],
    ),
)


class Context:
    """What a command gets beside its own arguments."""

    def __init__(self, out: Output) -> None:
        self.out = out

    @cached_property
    def store(self) -> Store:
        """The store at `$ADAPTERHUB_HOME`."""
        from adapterhub.store import Store

        return Store.open()

    @cached_property
    def catalogue(self) -> Catalogue:
        """The catalogue of that store, which is listed and searched without loading the rest."""
        from adapterhub.store.catalogue.catalogue import Catalogue
        from adapterhub.store.layout import Layout, check_format, default_home

        layout = Layout(default_home().absolute())
        check_format(layout)
        return Catalogue(layout, progress=self.out.progress)


def command(function: F) -> F:
    """Makes `function(ctx: Context, ...)` a command: adds the common options and maps errors to exit codes.

    The function may return an ExitCode; None is OK.
    """
    hints = get_type_hints(function, include_extras=True)
    for hint in hints.values():
        _show_brackets(hint)
    own = [
        parameter.replace(annotation=hints[parameter.name])
        for parameter in list(inspect.signature(function).parameters.values())[1:]
    ]
    common = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation
        )
        for name, annotation in _COMMON
    ]

    def run(
        *args: Any, as_json: bool = False, quiet: bool = False, debug: bool = False, **kwargs: Any
    ) -> None:
        out = Output("json" if as_json else "quiet" if quiet else "human")
        code = _run(
            lambda: function(Context(out), *args, **kwargs),
            out,
            debug or bool(os.environ.get("ADAPTERHUB_DEBUG")),
        )
        if code:
            raise typer.Exit(int(code))

    update_wrapper(run, function)
    del run.__wrapped__  # type: ignore[attr-defined]  # typer would look through it and miss the added options
    signature = inspect.Signature(
        [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *common]
    )
    run.__signature__ = signature  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return run  # type: ignore[return-value]


def _show_brackets(hint: Any) -> None:
    """Help is written as it should look; typer reads `[...]` in it as markup unless it is escaped."""
    for extra in get_args(hint)[1:]:
        if isinstance(getattr(extra, "help", None), str):
            extra.help = re.sub(r"(?<!\\)\[", r"\\[", extra.help)


def _run(call: Callable[[], Any], out: Output, debug: bool) -> ExitCode:
    try:
        with _terminate_like_interrupt():
            code = call()
            sys.stdout.flush()
            return code if isinstance(code, ExitCode) else ExitCode.OK
    except AdapterHubError as error:
        if debug:
            traceback.print_exc()
        out.error(error)
        return error.exit_code
    except KeyboardInterrupt as interrupt:
        said = str(interrupt)
        out.error(AdapterHubError("Interrupted.", why=said or "The store is as it was."))
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # `adapterhub ls | head`: the reader has enough
        _drop_output()
        return ExitCode.OK
    except (typer.Exit, typer.Abort):
        raise
    except OSError as error:
        if debug:
            traceback.print_exc()
        out.error(in_words(error))
        _drop_output()
        return ExitCode.FAILED
    except Exception as error:  # noqa: BLE001 - the last resort: a bug is told as one, with a way to see more
        if debug:
            traceback.print_exc()
        out.error(
            AdapterHubError(
                f"Something went wrong inside adapterhub: {type(error).__name__}: {error}",
                hint="Run it again with --debug to see where; please report that.",
            )
        )
        return ExitCode.FAILED


def _drop_output() -> None:
    """What is left in the buffer goes nowhere, so that the interpreter doesn't stumble over it when it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _terminate_like_interrupt:  # noqa: N801 - used as a context manager
    """SIGTERM unwinds like Ctrl-C, so that temporary files go and children are stopped."""

    def __enter__(self) -> None:
        self._before: Any = None
        with suppress(ValueError):  # not the main thread: signals are somebody else's business
            self._before = signal.signal(signal.SIGTERM, self._interrupt)

    def __exit__(self, kind: object, error: object, trace: types.TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt


def require_extra(package: str, extra: str) -> None:
    """MissingDependencyError with the install command unless `package` can be imported."""
    if find_spec(package) is None:
        raise MissingDependencyError(
            f"This needs {package}, which is not installed.",
            hint=f"pip install 'adapterhub[{extra}]'",
        )
