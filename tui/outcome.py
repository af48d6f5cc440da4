"""What became of things: of a run, in a line; of each of several that one key was meant for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from adapterhub.tui.problem import Problem
from adapterhub.words import short

if TYPE_CHECKING:
    from adapterhub.runs import RunRecord

Severity = Literal["information", "warning", "error"]


@dataclass(frozen=True)
class Result:
    """One of several things: what was done, or the problem."""

    name: str
    done: str = ""
    problem: Problem | None = None


def outcome(record: RunRecord) -> tuple[str, str, Severity]:
    """Title, words and severity of a toast on the end of a run."""
    if record.state == "done":
        made = record.result.get("name") or record.result.get("folder")
        digest = record.result.get("digest")
        if record.kind == "merge" and record.result.get("created") is False and digest:
            made = f"{made} is @{short(str(digest))}: this recipe had given it before."
        return "Done", f"{record.title}\n{made}" if made else record.title, "information"
    if record.state == "interrupted":
        return "Stopped", record.title, "warning"
    error = record.error or {}
    told = [str(error[part]) for part in ("what", "why", "hint") if error.get(part)]
    if record.state == "died":
        told = ["Its process ended without a word."]
    return "Failed", "\n".join([record.title, *told]), "error"
