"""What a merge keeps of each adapter, in the weights and on the tasks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from adapterhub.errors import UsageError
from adapterhub.evaluate import evaluate
from adapterhub.evaluate.interactions import interactions
from tests.cli.calling import call
from tests.support.evaluated import loss_of

if TYPE_CHECKING:
    from adapterhub.store import Store

Add = Callable[..., str]


def test_what_is_kept_and_what_was_promised(store: Store, add: Add, base: Path, data: Path) -> None:
    add("one")
    add("two", seed=1)
    assert (
        call("merge", "one", "two", "--weights", "0.5,0.5", "--rank", "full", "--name", "both").code
        == 0
    )
    found = interactions(store, ["one", "two"], "both", [data, data], base=str(base), split="all")
    alone = {
        row.name: loss_of(row)
        for row in evaluate(
            store, ["base", "one", "two", "both"], base=str(base), data=data, split="all"
        )
    }
    for kept, name in zip(found, ("one", "two"), strict=True):
        assert {row.name: loss_of(row) for row in kept.rows} == alone
        assert kept.gain == pytest.approx(alone["base"] - alone[name])
        if kept.gain > 0:
            assert kept.kept == pytest.approx((alone["base"] - alone["both"]) / kept.gain)
        else:
            assert kept.kept is None
    # <(A+B)/2, A> / |A|² = (1 + cos·|B|/|A|) / 2, and the same from B's side
    first, second = found
    assert first.cosine == second.cosine
    assert first.retained is not None
    assert second.retained is not None
    assert first.cosine is not None
    product = (2 * first.retained - 1) * (2 * second.retained - 1)
    assert product == pytest.approx(first.cosine**2, abs=1e-4)


def test_as_many_tasks_as_adapters(store: Store, add: Add, base: Path, data: Path) -> None:
    add("one")
    with pytest.raises(UsageError, match="1 adapters and 1 tasks"):
        interactions(store, ["one"], "one", [data], base=str(base))
