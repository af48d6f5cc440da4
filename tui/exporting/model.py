"""What an export form says, as the command line that does it; and what is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.tui.problem import Problem

if TYPE_CHECKING:
    from adapterhub.export.estimate import Estimate
    from adapterhub.runs import RunRecord

PLAIN = "no"
"""Not quantised."""
DEPTHS = {"sized": (), "all": ("--verify-all",), "none": ("--no-verify",)}
"""How deep is verified, and what asks for it."""


@dataclass(frozen=True)
class Wanted:
    """The fields of the form."""

    names: tuple[str, ...]
    folder: str = ""
    base: str = ""
    view: str = "original"
    quantize: str = PLAIN
    calibration: str = ""
    method: str = "linear"
    weights: str = ""
    verify: str = "sized"
    overwrite: bool = False
    resume: bool = False

    def words(self) -> list[str]:
        """What is typed after `adapterhub`; what is as it would be anyway is left out."""
        options = {
            "--output": self.folder,
            "--base": self.base,
            "--base-view": "" if self.view == "original" else self.view,
            "--quantize": "" if self.quantize == PLAIN else self.quantize,
            "--calibration": self.calibration if self.calibrates else "",
            "--method": self.method if self.merges and self.method != "linear" else "",
            "--weights": self.weights if self.merges else "",
        }
        flags = [
            *DEPTHS[self.verify],
            *(["--overwrite"] if self.overwrite else []),
            *(["--resume"] if self.resume else []),
        ]
        # With "=", so that no value can be taken for an option.
        given = [f"{option}={value.strip()}" for option, value in options.items() if value.strip()]
        return ["export", *self.names, *given, *flags]

    @property
    def merges(self) -> bool:
        """Whether several adapters are merged on the way."""
        return len(self.names) > 1

    @property
    def calibrates(self) -> bool:
        """Whether rows are needed."""
        return self.quantize in ("gptq", "awq")


@dataclass(frozen=True)
class State:
    """What the screen knows."""

    wanted: Wanted
    estimate: Estimate | None = None
    problem: Problem | None = None
    """Why what is wanted can't be done."""
    run: RunRecord | None = None
    speed: float | None = None
    left: float | None = None
    result: Mapping[str, Any] = field(default_factory=dict)
    """What the export said when it was done."""

    @property
    def running(self) -> bool:
        """Whether it is under way."""
        return self.run is not None and self.run.state == "running"


def first_folder(names: tuple[str, ...]) -> str:
    """A folder to begin with: beside where one stands, called after the adapter, and not there yet."""
    stem = names[0].partition(":")[0].rpartition("/")[2].lstrip("@") or "model"
    number, name = 1, f"{stem}-model"
    while Path(name).exists():
        number += 1
        name = f"{stem}-model-{number}"
    return name
