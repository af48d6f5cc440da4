"""Work side by side: results in order, BLAS threads given back, and Ctrl-C or an error stops what hasn't begun."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from adapterhub.lora.parallel import for_each


@pytest.mark.parametrize("workers", [1, 2, 8, None])
def test_results_are_in_the_order_of_the_items(workers: int | None) -> None:
    done: list[int] = []

    def work(item: int) -> int:
        time.sleep(0.002 * (7 - item))
        return item * item

    assert for_each(range(7), work, workers=workers, done=lambda: done.append(1)) == [
        i * i for i in range(7)
    ]
    assert len(done) == 7


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_runs_with_one_blas_thread_and_the_callers_number_comes_back(
    workers: int,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert set(
            for_each(
                range(8), lambda _: torch.get_num_threads(), workers=workers, done=lambda: None
            )
        ) == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("where", ["work", "done"])
def test_an_error_stops_what_has_not_begun(error: type[BaseException], where: str) -> None:
    begun: list[int] = []
    before = torch.get_num_threads()

    def work(item: int) -> None:
        begun.append(item)
        time.sleep(0.005)
        if where == "work" and item == 1:
            raise error

    def done() -> None:
        if where == "done":
            raise error

    with pytest.raises(error):
        for_each(range(200), work, workers=2, done=done)
    assert len(begun) < 100
    assert torch.get_num_threads() == before
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_no_items_are_no_work() -> None:
    assert for_each([], lambda item: item, workers=2, done=lambda: None) == []
