"""What the train screen says: the list, the line below the editor, the plan, the legend of a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from textual.content import Content

from adapterhub.cli.output import clean
from adapterhub.tui.facts import Fact, Section, Tone, said
from adapterhub.tui.problem import Problem
from adapterhub.tui.recipes.model import About, Checked, Draft, Kind

if TYPE_CHECKING:
    from adapterhub.trainer.desk import Rows, Told
    from adapterhub.trainer.preview import Piece, PreviewedRow

GROUPS: dict[Kind, str] = {
    "file": "Files",
    "former": "Former trainings",
    "preset": "New, from a preset",
}
NO_FILES = "none below this folder"

NOTHING_OPEN = Content.assemble(
    ("No recipe is open.", "bold $text-accent"),
    "\n\nA recipe is one YAML file that says everything about a training: the base, the data, the settings.\n\n"
    "Choose one in the list with ",
    ("enter", "bold"),
    ": a file below this folder, what a former training used, or a preset to begin with, in which every key is "
    "explained. It is checked while you type; ",
    ("F3", "bold"),
    " shows the rows as the model will see them, ",
    ("F4", "bold"),
    " what training would take, and ",
    ("ctrl+r", "bold"),
    " trains.",
)


def heading(draft: Draft | None) -> Content:
    """Over the editor: which file, and whether it is saved."""
    if draft is None:
        return Content("Recipe")
    name = clean(draft.title)
    if draft.path is None:
        return Content(f"{name} (no file yet)")
    return Content(f"{name} (not saved)" if draft.changed else name)


ENDED = Content.styled(
    "Not looked at to the end: something else came first. r asks again.", "$text-muted"
)
"""In a pane whose question was dropped."""


def reread(draft: Draft) -> str:
    """The file has other words than those that were shown."""
    return f"{draft.title} was changed by another program, and has been read again."


def verdict(checked: Checked | None) -> Content:
    """Below the editor: what is wrong and where, or that nothing is."""
    if checked is None:
        return Content("checking …")
    if checked.problem is None:
        count = len(checked.warnings)
        more = Content.assemble(
            "  ! ", (f"{count} remarks" if count > 1 else "1 remark", "$text-warning")
        )
        first = Content(f": {clean(checked.warnings[0].splitlines()[0])}") if count else Content("")
        good = Content.styled("✓ a valid recipe", "$text-success")
        return Content.assemble(good, more, first) if count else good
    where = f"line {checked.line + 1}: " if checked.line is not None else ""
    return Content.assemble((f"✗ {where}", "bold $text-error"), in_words(checked.problem))


def in_words(problem: Problem) -> Content:
    """An error's three parts, each beginning a line."""
    what = Content.styled(clean(problem.what), "bold $text-error")
    parts = [part for part in (problem.why, problem.hint) if part]
    more = [Content(clean(part, keep_newlines=True)) for part in parts]
    return Content("\n").join([what, *more])


def about(found: About | None) -> Content:
    """The key under the cursor: what it means, what it takes, what it is when left out."""
    if found is None:
        return Content("")
    default = "needed" if found.default is None else f"default {clean(found.default)}"
    if found.accepted.startswith("a section"):
        default = ""
    return Content.assemble(
        (found.key, "bold $text-accent"),
        f"  {clean(found.words)}\n" if found.words else "\n",
        (f"{found.accepted}" + (f"; {default}" if default else ""), "$text-muted"),
    )


def plan_sections(told: Told) -> tuple[Section, ...]:
    """A plan for the eye: the remarks first, as they may change what one does."""
    remarks = [
        Fact(
            "warning" if severity == "warn" else "note",
            clean(text, keep_newlines=True),
            _tone(severity),
        )
        for severity, text in told.remarks
    ]
    found = [
        Section(title, tuple(Fact(clean(key), said(value)) for key, value in facts.items()))
        for title, facts in told.sections.items()
    ]
    return (*([Section("remarks", tuple(remarks))] if remarks else []), *found)


def _tone(severity: str) -> Tone:
    return "warning" if severity == "warn" else ""


# A row as the model sees it. Each kind of token has a colour and a form, so that none is told by colour alone.
_TRAINED, _MASKED, _CUT, _CONTROL = (
    "bold $text-success",
    "$text-muted",
    "strike $text-error",
    "reverse",
)


def legend() -> Content:
    """What the forms of a row mean."""
    return Content.assemble(
        ("trained", f"{_TRAINED} underline"), "  ", ("masked", _MASKED), "  ",
        ("control token", _CONTROL), "  ", ("cut off by max_length", _CUT), "  ↵ line feed",
    )  # fmt: skip


def row_title(rows: Rows, side: str) -> str:
    """`3 of 905, training`."""
    return f"{rows.place + 1} of {rows.count}, {side}" if rows.count else f"no rows, {side}"


def drawn(rows: Rows) -> Content:
    """The row, or both sides of a preference."""
    if not rows.rows:
        return Content("Nothing is held out: data.held_out is 0.")
    return Content("\n\n").join(_row(row) for row in rows.rows)


def _row(row: PreviewedRow) -> Content:
    return Content.assemble(
        (clean(row.headline), "bold"), "\n\n", *(part for piece in row.pieces for part in _piece(piece))
    )  # fmt: skip


def _piece(piece: Piece) -> Iterator[Content]:
    style = _CUT if piece.cut else f"{_TRAINED} underline" if piece.trained else _MASKED
    if piece.control:
        style += f" {_CONTROL}"
    first, *others = piece.text.split("\n")
    yield Content.styled(clean(first), style)
    for other in others:
        yield Content.styled("↵\n", style)
        yield Content.styled(clean(other), style)
