"""A budget of memory: never exceeded, refused at once where it can never be enough, waited for where it can."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from adapterhub.lora.memory import Memory
from adapterhub.lora.parallel import for_each


def test_what_is_too_large_for_the_whole_budget_is_refused_at_once() -> None:
    memory = Memory(100)
    with memory.reserved(80) as first, memory.reserved(101) as second:
        assert (first, second) == (True, False)


def test_a_budget_of_nothing_refuses_everything() -> None:
    with Memory(0).reserved(1) as held:
        assert not held


@pytest.mark.parametrize("sizes", [[60] * 12, [100, 1, 99, 50, 50, 101, 30] * 4])
def test_threads_together_never_hold_more_than_there_is(sizes: Sequence[int]) -> None:
    memory, now, most = Memory(100), list[int](), list[int]()

    def work(place: int) -> bool:
        with memory.reserved(sizes[place]) as held:
            if held:
                now.append(sizes[place])
                most.append(sum(now))
                time.sleep(0.002)  # so that others come while it is held
                now.remove(sizes[place])
        return held

    found = for_each(range(len(sizes)), work, workers=5, done=lambda: None)
    assert found == [size <= 100 for size in sizes]
    assert max(most) <= 100


def test_what_an_error_held_is_given_back() -> None:
    memory = Memory(10)
    with pytest.raises(ValueError, match="no"), memory.reserved(10):
        raise ValueError("no")
    with memory.reserved(10) as held:
        assert held
