"""What the library itself says: how many there are, what to type when there is nothing, the command line that does the same."""

from __future__ import annotations

import shlex

from textual.content import Content

from adapterhub.cli.output import clean
from adapterhub.tui.library.model import Library
from adapterhub.tui.library.rows import NO_NAMESPACE, Row
from adapterhub.tui.library.terms import FLAGS, HINTS

_FILTERS = ", ".join([*(f"{key}:" for key in HINTS), *FLAGS])


def count(state: Library) -> str:
    """`2 marked, 3 of 12 adapters`, for the corner."""
    if not state.loaded:
        return "reading …"
    noun = "adapter" if len(state.rows) == 1 else "adapters"
    shown = f"{len(state.visible)} of " if state.narrowed else ""
    marked = f"{len(state.marked)} marked, " if state.marked else ""
    stale = "not up to date: " if state.problem and state.rows else ""
    return f"{stale}{marked}{shown}{len(state.rows)} {noun}"


def title(state: Library) -> str:
    """What stands above the list."""
    where = "names without a namespace" if state.space == NO_NAMESPACE else state.space
    held = f" · against {state.base.label}" if state.base else ""
    return clean((f"Adapters · {where}" if where else "Adapters") + held)


def told(state: Library) -> tuple[str, bool]:
    """What is to be said under the filter, and whether it is a problem."""
    terms = state.terms
    if terms.problem:
        return clean(terms.problem), True
    for asked in terms.asked:
        answer = state.answers.get(asked)
        if answer is None:
            return clean(f"asking the store: {asked.key}:{asked.value} …"), False
        if answer.problem is not None:
            return clean(" ".join(filter(None, (answer.problem.what, answer.problem.why)))), True
    if terms.unknown and state.loaded and not state.visible:
        return clean(f"There is no filter {terms.unknown[-1]}: — those there are: {_FILTERS}"), True
    return clean(terms.hint), False


def show_command(row: Row) -> str:
    """The command line that says what the detail pane says."""
    return shlex.join(["adapterhub", "show", row.name])


def instead_of_list(state: Library, reading: str = "") -> Content:
    """What stands where the list would be: why there is none, and what to do about it."""
    if not state.loaded:
        return Content(clean(reading) or "Reading the store …")
    if state.rows:
        what = state.query.strip() or state.space
        return Content.assemble(
            "No adapter matches ",
            (clean(what), "bold"),
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
        "\n\n",
        ("a", "bold"),
        " puts an adapter in: a folder that PEFT or a trainer wrote, or one of the Hub. In a shell:\n\n    ",
        ("adapterhub add FOLDER", "bold"),
        "\n\nIt appears here by itself. ",
        ("2", "bold"),
        " trains one. Or look at a store that has some: in a checkout of adapterhub, this trains two and merges"
        " them on a real model, and says how to open its store:\n\n    ",
        ("make demo", "bold"),
    )
