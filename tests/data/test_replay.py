"""Replay takes exactly so many general rows, whatever their order, and none that is known already."""

from __future__ import annotations

import random

import pytest

from adapterhub.data import Message, Row, mix_replay
from adapterhub.errors import UsageError


def rows(name: str, count: int) -> list[Row]:
    return [
        Row((Message("user", f"{name} {i}?"), Message("assistant", f"{name} {i}.")))
        for i in range(count)
    ]


@pytest.mark.parametrize(("ratio", "taken"), [(0.2, 10), (0.25, 12), (1.0, 50), (0.03, 2)])
def test_the_ratio_counts_replayed_rows_per_training_row(ratio: float, taken: int) -> None:
    own, general = rows("own", 50), rows("general", 80)
    mixed = mix_replay(own, general, ratio, 0)
    assert len(mixed.taken) == taken
    assert set(mixed.taken) <= set(general)
    assert set(mixed.rows) == set(own) | set(mixed.taken)
    assert len(mixed.rows) == 50 + taken


def test_the_choice_knows_the_seed_and_not_the_order() -> None:
    own, general = rows("own", 50), rows("general", 200)
    first = mix_replay(own, general, 0.5, 3)
    random.Random(1).shuffle(general)
    assert mix_replay(own[::-1], general, 0.5, 3) == first
    assert mix_replay(own, general, 0.5, 4).taken != first.taken
    more = mix_replay(own, general, 0.6, 3)
    assert set(first.taken) < set(more.taken)


def test_what_is_trained_on_held_out_or_repeated_is_never_taken() -> None:
    own, held_out, general = rows("own", 10), rows("held out", 5), rows("general", 10)
    asked = [Row((row.messages[0], Message("assistant", "Otherwise."))) for row in held_out]
    pool = [*own, *held_out, *asked, *general, *general]
    mixed = mix_replay(own, pool, 1.0, 0, held_out)
    assert set(mixed.taken) == set(general)
    with pytest.raises(UsageError, match=r"11 are needed .*, and 10 can be taken") as caught:
        mix_replay(own, pool, 1.1, 0, held_out)
    assert "a ratio of 1 at most" in caught.value.hint


def test_a_ratio_that_comes_to_nothing_is_said() -> None:
    with pytest.raises(UsageError, match="Nothing would be replayed"):
        mix_replay(rows("own", 3), rows("general", 9), 0.1, 0)
