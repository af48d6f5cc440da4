"""`evaluate`: resolve the names, derive the rows, score and answer everything, attest what was found about each adapter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.data import stop_token_ids
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.evaluate import models
from adapterhub.evaluate.answers import require_room, write_answers
from adapterhub.evaluate.attesting import body_of, facts_of
from adapterhub.evaluate.backend import Backend
from adapterhub.evaluate.baselines import baselines
from adapterhub.evaluate.judge import Judge, with_verdicts
from adapterhub.evaluate.local import Local
from adapterhub.evaluate.measures import Measure
from adapterhub.evaluate.measuring import Measuring, Progress
from adapterhub.evaluate.scoring import BATCH_TOKENS
from adapterhub.evaluate.served import Served
from adapterhub.evaluate.served_subjects import find_served, settle
from adapterhub.evaluate.server import connect
from adapterhub.evaluate.subjects import BASE, Kind, Subject, find_subject, shared_base_of
from adapterhub.evaluate.suite import PASSED, load_suite
from adapterhub.evaluate.table import EvalRow, line
from adapterhub.evaluate.task import Settings, SplitName, ask, choose, choose_suite
from adapterhub.evaluate.trained_on import rows_trained_on

if TYPE_CHECKING:
    from adapterhub.data import Row
    from adapterhub.store import Store

DTYPE = "float32"
"""What is computed in here where nothing is said."""


def evaluate(
    store: Store,
    names: Sequence[str],
    *,
    base: str | None = None,
    data: Path | None = None,
    suite: str | None = None,
    fmt: str | None = None,
    held_out: float = 0.1,
    split: SplitName = "held_out",
    prompt: str | None = None,
    measures: Sequence[Measure] = (),
    by: str | None = None,
    system: str | None = None,
    max_rows: int | None = None,
    dtype: str = DTYPE,
    progress: Progress | None = None,
    split_seed: int = 0,
    limit: int | None = None,
    max_length: int = 1024,
    max_new_tokens: int = 256,
    batch_tokens: int = BATCH_TOKENS,
    allow_mismatch: bool = False,
    attest: bool = True,
    cached: bool = True,
    judge: Judge | None = None,
    contexts: Path | None = None,
    server: str | None = None,
    answers: Path | None = None,
    remark: Callable[[str], None] = lambda _: None,
) -> list[EvalRow]:
    """Scores every name on the same rows; the result is in the order of `names`, then the base as asked otherwise.

    Args:
        names: adapters in the store, the word `base`, or folders of whole models (as `export` writes them).
        base: folder or repository; by default the first adapter's own.
        suite: the name or the file of a suite, in place of `data`: all its rows are scored, its checks are a measure, and
            its parts are told apart.
        data: a data file; `fmt`, `held_out`, `split_seed` and `limit` as in the recipe it was trained with, so that
            the held-out rows are the same ones.
        split: score the held-out rows, or all.
        prompt: also let each answer this, greedily, with at most `max_new_tokens` tokens.
        measures: let each answer every row's question, and measure the answers by these.
        by: a column of the data, by whose values the numbers are told apart, too.
        system: also score the base told this first: what a prompt alone would do.
        max_rows: score only so many rows (the first by digest).
        dtype: to compute in: float32, bfloat16 or float16.
        max_length: tokens a row is cut to.
        attest: record the numbers of each adapter in the store.
        cached: go on with, and keep, what an earlier evaluation of the same found row by row.
        judge: let it compare every answer with the base's, or the row's own: one measure more.
        contexts: a file of texts retrieved for each question; also score the base that reads them first.
        server: a port or URL: ask there, in place of computing here. Names may be the server's own, too.
        answers: a new file that gets what each of them answered, a JSON line for a row.
        remark: hears what should be known about how the server was asked.

    Raises UsageError, NotFoundError, FormatError and IncompatibleError before anything is loaded, where possible.
    """
    models.require_libraries()
    if (data is None) == (suite is None):
        raise UsageError(
            "Say on what: --data FILE or --suite NAME, one of them.",
            hint="adapterhub eval NAME base --suite forgetting; or a public benchmark: --harness TASK",
        )
    where = f"--data {data}" if data is not None else f"--suite {suite}"
    if not names:
        raise UsageError("Name something to evaluate.", hint=f"adapterhub eval NAME {BASE} {where}")
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"max_rows is {max_rows}; it must be at least 1.")
    models.torch_dtype(dtype)
    if twice := [n for n, count in Counter(one.name for one in measures).items() if count > 1]:
        raise UsageError(
            f"Two measures are called {twice[0]}.",
            why="Files of one name in two folders can't be told apart in a table.",
            hint="Rename one of them, or evaluate twice.",
        )
    there = connect(server) if server is not None else None
    if there is None:
        subjects = [find_subject(store, name) for name in names]
        require_attachable(store, subjects)
    else:
        if dtype != DTYPE:
            raise UsageError(
                f"A server computes in what it was started with, here {there.dtype}.",
                hint="Leave out --dtype.",
            )
        dtype = there.dtype
        subjects = [find_served(store, there, name) for name in names]
    base_model = shared_base_of(store, subjects, base, allow_mismatch=allow_mismatch)
    others = baselines(system, contexts, has_base=base_model is not None)
    subjects += [one.subject for one in others]
    called: dict[str, str] = {}
    if there is not None:
        subjects, called = settle(there, subjects, base_model)
    if judge is not None:
        judge.require(subjects)
    if data is not None:
        settings = Settings(split, held_out, split_seed, limit, max_rows, max_length, dtype)
        chosen = choose(data, fmt, settings, by)
    else:
        settings = Settings("all", 0.0, 0, None, max_rows, max_length, dtype)
        chosen = choose_suite(load_suite(str(suite)), settings)
        measures = (PASSED, *measures)

    home = base_model.path if base_model else next(s.folder for s in subjects if s.folder)
    tokenizer = models.load_tokenizer(home)
    stop_ids = stop_token_ids(tokenizer, home)
    answering = bool(measures) or judge is not None
    if answers is not None:
        if not answering:
            raise UsageError(
                "--answers: nothing is asked that would be answered.",
                why="A perplexity is taken over the answers of the data.",
                hint="Add --measure, --suite or a judge.",
            )
        require_room(answers)
    ways: dict[Kind, Sequence[Row]] = {one.subject.kind: one.given(chosen.rows) for one in others}
    asked = ask(tokenizer, chosen, stop_ids, max_length, others=ways, answering=answering)

    backend: Backend
    if there is not None and base_model is not None:
        backend = Served(there, called, base_model, tokenizer, stop_ids, remark)
    else:
        backend = Local(store, base_model, tokenizer, stop_ids, dtype, batch_tokens)

    measuring = Measuring(
        asked,
        measures,
        prompt,
        max_new_tokens,
        base_model,
        stop_ids,
        backend,
        cached,
        progress,
    )
    used = [subject.digest for subject in subjects if subject.digest]
    try:
        with store.leases.held("eval", used, f"on {data or suite}"):
            found = measuring.all(subjects)
        if judge is not None:
            found = with_verdicts(found, asked.plain.rows, judge, cached=cached, progress=progress)
    except KeyboardInterrupt:
        if not cached:
            raise
        raise KeyboardInterrupt("What was found is kept: the same command goes on there.") from None
    if answers is not None:
        write_answers(answers, found, asked)
    reference = next((one for one in found if one.subject.kind == "base"), None)
    seen = (
        {one: rows_trained_on(store, one, chosen, asked.plain.rows) for one in set(used)}
        if data
        else {}
    )
    order: Sequence[int] = range(len(asked.plain.rows))
    if (
        by is not None
    ):  # as they stand where nothing is told apart: the interval of all of them is the same
        order = sorted(order, key=lambda place: asked.plain.rows[place].digest)
    table = [
        replace(
            line(one, reference, asked.parts, found, order),
            left_out=asked.dropped,
            trained_on=seen.get(one.subject.digest or "", 0),
        )
        for one in found
    ]
    if attest and base_model is not None:
        further: dict[str, Any] = {one.setting: one.digest(chosen.rows) for one in others}
        if by is not None:
            further["by"] = by
        if judge is not None:
            further["judge"] = judge.identity
        if there is not None:
            further["server"] = backend.identity["server"]
        facts = facts_of(
            base_model,
            tokenizer,
            chosen,
            asked,
            backend,
            settings,
            measures,
            max_new_tokens,
            further,
        )
        for row in table:
            if row.digest is not None:
                store.attest(row.digest, "eval", body_of(row, table, facts, prompt))
    return table


def require_attachable(store: Store, subjects: Sequence[Subject]) -> None:
    """IncompatibleError where one of the adapters is of a kind that can't be attached."""
    for adapter in (subject.adapter for subject in subjects if subject.adapter):
        kind = store.facts(adapter).kind
        if kind not in ("lora", "dora"):
            raise IncompatibleError(
                f"{adapter.label} is of the kind {kind}, which can't be attached yet."
            )
