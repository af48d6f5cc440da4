"""The namespaces as a tree, with how many adapters each has."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text
from textual.binding import Binding
from textual.message import Message
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from adapterhub.cli.output import clean
from adapterhub.tui.library.rows import Space


class SpaceTree(Tree[str]):
    """`all`, its namespaces, and in each the names with several tags. The cursor narrows the list."""

    HELP = "Namespaces. Going to one narrows the list to it; enter goes on to the list."
    BINDINGS = [
        Binding("j", "cursor_down", "Down", show=False, id="spaces.down", tooltip="Next namespace"),
        Binding("k", "cursor_up", "Up", show=False, id="spaces.up", tooltip="Previous namespace"),
        Binding("g", "scroll_home", "Top", show=False, id="spaces.top", tooltip="All adapters"),
        Binding(
            "enter,l,right",
            "take",
            "List",
            key_display="enter",
            id="spaces.take",
            tooltip="Go on to the list",
        ),
        Binding(
            "escape,h", "leave", "Leave", show=False, id="spaces.leave", tooltip="Back to the list"
        ),
    ]

    class Chosen(Message):
        """The list is to be narrowed to this namespace (or `namespace/name`)."""

        def __init__(self, space: str) -> None:
            super().__init__()
            self.space = space

    class Left(Message):
        """The user goes on to the list."""

    def __init__(self) -> None:
        super().__init__("all", data="")
        self.guide_depth = 2
        self.auto_expand = False
        self._shown: tuple[Sequence[Space], int] = ((), 0)

    def show(self, spaces: Sequence[Space], count: int, chosen: str) -> None:
        """Draws the namespaces of `count` adapters, with the cursor on the chosen one."""
        if (spaces, count) != self._shown:
            self._shown = (spaces, count)
            self.clear()
            self.root.set_label(_label("all", count))
            for space in spaces:
                self._add(self.root, space)
            self.root.expand()
        node = next((node for node in self._all() if node.data == chosen), self.root)
        if self.cursor_node is not node:
            self.call_after_refresh(self.move_cursor, node)

    def on_tree_node_highlighted(self, event: Tree.NodeHighlighted[str]) -> None:
        event.stop()
        if self.has_focus and event.node.data is not None:
            self.post_message(self.Chosen(event.node.data))

    def on_tree_node_selected(self, event: Tree.NodeSelected[str]) -> None:
        event.stop()
        self.post_message(self.Chosen(event.node.data or ""))
        self.post_message(self.Left())

    def action_take(self) -> None:
        self.post_message(self.Left())

    def action_leave(self) -> None:
        self.post_message(self.Left())

    def _add(self, above: TreeNode[str], space: Space) -> None:
        label = _label(space.label, space.count)
        if not space.parts:
            above.add_leaf(label, data=space.path)
            return
        node = above.add(label, data=space.path, expand=True)
        for part in space.parts:
            self._add(node, part)

    def _all(self) -> list[TreeNode[str]]:
        return [self.root, *(node for one in self.root.children for node in (one, *one.children))]


def _label(name: str, count: int) -> Text:
    return Text.assemble(clean(name), (f" {count}", "dim"))
