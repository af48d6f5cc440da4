"""Work told where there is no terminal: how much of how much; of bytes also how fast, and how long it still takes."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from adapterhub.cli import output
from adapterhub.cli.output import Output, _Lines


def test_size_speed_and_the_time_left_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, *[102.0] * 9])
    monkeypatch.setattr(output, "time", SimpleNamespace(monotonic=lambda: next(now)))
    monkeypatch.setattr(_Lines, "_SECONDS", 0.0)
    said = io.StringIO()
    with Output("human", stderr=said).transfer("Writing model", 4e9) as bar:
        bar.advance(1e9)
    assert said.getvalue().splitlines() == [
        "Writing model …",
        "Writing model: 1 GB of 4 GB, 500 MB/s, 6 s left",
    ]


def test_of_how_many_is_told_without_digits_that_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_Lines, "_SECONDS", 0.0)
    said = io.StringIO()
    with Output("human", stderr=said).progress("Evaluating", 5) as bar:
        bar.advance(1.291667)
    with Output("human", stderr=said).progress("Counting") as bar:
        bar.advance(3)
    assert said.getvalue().splitlines()[1::2] == ["Evaluating: 1.3 of 5", "Counting: 3"]
