"""Did training in 4 bits cost quality? Two trainings of one recipe, QLoRA and LoRA, on the rows that neither saw.

Both are attached to the base in full precision, which is what is served. The question is not whether a difference was
shown but whether a difference that matters can be ruled out, so the interval of QLoRA less LoRA is held against a margin:
within it as a whole, the two are equivalent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.data import dataset_digest, read_rows, split_rows
from adapterhub.errors import UsageError
from adapterhub.evaluate.measuring import Progress
from adapterhub.evaluate.run import evaluate
from adapterhub.evaluate.subjects import BASE
from adapterhub.evaluate.table import EvalRow, Versus
from adapterhub.evaluate.twins import Training, Twins, find_twins, recipe_rows
from adapterhub.evaluated import PAIR
from adapterhub.perplexity import growth
from adapterhub.words import counted, human_size

if TYPE_CHECKING:
    from adapterhub.store import Store

MARGIN = 0.01
"""Of the perplexity: so much is taken to make no difference, where nothing else is said."""

LEAST_ROWS = 10
"""Fewer decide nothing, whatever their interval: it knows only these."""

Word = Literal["equivalent", "better", "worse", "not decided"]
Cost = Mapping[str, float | None]


@dataclass(frozen=True)
class Pair:
    """What was found."""

    qlora: str
    lora: str
    """The adapters' names."""
    rows: tuple[EvalRow, ...]
    """The table: the base, QLoRA, LoRA."""
    margin: float
    word: Word
    verdict: str
    """The same in a sentence."""
    versus: Versus | None
    """The loss of QLoRA less LoRA's, in nats a token; None where one row is all there is."""
    measures: Mapping[str, Versus]
    """Each measure of QLoRA less LoRA's."""
    cost: Mapping[str, Cost]
    """Of each training: `seconds`, and `peak_memory` in bytes."""
    cost_in_words: str
    differences: tuple[str, ...]
    """Beside the method, where that was allowed."""
    remarks: tuple[str, ...]


def evaluate_pair(
    store: Store,
    names: Sequence[str],
    *,
    data: Path | None = None,
    suite: str | None = None,
    margin: float = MARGIN,
    progress: Progress | None = None,
    allow_mismatch: bool = False,
    **settings: Any,
) -> Pair:
    """Evaluates the base and both adapters on the same rows, and attests the verdict for both.

    Args:
        names: one adapter trained with QLoRA and one with LoRA, in any order.
        margin: the share of the perplexity within which the two count as equivalent.
        allow_mismatch: go on although the trainings differ in more than their method, or the rows were trained on.
        settings: as `evaluate` takes them. Where one of held_out, split_seed, limit and max_length is left out or None,
            it is what the recipe said, so that the rows are those it held out.

    Raises what `find_twins` and `evaluate` raise, and UsageError where rows were trained on.
    """
    if not 0 < margin < 1:
        raise UsageError(
            f"The margin is {margin:g}; it is a share of the perplexity, more than 0 and less than 1.",
            hint="--margin 0.01  takes 1% for no difference",
        )
    twins = find_twins(store, names, allow_mismatch=allow_mismatch)
    given = {key: value for key, value in settings.items() if value is not None}
    how = {**recipe_rows(twins), **given}
    seen = () if data is None else _rows_that_were_seen(twins, data, how, allowed=allow_mismatch)
    labels = {method: one.adapter.label for method, one in twins.both.items()}
    table = evaluate(
        store,
        [BASE, labels["qlora"], labels["lora"]],
        data=data,
        suite=suite,
        progress=progress,
        allow_mismatch=allow_mismatch,
        **how,
    )
    _, qlora, lora = table[:3]
    rival = qlora.versus[twins.lora.adapter.digest]
    word = judge(rival.loss, margin, qlora.rows)
    cost = {method: one.cost for method, one in twins.both.items()}
    found = Pair(
        **labels,
        rows=tuple(table),
        margin=margin,
        word=word,
        verdict=in_words(word, rival.loss, margin, qlora.rows),
        versus=rival.loss,
        measures=rival.measures,
        cost=cost,
        cost_in_words=_cost_in_words(cost, alike=_on_one_machine(twins)),
        differences=twins.differences,
        remarks=(*twins.remarks, *seen),
    )
    for method, row in (("qlora", qlora), ("lora", lora)):
        _attest(store, twins, method, row, found)
    return found


def judge(versus: Versus | None, margin: float, rows: int) -> Word:
    """What the interval of a difference of losses over `rows` says, held against a margin (a share of the perplexity).

    Equivalent: no difference beyond the margin is left. Better or worse: a difference was shown. Else nothing is.
    """
    if versus is None or rows < LEAST_ROWS:
        return "not decided"
    low, high = growth(versus.low), growth(versus.high)
    if -margin <= low and high <= margin:
        return "equivalent"
    if low > 0:
        return "worse"
    return "better" if high < 0 else "not decided"


def in_words(word: Word, versus: Versus | None, margin: float, rows: int) -> str:
    """The verdict as a sentence: `QLoRA is worse: its perplexity is +3.1% (+1.2 to +5) beside LoRA's.`."""
    if versus is None or rows < LEAST_ROWS:
        few = counted(rows, "row")
        return f"Not decided: {few} can't tell. Evaluate at least {LEAST_ROWS}."
    shares = [growth(one) for one in (versus.difference, versus.low, versus.high)]
    by = "{:+.3g}% ({:+.3g} to {:+.3g})".format(*(100 * one for one in shares))
    told, of = f"perplexity is {by} beside LoRA's", f"the margin of {100 * margin:.3g}%"
    match word:
        case "equivalent":
            return f"QLoRA and LoRA are equivalent: QLoRA's {told}, within {of} as a whole."
        case "not decided":
            return f"Not decided: QLoRA's {told}, which reaches beyond {of}. Evaluate more rows."
    least = min(map(abs, shares[1:]))
    less = f"; the difference may be less than {of}" if least <= margin else ""
    return f"QLoRA is {word}: its {told}{less}."


def _cost_in_words(cost: Mapping[str, Cost], *, alike: bool) -> str:
    """`QLoRA took 12 s and 1.2 GB, LoRA 10 s and 2.4 GB: 1.2 times the time, 0.5 times the memory.`."""
    told = []
    for name, one in (("QLoRA took", cost["qlora"]), ("LoRA", cost["lora"])):
        seconds, memory = one["seconds"], one["peak_memory"]
        spent = [
            f"{seconds:.4g} s" if seconds is not None else "an unknown time",
            human_size(memory) if memory is not None else "unknown memory",
        ]
        told.append(f"{name} {' and '.join(spent)}")
    if not alike:
        return ", ".join(told) + ": on different machines, so they don't compare."
    ratios = [
        f"{mine / theirs:.3g} times the {what}"
        for key, what in (("seconds", "time"), ("peak_memory", "memory"))
        if (mine := cost["qlora"][key]) is not None and (theirs := cost["lora"][key])
    ]
    return ", ".join(told) + (f": {', '.join(ratios)}." if ratios else ".")


def _on_one_machine(twins: Twins) -> bool:
    """Whether both were trained on the same kind of machine, as far as that is known."""
    return not any(remark.startswith("hardware.") for remark in twins.remarks)


def _rows_that_were_seen(
    twins: Twins, data: Path, how: Mapping[str, Any], *, allowed: bool
) -> tuple[str, ...]:
    """A remark where rows were, or may have been, trained on. UsageError where they were and that isn't `allowed`."""
    every = read_rows(data, how.get("fmt"))
    recipe = recipe_rows(twins)
    training: Training = twins.qlora
    if dataset_digest(every) != training.get("data.digest") or "held_out" not in recipe:
        return ("these aren't the data of the recipe: whether rows were trained on isn't known",)
    trained = split_rows(
        every, recipe["held_out"], seed=recipe.get("split_seed", 0), limit=recipe.get("limit")
    ).train
    asked = split_rows(
        every,
        how.get("held_out", recipe["held_out"]),
        seed=how.get("split_seed", 0),
        limit=how.get("limit"),
    )
    chosen = asked.held_out
    if how.get("split") == "all":
        chosen = (*asked.train, *asked.held_out)
    known = {row.split_key for row in trained}
    seen = sum(row.split_key in known for row in chosen)
    if not seen:
        return ()
    told = f"{seen} of the {len(chosen)} rows were trained on"
    if not allowed:
        raise UsageError(
            told[:1].upper() + told[1:] + ", which says nothing about others.",
            hint="Leave out --split, --held-out, --split-seed and --limit: then they are those that the recipe held out.",
        )
    return (told,)


def _attest(store: Store, twins: Twins, method: str, row: EvalRow, found: Pair) -> None:
    """Records the verdict for one of the two, with what the evaluation it rests on depended on."""
    both = twins.both
    other = both["lora" if method == "qlora" else "qlora"].adapter.digest
    digest = both[method].adapter.digest
    body = {
        "event": PAIR,
        "as": method,
        "other": other,
        "word": found.word,
        "margin": found.margin,
        "rows": row.rows,
        "versus": asdict(found.versus) if found.versus else None,
        "measures": {name: asdict(one) for name, one in found.measures.items()},
        "cost": found.cost,
        "differences": list(found.differences),
        "remarks": list(found.remarks),
        "evaluated": _facts(store, digest, other, row),
    }
    store.attest(digest, "eval", body)


def _facts(store: Store, digest: str, other: str, row: EvalRow) -> dict[str, Any]:
    """The data, settings and versions of the evaluation that `row` was just attested by."""
    for item in reversed(store.attestations(digest)):
        result = item.body.get("result")
        if item.type == "eval" and isinstance(result, Mapping) and result.get("loss") == row.loss:
            if other in (result.get("versus") or ()):
                keys = ("suite", "data", "settings", "base", "versions")
                return {key: item.body[key] for key in keys if key in item.body}
    return {}
