"""Where one can be: the five places, and the screens that open on top of one. Each is imported when it is first opened."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.tui.hub import Hub
    from adapterhub.tui.screens.base import HubScreen


@dataclass(frozen=True)
class Place:
    """One of the places that a number key leads to."""

    id: str
    title: str
    key: str
    screen: str
    about: str


_SCREENS = "adapterhub.tui.screens."

PLACES = (
    Place("library", "Library", "1", "library:LibraryScreen", "All adapters"),
    Place("train", "Train", "2", "train:TrainScreen", "Recipes, and new trainings"),
    Place("serve", "Serve", "3", "serve:ServeScreen", "Servers, running and planned"),
    Place("jobs", "Jobs", "4", "jobs:JobsScreen", "Trainings, merges, exports, servers"),
    Place(
        "history", "History", "5", "history:HistoryScreen", "Every change of the store, and undo"
    ),
)

VISITS = {
    "compare": "compare:CompareScreen",
    "evaluations": "evaluations:EvaluationsScreen",
    "merge": "merge:MergeScreen",
    "export": "export:ExportScreen",
    "run": "run:RunScreen",
    "training": "training:TrainingScreen",
    "chat": "chat:ChatScreen",
    "gc": "keeping:GcScreen",
    "fsck": "keeping:FsckScreen",
}
"""What opens on top of a place, until escape."""


def make(where: str, hub: Hub, **given: Any) -> HubScreen:
    """The screen at `where` (module:class)."""
    module, _, name = where.partition(":")
    screen: HubScreen = getattr(import_module(_SCREENS + module), name)(hub, **given)
    return screen
