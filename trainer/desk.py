"""A process of its own that looks at recipes: plans and rows, for a screen that must stay quick.

The libraries that a plan needs take seconds to import, hold a GPU's context, and set environment variables which whatever
is started later would inherit. So they live in a child that stays warm between questions and can be killed at any moment.
Questions and answers are JSON, one a line: `{"ask": ...}`; `{"doing": ...}` while it works, then `{"answer": ...}` or
`{"error": ...}`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import IO, TYPE_CHECKING, Any

from adapterhub.errors import AdapterHubError, ConflictError, ExternalToolError
from adapterhub.store import Store

if TYPE_CHECKING:
    from adapterhub.trainer.preview import Preview, PreviewedRow, Side

Doing = Callable[[str], object]


class Stopped(Exception):  # noqa: N818 - no error: somebody closed the desk
    """The question was dropped before there was an answer."""


@dataclass(frozen=True)
class Draft:
    """The text of a recipe, and the file that it is or will be: relative paths are taken from there."""

    text: str
    path: Path


@dataclass(frozen=True)
class Told:
    """A plan as people read it."""

    sections: Mapping[str, Mapping[str, Any]]
    remarks: tuple[tuple[str, str], ...]
    """(severity, words) of each, warnings first."""


@dataclass(frozen=True)
class Rows:
    """The row at `place` of `count` on one side; a preference is two."""

    place: int
    count: int
    rows: tuple[PreviewedRow, ...]


@dataclass(frozen=True)
class _Child:
    """The process, and the file of what it says on stderr."""

    process: subprocess.Popen[str]
    said: IO[bytes]

    def clear(self) -> None:
        """Nothing is left of a process that has ended or was killed."""
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.said):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def last_words(self) -> str:
        self.said.seek(0)
        return self.said.read().decode("utf-8", "replace").strip()[-400:]


class Desk:
    """Asks the process, which it starts with the first question. Every method may block, but `close`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._asking = Lock()
        """One question at a time."""
        self._guard = Lock()
        """Of the three below; held for a moment only."""
        self._child: _Child | None = None
        self._busy = False
        self._closings = 0

    def plan(self, draft: Draft, doing: Doing = lambda _: None) -> Told:
        """What training the draft would do. Raises AdapterHubError, and Stopped where `close` was faster."""
        found = self._ask({"ask": "plan"}, draft, doing)
        remarks = tuple((one["severity"], one["text"]) for one in found["remarks"])
        return Told(found["sections"], remarks)

    def row(self, draft: Draft, side: Side, place: int, doing: Doing = lambda _: None) -> Rows:
        """The row at `place` of a side, or the last one. Raises as `plan` does."""
        from adapterhub.trainer.preview import Piece, PreviewedRow

        found = self._ask({"ask": "row", "side": side, "place": place}, draft, doing)
        rows = tuple(
            PreviewedRow(**{**row, "pieces": tuple(Piece(**piece) for piece in row["pieces"])})
            for row in found["rows"]
        )
        return Rows(found["place"], found["count"], rows)

    @property
    def pid(self) -> int | None:
        """The process; None where there is none at the moment."""
        child = self._child
        return child.process.pid if child else None

    def close(self) -> None:
        """Ends the process, whatever it does; the next question starts another."""
        with self._guard:
            child, self._child = self._child, None
            self._closings += 1
            busy = self._busy
        if child is not None:
            child.process.kill()
            if not busy:  # else whoever asks sees the end, and clears up
                child.clear()

    def _ask(self, question: Mapping[str, Any], draft: Draft, doing: Doing) -> dict[str, Any]:
        asked = {**question, "text": draft.text, "path": str(draft.path)}
        with self._asking:
            with self._guard:
                child, closings, self._busy = self._child, self._closings, True
            try:
                if child is None:
                    doing("starting")
                    child = _start(self._home)
                    with self._guard:
                        if self._closings == closings:
                            self._child = child
                        else:
                            child.process.kill()
                return self._answer(child, asked, doing)
            finally:
                with self._guard:
                    self._busy = False
                    over = self._child is not child
                if over and child is not None:
                    child.clear()

    def _answer(self, child: _Child, asked: Mapping[str, Any], doing: Doing) -> dict[str, Any]:
        process = child.process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # told below, by what isn't answered
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            if not line.endswith("\n"):  # it was killed while it wrote
                break
            told = json.loads(line)
            if "doing" in told:
                doing(told["doing"])
            elif "error" in told:
                raise AdapterHubError(**told["error"])
            else:
                answer: dict[str, Any] = told["answer"]
                return answer
        with self._guard:
            if self._child is not child:
                raise Stopped
            self._child = None
        raise ExternalToolError(
            f"The process that looks at the recipe ended (exit status {process.wait()}).",
            why=child.last_words() or "It was killed: was there enough memory?",
        )


def _start(home: Path) -> _Child:
    said = TemporaryFile()  # noqa: SIM115 - as long as the process
    process = subprocess.Popen(
        # -P: no module of the folder where somebody stands takes the place of one of ours.
        [sys.executable, "-P", "-m", "adapterhub.trainer.desk", str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        encoding="utf-8",
        start_new_session=True,  # a Ctrl-C in the terminal is the screen's business
    )
    return _Child(process, said)


# The process itself


def main() -> None:
    """Answers the questions on stdin until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    looking = _Looking(Store.open(Path(sys.argv[1])), answers)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            looking.say(answer=looking.answer(asked))
        except AdapterHubError as error:
            looking.say(error={"what": error.what, "why": error.why, "hint": error.hint})
        except Exception as error:  # noqa: BLE001 - the screen says it, and asks on
            what = f"Something went wrong inside adapterhub: {type(error).__name__}: {error}"
            looking.say(error={"what": what, "why": "", "hint": ""})


class _Looking:
    """Answers; keeps the rows of the draft that was looked at last."""

    def __init__(self, store: Store, answers: IO[str]) -> None:
        self._store, self._answers = store, answers
        self._draft: Draft | None = None
        self._preview: Preview | None = None

    def say(self, **told: Any) -> None:
        self._answers.write(json.dumps(told, default=str) + "\n")
        self._answers.flush()

    def answer(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        from adapterhub.trainer.libraries import logged_to, require_libraries
        from adapterhub.trainer.recipe import read_recipe

        draft = Draft(asked["text"], Path(asked["path"]))
        recipe = read_recipe(draft.text, draft.path)
        require_libraries()
        if "transformers" not in sys.modules:
            self.say(doing="loading the training libraries")
        with logged_to(None):
            base = self._store.bases.open(recipe.base)
            return (
                self._plan(recipe, base)
                if asked["ask"] == "plan"
                else self._row(draft, recipe, base, asked)
            )

    def _plan(self, recipe: Any, base: Any) -> dict[str, Any]:
        from adapterhub.trainer.plan import make_plan
        from adapterhub.trainer.train import known_result

        start = self._store.resolve(recipe.start_from) if recipe.start_from else None
        plan = make_plan(recipe, base, start, lambda what: self.say(doing=what))
        remarks = [{"severity": one.severity, "text": one.text} for one in plan.remarks]
        try:
            if known_result(self._store, recipe, plan.training, move=False):
                text = f"{recipe.name} is the result of this very training already."
                remarks.insert(0, {"severity": "note", "text": text})
        except ConflictError as error:
            remarks.insert(0, {"severity": "warn", "text": str(error)})
        return {"sections": plan.sections, "remarks": remarks}

    def _row(
        self, draft: Draft, recipe: Any, base: Any, asked: Mapping[str, Any]
    ) -> dict[str, Any]:
        from adapterhub.trainer.preview import Preview

        if self._preview is None or self._draft != draft:
            self.say(doing="reading the data")
            self._draft, self._preview = draft, Preview(recipe, base)
        count = self._preview.count(asked["side"])
        place = max(0, min(asked["place"], count - 1))
        rows = self._preview.at(place, asked["side"]) if count else ()
        told = [{k: v for k, v in row.record.items() if k not in _DERIVED} for row in rows]
        return {"place": place, "count": count, "rows": told}


_DERIVED = ("lost", "dropped")
"""What a previewed row tells from the rest."""

if __name__ == "__main__":
    main()
