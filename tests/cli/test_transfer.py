"""Bytes on their way, told where there is no terminal: how much of how much, how fast, and how long it still takes."""

from __future__ import annotations

import io

import pytest

from adapterhub.cli.output import Output, _Lines


def test_size_speed_and_the_time_left_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, *[102.0] * 9])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    monkeypatch.setattr(_Lines, "_SECONDS", 0.0)
    said = io.StringIO()
    with Output("human", stderr=said).transfer("Writing model", 4e9) as bar:
        bar.advance(1e9)
    assert said.getvalue().splitlines() == [
        "Writing model …",
        "Writing model: 1 GB of 4 GB, 500 MB/s, 6 s left",
    ]
