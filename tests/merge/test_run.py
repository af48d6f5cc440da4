"""A merge as a piece of work: names, provenance, progress, and a store that is whole however it ends."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.errors import (
    AdapterHubError,
    ConflictError,
)
from adapterhub.merge.recipe import make_recipe
from adapterhub.merge.run import Resources, merge
from tests.merge.conftest import Counter, silent, state
from tests.support.adapters import llama_modules

if TYPE_CHECKING:
    from tests.merge.conftest import Merger

COMMIT = "a" * 40


def test_a_taken_name_is_refused_and_the_same_merge_again_changes_nothing(merger: Merger) -> None:
    parents = [merger.add(merger.adapter(seed=seed)) for seed in range(2)]
    digests = [parent.digest for parent in parents]

    def run(weights: list[float]) -> Any:
        return merge(
            merger.store,
            parents,
            make_recipe("linear", digests, weights=weights),
            name="x",
            progress=silent,
        )

    first = run([1, 1])
    before = state(merger.store)
    again = run([1, 1])
    assert (again.created, again.digest, again.report) == (False, first.digest, first.report)
    with pytest.raises(ConflictError, match="taken"):
        run([1, 2])
    assert state(merger.store) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, AdapterHubError("no", why="no")])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_an_interrupted_merge_leaves_the_store_as_it_was(
    merger: Merger, method: str, error: BaseException | type[BaseException]
) -> None:
    from contextlib import contextmanager

    class Breaking(Counter):
        def advance(self, amount: float = 1, **_: object) -> None:
            super().advance(amount)
            if self.done == 3:
                raise error

    @contextmanager
    def breaking(_: str, __: float | None) -> Any:
        yield Breaking()

    parents = [merger.add(merger.adapter(seed=seed, modules=llama_modules())) for seed in range(2)]
    before = state(merger.store)
    recipe = make_recipe(method, [parent.digest for parent in parents])
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else AdapterHubError):
        merge(
            merger.store,
            parents,
            recipe,
            name="broken",
            progress=breaking,
            resources=Resources(workers=2),
        )
    assert state(merger.store) == before
    (run,) = merger.store.runs_dir.iterdir()
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "interrupted" if error is KeyboardInterrupt else "failed"]
    assert not (run / "adapter").exists()


def test_the_result_names_its_recipe_parents_and_cost(merger: Merger) -> None:
    parents = [
        merger.add(merger.adapter(seed=seed, base="org/one", revision=COMMIT)) for seed in range(2)
    ]
    merged = merger.of(parents, "ties", weights=[1, 2], rank=3, density=0.4)
    (body,) = [
        a.body for a in merger.store.attestations(merged.outcome.digest) if a.type == "provenance"
    ]
    assert body["event"] == "merged"
    assert body["recipe"]["parents"] == [parent.digest for parent in parents]
    assert body["recipe"]["weights"] == [1.0, 2.0]
    assert body["recipe"]["parameters"] == {
        "density": 0.4,
        "lambda": 1.0,
        "trim_scope": "model",
        "vote": "weighted",
        "tie": "none",
        "divisor": "count",
    }
    assert body["report"]["energy_kept"] < 1
    assert body["allowed_mismatch"] == []
    base = merged.outcome.manifest.base
    assert (base.repo, base.revision) == ("org/one", COMMIT)


def test_progress_ends_where_it_said_it_would(merger: Merger) -> None:
    from contextlib import contextmanager

    bars: list[tuple[float | None, Counter]] = []

    @contextmanager
    def watched(_: str, total: float | None) -> Any:
        bars.append((total, Counter()))
        yield bars[-1][1]

    parents = [merger.add(merger.adapter(seed=seed, modules=llama_modules())) for seed in range(2)]
    digests = [parent.digest for parent in parents]
    recipes: list[tuple[str, dict[str, Any]]] = [
        ("linear", {}),
        ("ties", {}),
        ("ties", {"density": 1.0}),
        ("ties", {"trim_scope": "module"}),
    ]
    for number, (method, parameters) in enumerate(recipes):
        recipe = make_recipe(method, digests, parameters=parameters)
        merge(merger.store, parents, recipe, name=f"p{number}", progress=watched)
    # What a method looks at before it merges has no known end.
    known = [(bar.done, total) for total, bar in bars if total is not None]
    assert [done for done, _ in known] == [total for _, total in known]
    assert len(known) == len(recipes)
    assert any(bar.done > 0 for total, bar in bars if total is None)
