"""`diff`: how two adapters relate, before they are merged."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Any

import typer

from adapterhub.cli.command import Context, command
from adapterhub.compare.similarity import Difference, compare
from adapterhub.errors import IncompatibleError
from adapterhub.lora.adapter import opened
from adapterhub.same_base import shared_base


@command
def diff(
    ctx: Context,
    first: Annotated[str, typer.Argument(metavar="A", help="A name, or @digest.")],
    second: Annotated[str, typer.Argument(metavar="B", help="A name, or @digest.")],
    modules: Annotated[
        bool, typer.Option("--modules", help="One row a module instead of one a kind of module.")
    ] = False,
) -> None:
    """Compare two adapters: settings, norms and angles of their deltas, and what that means for a merge."""
    parents = [ctx.store.resolve(first), ctx.store.resolve(second)]
    try:
        shared_base(ctx.store, parents)
    except IncompatibleError as error:
        ctx.out.warn(
            f"{error.what} {error.why} The numbers below compare weights of different models."
        )
    with opened(ctx.store, parents, "compared") as adapters:
        difference = compare(adapters)
    rows = _by_module(difference) if modules else _by_kind(difference)
    record: dict[str, Any] = {
        "a": parents[0].label,
        "b": parents[1].label,
        "norm_a": difference.norm_a,
        "norm_b": difference.norm_b,
        "cosine": difference.cosine,
        "verdict": difference.verdict,
        "settings": {
            name: f"{_word(mine)} | {_word(theirs)}" for name, mine, theirs in difference.settings
        },
    }
    if ctx.out.mode == "json":
        settings = {name: [mine, theirs] for name, mine, theirs in difference.settings}
        ctx.out.record({**record, "settings": settings, "modules": _by_module(difference)})
        return
    ctx.out.record(record, ids=("cosine",))
    if ctx.out.mode == "human":
        ctx.out.text("")
        ctx.out.table(
            rows,
            ("module", "count", "norm_a", "norm_b", "cosine", "lowest", "highest")
            if not modules
            else ("module", "norm_a", "norm_b", "cosine"),
        )


def _word(value: object) -> str:
    return "–" if value is None else str(value)


def _by_module(difference: Difference) -> list[dict[str, Any]]:
    return [
        {"module": m.module, "norm_a": m.norm_a, "norm_b": m.norm_b, "cosine": m.cosine}
        for m in difference.modules
    ]


def _by_kind(difference: Difference) -> list[dict[str, Any]]:
    """The modules put together by the last part of their names: q_proj, v_proj, ..."""
    groups = defaultdict(list)
    for module in difference.modules:
        groups[module.module.rpartition(".")[2]].append(module)
    rows = []
    for kind, members in sorted(groups.items()):
        part = Difference(tuple(members), ())
        cosines = [member.cosine for member in members if member.cosine is not None]
        rows.append(
            {
                "module": kind,
                "count": len(members),
                "norm_a": part.norm_a,
                "norm_b": part.norm_b,
                "cosine": part.cosine,
                "lowest": min(cosines, default=None),
                "highest": max(cosines, default=None),
            }
        )
    return rows
