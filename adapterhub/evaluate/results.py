"""What was found row by row, kept while it is found: an evaluation that is cut short goes on, and none is done twice.

Kept beside the catalogue, under a digest of everything that the numbers depend on. It may be lost at any moment and
costs only time; a torn last line is as if it had never been written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.evaluate.scoring import Score
from adapterhub.store.catalogue.cachefile import default_folder


@dataclass(frozen=True)
class Answered:
    """A greedy answer, and how many tokens it took."""

    text: str
    tokens: int


class Results:
    """Scores and answers of one model, by the place of the row."""

    def __init__(self, facts: Mapping[str, Any], *, fresh: bool = False) -> None:
        """`facts`: everything that the numbers depend on; `fresh` forgets what was kept, and begins again."""
        name = digest_of(canonical_bytes(dict(facts))).removeprefix("sha256:")
        self._file = default_folder() / "evaluations" / f"{name}.jsonl"
        self.scores: dict[int, Score] = {}
        self.answers: dict[int, Answered] = {}
        self.seconds = 0.0
        """That the answers took to make."""
        self._torn = ""
        """What ends a line that was cut off, so that the next isn't lost with it."""
        if fresh:
            with suppress(OSError):
                self._file.unlink(missing_ok=True)
        else:
            self._read(self._file)

    def score(self, found: Mapping[int, Score]) -> None:
        """A batch of rows was scored."""
        self.scores.update(found)
        self._append({"scores": [[place, one.nll, one.tokens] for place, one in found.items()]})

    def answer(self, found: Mapping[int, Answered], seconds: float) -> None:
        """A batch of questions was answered."""
        self.answers.update(found)
        self.seconds += seconds
        told = [[place, asdict(one)] for place, one in found.items()]
        self._append({"answers": told, "seconds": seconds})

    def _append(self, line: Mapping[str, Any]) -> None:
        with suppress(OSError):  # a cache that can't be written costs only time
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(self._torn + json.dumps(line) + "\n")
            self._torn = ""

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_text("utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            return
        self._torn = "\n" if lines[-1] else ""
        for line in lines:
            with suppress(
                ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError
            ):
                told = json.loads(line)
                for place, nll, tokens in told.get("scores", ()):
                    self.scores[int(place)] = Score(float(nll), int(tokens), 1)
                for place, one in told.get("answers", ()):
                    self.answers[int(place)] = Answered(str(one["text"]), int(one["tokens"]))
                self.seconds += float(told.get("seconds", 0.0))
