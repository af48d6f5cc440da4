"""`evaluate`: resolve the names, derive the rows, score everything, attest what was found about each adapter."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from adapterhub.data import (
    Row,
    dataset_digest,
    encode_rows,
    read_rows,
    split_rows,
    stop_token_ids,
    template_digest,
)
from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.evaluate import models
from adapterhub.evaluate.scoring import BATCH_TOKENS, score
from adapterhub.evaluate.subjects import BASE, Kind, Subject, find_subject, shared_base_of

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.data.masking import EncodedRows
    from adapterhub.store import Store

SplitName = Literal["held_out", "all"]


class Progress(Protocol):
    """What `evaluate` tells of its work: one unit for each name."""

    def advance(self, amount: float = 1, **status: object) -> None:
        """`amount` more units are done."""

    def update(self, text: str) -> None:
        """Says what is being done now."""


@dataclass(frozen=True)
class EvalRow:
    """One line of the table: how well one model predicts the answers in the data."""

    name: str
    kind: Kind
    digest: str | None
    """The adapter's; None for the base and for model folders."""
    loss: float
    """Nats a token."""
    perplexity: float
    tokens: int
    rows: int
    answer: str | None
    """The greedy answer to the prompt, where one was given."""
    seconds: float


@dataclass(frozen=True)
class _Settings:
    """What the numbers depend on beside model and rows; attested with them."""

    split: SplitName
    held_out: float
    split_seed: int
    max_rows: int | None
    max_length: int
    dtype: str


def evaluate(
    store: Store,
    names: Sequence[str],
    *,
    base: str | None = None,
    data: Path,
    fmt: str | None = None,
    held_out: float = 0.1,
    split: SplitName = "held_out",
    prompt: str | None = None,
    max_rows: int | None = None,
    dtype: str = "float32",
    progress: Progress | None = None,
    split_seed: int = 0,
    limit: int | None = None,
    max_length: int = 1024,
    max_new_tokens: int = 64,
    batch_tokens: int = BATCH_TOKENS,
    allow_mismatch: bool = False,
    attest: bool = True,
) -> list[EvalRow]:
    """Scores every name on the same rows; the result is in the order of `names`.

    Args:
        names: adapters in the store, the word `base`, or folders of whole models (as `export` writes them).
        base: folder or repository; by default the first adapter's own.
        data: a data file; `fmt`, `held_out`, `split_seed` and `limit` as in the recipe it was trained with, so that
            the held-out rows are the same ones.
        split: score the held-out rows, or all.
        prompt: also let each answer this, greedily, with at most `max_new_tokens` tokens.
        max_rows: score only so many rows (the first by digest).
        dtype: to compute in: float32, bfloat16 or float16.
        max_length: tokens a row is cut to.
        attest: record the numbers of each adapter in the store.

    Raises UsageError, NotFoundError, FormatError and IncompatibleError before anything is loaded, where possible.
    """
    models.require_libraries()
    if not names:
        raise UsageError(
            "Name something to evaluate.", hint=f"adapterhub eval NAME {BASE} --data {data}"
        )
    if max_rows is not None and max_rows < 1:
        raise UsageError(f"max_rows is {max_rows}; it must be at least 1.")
    models.torch_dtype(dtype)
    subjects = [find_subject(store, name) for name in names]
    _require_attachable(store, subjects)
    base_model = shared_base_of(store, subjects, base, allow_mismatch=allow_mismatch)
    every = read_rows(data, fmt)
    parts = split_rows(every, held_out, seed=split_seed, limit=limit)
    if split == "held_out" and not parts.held_out:
        raise UsageError("No rows are held out.", hint="Give --held-out, or evaluate all rows.")
    chosen = parts.held_out if split == "held_out" else (*parts.train, *parts.held_out)
    rows = sorted(chosen, key=lambda row: row.digest)[:max_rows]
    settings = _Settings(split, held_out, split_seed, max_rows, max_length, dtype)

    home = base_model.path if base_model else next(s.folder for s in subjects if s.folder)
    tokenizer = models.load_tokenizer(home)
    stop_ids = stop_token_ids(tokenizer, home)
    encoded = encode_rows(tokenizer, rows, max_length=max_length, stop_ids=stop_ids)

    def measure(subject: Subject, model: Any) -> EvalRow:
        began = time.monotonic()
        if progress:
            progress.update(f"scoring {subject.name}")
        advance = _advancer(progress, len(encoded.rows))
        result = score(model, encoded.rows, batch_tokens=batch_tokens, on_rows=advance)
        said = None
        if prompt is not None:
            said = models.answer(model, tokenizer, prompt, stop_ids, max_new_tokens)
        return EvalRow(
            name=subject.name,
            kind=subject.kind,
            digest=subject.digest,
            loss=result.loss,
            perplexity=result.perplexity,
            tokens=result.tokens,
            rows=result.rows,
            answer=said,
            seconds=round(time.monotonic() - began, 3),
        )

    used = [subject.digest for subject in subjects if subject.digest]
    with store.leases.held("eval", used, f"on {data}"):
        table = _measure_all(store, subjects, base_model, dtype, measure)
    if attest and base_model is not None:
        facts = _facts(base_model, tokenizer, every, rows, encoded, settings)
        for row in table:
            if row.digest is not None:
                store.attest(row.digest, "eval", _body(row, table, facts, prompt))
    return table


def _measure_all(
    store: Store,
    subjects: Sequence[Subject],
    base: BaseModel | None,
    dtype: str,
    measure: Callable[[Subject, Any], EvalRow],
) -> list[EvalRow]:
    """Measures each subject once: the base and its adapters on one loaded model, then each model folder."""
    results: dict[str, EvalRow] = {}
    different = list({subject.name: subject for subject in subjects}.values())
    if base is not None:
        on_base = [subject for subject in different if subject.kind != "model"]
        results.update(_measure_on_base(store, on_base, base, dtype, measure))
    for subject in different:
        if subject.folder is not None:
            gc.collect()  # a model's modules refer to each other; two models may not fit at once
            results[subject.name] = measure(subject, models.load_model(subject.folder, dtype))
    return [results[subject.name] for subject in subjects]


def _measure_on_base(
    store: Store,
    subjects: Sequence[Subject],
    base: BaseModel,
    dtype: str,
    measure: Callable[[Subject, Any], EvalRow],
) -> dict[str, EvalRow]:
    if not subjects:
        return {}
    results = {}
    model = models.load_model(base.path, dtype)
    for subject in subjects:
        folder = store.view(subject.adapter.digest) if subject.adapter else None
        with models.attached(model, folder) as ready:
            results[subject.name] = measure(subject, ready)
    return results


def _require_attachable(store: Store, subjects: Sequence[Subject]) -> None:
    for adapter in (subject.adapter for subject in subjects if subject.adapter):
        kind = store.facts(adapter).kind
        if kind not in ("lora", "dora"):
            raise IncompatibleError(
                f"{adapter.label} is of the kind {kind}, which can't be attached yet."
            )


def _advancer(progress: Progress | None, rows: int) -> Callable[[int], None]:
    def advance(done: int) -> None:
        if progress:
            progress.advance(done / rows)

    return advance


def _facts(
    base: BaseModel,
    tokenizer: Any,
    every: Sequence[Row],
    rows: Sequence[Row],
    encoded: EncodedRows,
    settings: _Settings,
) -> dict[str, Any]:
    """What all numbers of one evaluation have in common. No path, host or time: the same facts, the same body."""
    import torch

    return {
        "metric": "perplexity",
        "data": {
            "digest": dataset_digest(every),
            "rows_digest": dataset_digest(rows),
            "truncated": encoded.truncated,
            "dropped": encoded.dropped,
        },
        "settings": asdict(settings),
        "base": {"repo": base.repo, "revision": base.revision, "fingerprint": base.fingerprint},
        "template": template_digest(tokenizer),
        "versions": {
            "torch": torch.__version__,
            **{p: version(p) for p in ("transformers", "peft")},
        },
    }


def _body(
    row: EvalRow, table: Sequence[EvalRow], facts: dict[str, Any], prompt: str | None
) -> dict[str, Any]:
    reference = next((r for r in table if r.kind == "base"), None)
    numbers = {
        "loss": row.loss,
        "perplexity": row.perplexity,
        "tokens": row.tokens,
        "rows": row.rows,
        "base_perplexity": reference.perplexity if reference else None,
    }
    said = {"prompt": prompt, "answer": row.answer} if prompt is not None else None
    return {**facts, "result": numbers, "said": said}
