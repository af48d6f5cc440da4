"""The `tui` command. Textual is imported only once it is certain that there is something to draw on."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from adapterhub.cli.command import Context, command
from adapterhub.errors import MissingDependencyError, UsageError


@command
def tui(
    ctx: Context,
    readonly: Annotated[
        bool, typer.Option("--readonly", help="Only look: no key changes anything.")
    ] = False,
    web: Annotated[
        bool,
        typer.Option(
            "--web", help="Serve it to a browser on this machine, under an address with a token."
        ),
    ] = False,
    port: Annotated[
        int,
        typer.Option(
            "--port",
            min=0,
            max=65535,
            help="With --web: where to listen.",
            show_default="a free one",
        ),
    ] = 0,
) -> None:
    """Open the terminal UI: the library, training, servers, jobs and history on one screen.

    `adapterhub` alone, typed at a terminal, does the same. `?` in it lists the keys. Without Unicode or colour it does without
    (ADAPTERHUB_ASCII=1, NO_COLOR=1); config.toml chooses the theme and the keys.
    """
    if ctx.out.mode != "human":
        raise UsageError(
            "The terminal UI prints nothing.",
            hint="For output: adapterhub ls --json   or   adapterhub ls -q",
        )
    if port and not web:
        raise UsageError("--port goes with --web.", hint=f"adapterhub tui --web --port {port}")
    if not web and not _has_terminal():
        raise UsageError(
            "The terminal UI needs a terminal.",
            why="Its input or output is a pipe or a file.",
            hint="For the same list as text: adapterhub ls",
        )
    if find_spec("textual") is None:
        raise MissingDependencyError(
            "The terminal UI isn't installed.", hint="pip install 'adapterhub[tui]'"
        )
    if web:
        _serve(ctx, port, readonly)
    else:
        _open(ctx, readonly)


def _has_terminal() -> bool:
    """Whether there is one; a browser's window is one too."""
    if os.environ.get("TEXTUAL_DRIVER", "").endswith(":WebDriver"):
        return True
    return all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))


def _open(ctx: Context, readonly: bool) -> None:
    from adapterhub.tui.app import AdapterHubApp
    from adapterhub.tui.hub import Hub
    from adapterhub.tui.personal import read_choices

    hub = Hub.of(ctx.store, readonly=readonly)
    app = AdapterHubApp(hub, read_choices(hub))
    app.run()
    if app.failure is not None:
        raise app.failure


def _serve(ctx: Context, port: int, readonly: bool) -> None:
    if find_spec("textual_serve") is None:
        raise MissingDependencyError(
            "What serves the terminal UI to a browser isn't installed.",
            hint="pip install 'adapterhub[web]'",
        )
    import asyncio

    from adapterhub.tui.web import WebServer, listen

    server = WebServer(listen(port), ["tui", *(["--readonly"] if readonly else [])])

    def ready() -> None:
        ctx.out.note("Open this in a browser on this machine; who has it can do what you can:")
        ctx.out.text(server.address)
        ctx.out.note("Ctrl-C ends it, and every window with it.")

    asyncio.run(server.run(ready))
