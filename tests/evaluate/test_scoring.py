"""The score is what a plain loop over single rows gives: batches, padding and projection change nothing."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.data import IGNORED, Encoded, encode_rows, read_rows
from adapterhub.errors import AdapterHubError
from adapterhub.evaluate.models import load_model, load_tokenizer
from adapterhub.evaluate.scoring import score, score_rows, total


@pytest.fixture
def model(base: Path) -> Any:
    return load_model(base, "float32")


@pytest.fixture
def rows(base: Path, data: Path) -> tuple[Encoded, ...]:
    return encode_rows(
        load_tokenizer(base), read_rows(data), max_length=512, stop_ids=frozenset({2})
    ).rows


def plain_nll(model: Any, rows: tuple[Encoded, ...]) -> tuple[float, int]:
    """Transformers' own loss, a row at a time, in float64 sums."""
    total, tokens = 0.0, 0
    for row in rows:
        labels = torch.tensor([row.labels])
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([row.input_ids]), labels=labels).loss
        count = int((labels[:, 1:] != IGNORED).sum())
        total += float(mean) * count
        tokens += count
    return total, tokens


def test_the_score_equals_a_plain_loop(model: Any, rows: tuple[Encoded, ...]) -> None:
    expected, tokens = plain_nll(model, rows)
    found = score(model, rows, batch_tokens=600)
    assert (found.tokens, found.rows) == (tokens, len(rows))
    assert found.nll == pytest.approx(expected, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(expected / tokens), rel=1e-4)


def test_the_score_does_not_depend_on_batches_or_order(
    model: Any, rows: tuple[Encoded, ...]
) -> None:
    reference = score(model, rows, batch_tokens=1)  # each row alone, never padded
    for batch_tokens in (300, 2048, 10**6):
        assert score(model, rows[::-1], batch_tokens=batch_tokens).nll == pytest.approx(
            reference.nll, rel=1e-6
        )


def test_little_of_what_is_computed_is_padding(model: Any, rows: tuple[Encoded, ...]) -> None:
    lengths = [len(row.input_ids) for row in rows]
    assert max(lengths) > 1.5 * min(lengths)
    computed = []
    forward = model.forward

    def counting(**inputs: Any) -> Any:
        computed.append(inputs["input_ids"].numel())
        return forward(**inputs)

    model.forward = counting
    model.forward.__signature__ = inspect.signature(
        forward
    )  # that it can keep logits is read there
    score(model, rows)
    assert sum(computed) <= sum(lengths) / 0.9
    assert len(computed) < len(rows)


def test_every_row_is_reported_once(model: Any, rows: tuple[Encoded, ...]) -> None:
    seen: list[int] = []
    score(model, rows, batch_tokens=600, on_rows=seen.append)
    assert sum(seen) == len(rows)
    assert len(seen) > 1


def test_a_model_that_computes_nan_is_an_error_and_no_number(
    model: Any, rows: tuple[Encoded, ...]
) -> None:
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(AdapterHubError, match="not a number"):
        score(model, rows)


def test_each_row_gets_its_own_score_in_its_own_place(
    model: Any, rows: tuple[Encoded, ...]
) -> None:
    together = score_rows(model, rows, batch_tokens=10**6)
    for row, found in zip(rows, together, strict=True):
        expected, tokens = plain_nll(model, (row,))
        assert (found.tokens, found.rows) == (tokens, 1)
        assert found.nll == pytest.approx(expected, rel=1e-5)
    assert total(together).nll == pytest.approx(score(model, rows).nll, rel=1e-9)
