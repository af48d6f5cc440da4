"""The `tui` command. Textual is imported only once it is certain that there is a terminal to draw on."""

from __future__ import annotations

import sys
from importlib.util import find_spec

from adapterhub.cli.command import Context, command
from adapterhub.errors import MissingDependencyError, UsageError


@command
def tui(ctx: Context) -> None:
    """Open the terminal UI on the store."""
    if ctx.out.mode != "human":
        raise UsageError(
            "The terminal UI prints nothing.",
            hint="For output: adapterhub ls --json   or   adapterhub ls -q",
        )
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise UsageError(
            "The terminal UI needs a terminal.",
            why="Its input or output is a pipe or a file.",
            hint="For the same list as text: adapterhub ls",
        )
    if find_spec("textual") is None:
        raise MissingDependencyError(
            "The terminal UI isn't installed.", hint="pip install 'adapterhub[tui]'"
        )
    from adapterhub.tui.app import AdapterHubApp

    AdapterHubApp(ctx.store).run()
