"""Adapters of known different bases are not merged, unless somebody insists, and that is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.errors import (
    IncompatibleError,
)
from tests.merge.conftest import state

if TYPE_CHECKING:
    from tests.merge.conftest import Merger

COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("one", "two", "named"),
    [
        ({"base": "org/one"}, {"base": "org/two"}, ["repository", "org/one", "org/two"]),
        (
            {"base": "org/one", "revision": COMMIT},
            {"base": "org/one", "revision": OTHER},
            ["revision", COMMIT[:12], OTHER[:12]],
        ),
    ],
)
def test_known_different_bases_are_refused_naming_what_differs(
    merger: Merger, one: dict[str, Any], two: dict[str, Any], named: list[str]
) -> None:
    parents = [merger.add(merger.adapter(**one)), merger.add(merger.adapter(seed=1, **two))]
    before = state(merger.store)
    with pytest.raises(IncompatibleError) as caught:
        merger.of(parents)
    assert caught.value.exit_code == 5
    assert all(word in caught.value.why for word in named)
    assert all(parent.label in caught.value.why for parent in parents)
    assert state(merger.store) == before

    merged = merger.of(parents, allow_mismatch=True)
    bodies = [
        a.body for a in merger.store.attestations(merged.outcome.digest) if a.type == "provenance"
    ]
    assert len(bodies) == 1
    assert all(word in " ".join(bodies[0]["allowed_mismatch"]) for word in named)


def test_a_mismatch_among_three_is_found_wherever_it_is(merger: Merger) -> None:
    bases = ["org/one", None, "org/two"]
    folders = [merger.adapter(seed=seed, base=base) for seed, base in enumerate(bases)]
    with pytest.raises(IncompatibleError, match="org/one and org/two"):
        merger(folders)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"base": "org/one"}, {"base": None}),
        ({"base": None}, {"base": ""}),
        ({"base": "/somebody/else/model"}, {"base": "org/one"}),  # a path says nothing here
        ({"base": "gpt2"}, {"base": "openai-community/gpt2"}),  # a bare name may be an alias
        ({"base": "org/one", "revision": COMMIT}, {"base": "org/one"}),
        ({"base": "org/one", "revision": "main"}, {"base": "org/one", "revision": COMMIT}),
        ({"base": "Org/One"}, {"base": "org/one"}),
    ],
)
def test_what_is_not_known_to_differ_is_merged(
    merger: Merger, one: dict[str, Any], two: dict[str, Any]
) -> None:
    merged = merger([merger.adapter(**one), merger.adapter(seed=1, **two)])
    assert merged.outcome.created
    unknown = [
        settings
        for settings in (one, two)
        if not settings["base"] or settings["base"].startswith("/")
    ]
    assert bool(merged.warnings) == bool(unknown)
    assert all("unknown" in warning for warning in merged.warnings)


@pytest.mark.parametrize(("one", "two"), [("gpt2", "distilgpt2")])
def test_two_bare_names_that_differ_are_refused(merger: Merger, one: str, two: str) -> None:
    with pytest.raises(IncompatibleError, match="repository"):
        merger([merger.adapter(base=one), merger.adapter(seed=1, base=two)])
