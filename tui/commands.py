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
    off = [stream.name for stream in (sys.stdin, sys.stdout, sys.stderr) if not stream.isatty()]
    if off:
        raise UsageError(
            "The terminal UI needs a terminal.",
            why=f"{' and '.join(off)} {'is' if len(off) == 1 else 'are'} not one.",
            hint="For the same list as text: adapterhub ls",
        )
    if find_spec("textual") is None:
        raise MissingDependencyError(
            "The terminal UI isn't installed.", hint="pip install 'adapterhub[tui]'"
        )
    from adapterhub.tui.app import AdapterHubApp

    AdapterHubApp(ctx.store).run()
