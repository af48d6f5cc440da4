"""The list of recipes to choose from, in groups."""

from __future__ import annotations

from itertools import groupby
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from adapterhub.cli.output import clean
from adapterhub.tui.recipes.model import Item, Kind, Shelf
from adapterhub.tui.recipes.words import GROUPS, NO_FILES


class RecipeList(OptionList):
    """Files, former trainings, presets. Enter opens the one under the cursor."""

    HELP = (
        "Recipes: the YAML files below the folder in which adapterhub was started, what former trainings used, and presets "
        "to begin with. Enter opens one in the editor; nothing is written before ctrl+s."
    )
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select", "Open", id="recipes.open", tooltip="Open the recipe in the editor"),
        Binding("j", "cursor_down", "Down", show=False, id="recipes.down", tooltip="Next recipe"),
        Binding("k", "cursor_up", "Up", show=False, id="recipes.up", tooltip="Previous recipe"),
        Binding("g", "first", "Top", show=False, id="recipes.top", tooltip="First recipe"),
        Binding("G", "last", "Bottom", show=False, id="recipes.bottom", tooltip="Last recipe"),
    ]  # fmt: skip

    class Chosen(Message):
        """A recipe is to be opened."""

        def __init__(self, item: Item) -> None:
            super().__init__()
            self.item = item

    def __init__(self) -> None:
        super().__init__(id="recipes", classes="panel")
        self._items: list[Item | None] = []

    def show(self, shelf: Shelf) -> None:
        """Draws the list; the cursor stays on its recipe."""
        here = self._items[self.highlighted] if self.highlighted is not None else None
        self._items = []
        self.clear_options()
        if not shelf.loaded:
            self.add_option(Option("looking for recipes …", disabled=True))
            return
        groups = {kind: list(found) for kind, found in groupby(shelf.items, lambda item: item.kind)}
        options: list[Option] = []
        kind: Kind
        for kind in ("file", "former", "preset"):
            items = groups.get(kind, [])
            if not items and kind == "former":
                continue
            self._items.append(None)
            options.append(Option(Content.styled(GROUPS[kind], "bold $text-accent"), disabled=True))
            for item in items:
                self._items.append(item)
                title = Content(f"  {clean(item.title)}")
                about = (
                    Content.styled(f"  {clean(item.about)}", "dim") if item.about else Content("")
                )
                options.append(Option(title + about))
            if not items:
                self._items.append(None)
                options.append(Option(Content.styled(f"  {NO_FILES}", "dim"), disabled=True))
        self.add_options(options)
        first = next((i for i, item in enumerate(self._items) if item is not None), None)
        self.highlighted = self._items.index(here) if here in self._items and here else first
        self.border_subtitle = "" if shelf.whole else Content("not every folder was looked into")

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        event.stop()
        item = self._items[event.option_index]
        if item is not None:
            self.post_message(self.Chosen(item))
