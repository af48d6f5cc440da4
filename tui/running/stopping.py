"""Stopping a run from a screen: what follows is said, then it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.jobs import stop as tell_to_stop
from adapterhub.runs import RunRecord
from adapterhub.telling import consequence, how_far

if TYPE_CHECKING:
    from adapterhub.tui.screens.base import HubScreen


async def stop(screen: HubScreen, run: RunRecord) -> bool:
    """Asks, and tells the run to stop; within a worker. Whether it was told."""
    line = f"adapterhub stop {run.id}"
    follows = [consequence(run.kind)]
    if run.progress is not None:
        follows.append(f"So far: {how_far(run.progress)}")
    if not await screen.confirm(f"Stop {run.title or run.id}?", follows, line, yes="Stop it"):
        return False
    try:
        await screen.ask(tell_to_stop, run)
    except Exception as error:  # noqa: BLE001 - told, and the screen goes on
        screen.refuse(error, "Not stopped")
        return False
    screen.notify(line, title="It is coming to its end", markup=False)
    return True
