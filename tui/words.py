"""What the screen itself says: how many there are, what to type when there is nothing, the command line that does the same."""

from __future__ import annotations

import shlex

from textual.content import Content

from adapterhub.cli.output import clean
from adapterhub.tui.model import Library, Row


def count(state: Library) -> str:
    """`3 of 12 adapters`, for the corner."""
    if not state.loaded:
        return "reading …"
    noun = "adapter" if len(state.rows) == 1 else "adapters"
    shown = f"{len(state.visible)} of " if state.query.strip() else ""
    stale = "not up to date: " if state.problem and state.rows else ""
    return f"{stale}{shown}{len(state.rows)} {noun}"


def show_command(row: Row) -> str:
    """The command line that says what the detail pane says."""
    return shlex.join(["adapterhub", "show", row.name])


def instead_of_list(state: Library) -> Content:
    """What stands where the list would be: why there is none, and what to do about it."""
    if not state.loaded:
        return Content("Reading the store …")
    if state.rows:
        return Content.assemble(
            "No adapter matches ",
            (clean(state.query.strip()), "bold"),
            ".\n\n",
            ("escape", "bold"),
            " shows all again.",
        )
    if state.problem:
        problem = state.problem
        return Content.assemble(
            (clean(problem.what), "bold $text-error"),
            *(
                f"\n\n{clean(part, keep_newlines=True)}"
                for part in (problem.why, problem.hint)
                if part
            ),
            "\n\n",
            ("r", "bold"),
            " tries again.",
        )
    return Content.assemble(
        ("The store is empty.", "bold $text-accent"),
        "\n\nPut an adapter in, from a folder that PEFT wrote:\n\n    ",
        ("adapterhub add FOLDER", "bold"),
        "\n\nIt appears here by itself. Or look at a store that has some: in a checkout of adapterhub, this "
        "trains two and merges them on a real model, and says how to open its store:\n\n    ",
        ("make demo", "bold"),
    )
