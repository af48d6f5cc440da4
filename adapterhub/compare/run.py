"""A comparison as one call: open the adapters of a store, compare them, and judge what that means for a merge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from adapterhub.compare.similarity import Comparison, compare
from adapterhub.compare.verdict import Verdict, judge
from adapterhub.errors import IncompatibleError
from adapterhub.lora.adapter import all_modules, opened
from adapterhub.same_base import shared_base
from adapterhub.store import Resolved, Store

ProgressFactory = Callable[[str, float | None], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Compared:
    """What came of it."""

    parents: tuple[Resolved, ...]
    comparison: Comparison
    verdict: Verdict
    mismatch: str
    """A warning, in words, where the adapters are known to belong to different bases; else empty."""
    remarks: tuple[str, ...]
    """What isn't known of their bases."""


def compare_stored(
    store: Store,
    names: Sequence[str],
    progress: ProgressFactory,
    *,
    exact: bool = False,
    warn: Callable[[str], None] = lambda _: None,
    note: Callable[[str], None] = lambda _: None,
) -> Compared:
    """Compares the adapters called `names`; `warn` and `note` hear at once what is said of their bases."""
    parents = [store.resolve(name) for name in names]
    mismatch, why, remarks = _bases(store, parents)
    if mismatch:
        warn(mismatch)
    for remark in remarks:
        note(remark)
    with (
        opened(store, parents, "compared", plain=False) as adapters,
        progress("Comparing", len(all_modules(adapters))) as bar,
    ):
        comparison = compare(adapters, exact=exact, done=bar.advance)
    verdict = judge(comparison, names, mismatch=why)
    return Compared(tuple(parents), comparison, verdict, mismatch, remarks)


def _bases(store: Store, parents: Sequence[Resolved]) -> tuple[str, str, tuple[str, ...]]:
    """(the warning, how the bases are known to differ, what isn't known); all empty where they are the same."""
    try:
        return "", "", shared_base(store, parents).remarks
    except IncompatibleError as error:
        said = f"{error.what} {error.why} The numbers below compare weights of different models."
        return said, error.why.removesuffix("."), ()
