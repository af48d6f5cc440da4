"""One table: base, adapters, exported models; the same rows for all; what was found is attested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.data import read_rows, split_rows
from adapterhub.errors import ExitCode, IncompatibleError, NotFoundError, UsageError
from adapterhub.evaluate import EvalRow, evaluate
from tests.support.chat import chat_base

if TYPE_CHECKING:
    from adapterhub.store import Store

Add = Callable[..., str]


def merged_model(base: Path, adapter: Path, folder: Path) -> Path:
    """PEFT's own merge, saved with the tokenizer: an independent "exported" model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def test_each_name_gets_its_own_line_in_the_order_given(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    digest = add("one")
    add("two", seed=1)
    table = evaluate(store, ["two", "base", "one"], base=str(base), data=data, held_out=0.3)
    assert [(row.name, row.kind) for row in table] == [
        ("two", "adapter"),
        ("base", "base"),
        ("one", "adapter"),
    ]
    assert len({row.perplexity for row in table}) == 3
    assert table[2].digest == digest
    held_out = split_rows(read_rows(data), 0.3).held_out
    assert {row.rows for row in table} == {len(held_out)}


def test_an_adapter_leaves_the_base_as_it_was(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    add("one")
    alone = evaluate(store, ["base"], base=str(base), data=data)[0]
    after = evaluate(store, ["one", "base"], base=str(base), data=data)[1]
    assert after.loss == alone.loss


def test_a_merged_model_scores_as_the_attached_adapter_does(
    store: Store, add: Add, base: Path, data: Path, tmp_path: Path
) -> None:
    digest = add("one")
    folder = merged_model(base, store.view(digest), tmp_path / "model")
    attached, merged = evaluate(store, ["one", str(folder)], base=str(base), data=data, split="all")
    assert merged.kind == "model"
    assert merged.loss == pytest.approx(attached.loss, abs=1e-5)


def test_a_model_folder_needs_no_base(
    store: Store, add: Add, base: Path, data: Path, tmp_path: Path
) -> None:
    folder = merged_model(base, store.view(add("one")), tmp_path / "model")
    (row,) = evaluate(store, [str(folder)], data=data)
    assert row.kind == "model"


def test_the_adapters_own_base_is_found_when_none_is_given(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    add("one")
    store.bases.remember(store.bases.open(str(base)))
    assert evaluate(store, ["one"], data=data)[0].kind == "adapter"


def test_what_was_found_is_attested_once_with_what_it_depends_on(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    digest = add("one")

    def once() -> list[EvalRow]:
        return evaluate(
            store,
            ["base", "one"],
            base=str(base),
            data=data,
            max_rows=2,
            prompt="hi",
            max_new_tokens=3,
        )

    rows = once()
    assert [row.loss for row in once()] == [row.loss for row in rows]
    (found,) = [a for a in store.attestations(digest) if a.type == "eval"]
    body = found.body
    assert body["result"]["perplexity"] == rows[1].perplexity
    assert body["result"]["base_perplexity"] == rows[0].perplexity
    assert body["settings"]["max_rows"] == 2
    assert body["base"]["fingerprint"] == store.bases.open(str(base)).fingerprint
    assert body["said"] == {"prompt": "hi", "answer": rows[1].answer}
    assert str(data.parent) not in str(body)


def test_scoring_without_attesting_leaves_the_store_alone(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    digest = add("one")
    evaluate(store, ["one"], base=str(base), data=data, attest=False)
    assert not [a for a in store.attestations(digest) if a.type == "eval"]


def test_a_prompt_is_answered_greedily_and_the_same_each_time(
    store: Store, base: Path, data: Path
) -> None:
    said = {
        evaluate(store, ["base"], base=str(base), data=data, prompt="hi", max_new_tokens=5)[
            0
        ].answer
        for _ in range(2)
    }
    assert len(said) == 1
    assert None not in said


def test_bfloat16_is_close_to_float32_and_not_the_same(
    store: Store, base: Path, data: Path
) -> None:
    exact, rough = (
        evaluate(store, ["base"], base=str(base), data=data, dtype=dtype)[0].loss
        for dtype in ("float32", "bfloat16")
    )
    assert rough != exact
    assert rough == pytest.approx(exact, rel=0.02)


def test_progress_adds_up_to_one_unit_a_name(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    class Counter:
        done = 0.0

        def advance(self, amount: float = 1, **status: object) -> None:
            self.done += amount

        def update(self, text: str) -> None:
            pass

    add("one")
    counter = Counter()
    evaluate(store, ["base", "one"], base=str(base), data=data, progress=counter)
    assert counter.done == pytest.approx(2)


def test_an_adapter_of_another_base_is_refused(
    store: Store, add: Add, data: Path, tmp_path: Path
) -> None:
    add("one")
    other = chat_base(tmp_path / "other", seed=1)
    with pytest.raises(IncompatibleError, match="one doesn't fit the base other") as caught:
        evaluate(store, ["one"], base=str(other), data=data)
    assert "fingerprint" in caught.value.why
    assert caught.value.exit_code == ExitCode.INCOMPATIBLE
    row = evaluate(store, ["one"], base=str(other), data=data, allow_mismatch=True)[0]
    assert row.kind == "adapter"


def test_bad_requests_are_refused_before_anything_is_loaded(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    add("support")
    with pytest.raises(NotFoundError, match="suport"):
        evaluate(store, ["suport"], base=str(base), data=data)
    with pytest.raises(UsageError, match="Which base"):
        evaluate(store, ["base"], data=data)
    with pytest.raises(UsageError, match="float32, bfloat16, float16"):
        evaluate(store, ["base"], base=str(base), data=data, dtype="int8")
    with pytest.raises(UsageError, match="max_rows is 0"):
        evaluate(store, ["base"], base=str(base), data=data, max_rows=0)
    with pytest.raises(UsageError, match="No rows are held out"):
        evaluate(store, ["base"], base=str(base), data=data, held_out=0)
    with pytest.raises(UsageError, match="Name something"):
        evaluate(store, [], data=data)
