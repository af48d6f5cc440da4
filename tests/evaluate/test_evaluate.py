"""One table: base, adapters, exported models; the same rows for all; what was found is attested."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.data import read_rows, split_rows
from adapterhub.errors import ExitCode, IncompatibleError, NotFoundError, UsageError
from adapterhub.evaluate import EvalRow, evaluate
from adapterhub.evaluate.measures import parse_measure
from adapterhub.perplexity import loss_in_words
from adapterhub.store.catalogue.cachefile import default_folder
from tests.cli.calling import call
from tests.support.chat import chat_base
from tests.support.evaluated import loss_of
from tests.support.models import peft_adapter

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


def test_an_adapter_is_told_how_it_differs_from_the_base_with_an_interval(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    digest = add("one")
    table = evaluate(store, ["base", "one"], base=str(base), data=data, split="all")
    assert table[0].versus_base is None
    versus = table[1].versus_base
    assert versus is not None
    assert versus.difference == pytest.approx(loss_of(table[1]) - loss_of(table[0]), abs=1e-9)
    assert versus.low <= versus.difference <= versus.high
    assert versus.verdict == (
        "worse" if versus.low > 0 else "better" if versus.high < 0 else "same"
    )
    (found,) = [a for a in store.attestations(digest) if a.type == "eval"]
    assert found.body["result"]["versus_base"]["low"] == versus.low
    alone = evaluate(store, ["one"], base=str(base), data=data, split="all")
    assert alone[0].versus_base is None


def test_an_adapter_that_changes_nothing_is_the_same_as_the_base(
    store: Store, base: Path, data: Path, tmp_path: Path
) -> None:
    folder = peft_adapter(base, tmp_path / "nothing", strength=0.0, r=4)
    store.add_folder(folder, name="nothing", base=str(base))
    versus = evaluate(store, ["nothing", "base"], base=str(base), data=data)[0].versus_base
    assert versus is not None
    assert (versus.difference, versus.verdict) == (0.0, "same")


def test_answers_are_measured_against_the_rows_own(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    add("one")
    found = evaluate(
        store,
        ["base", "one"],
        base=str(base),
        data=data,
        measures=[parse_measure("exact"), parse_measure("length")],
        max_new_tokens=5,
    )
    for row in found:
        assert 0 <= row.measures["exact"].value <= 1
        assert row.tokens_per_second is not None
    versus = found[1].measures["length"].versus_base
    assert versus is not None
    assert versus.verdict is None, "longer is neither better nor worse"
    assert versus.difference == pytest.approx(
        found[1].measures["length"].value - found[0].measures["length"].value
    )
    assert found[0].measures["exact"].versus_base is None


def test_parts_of_the_data_are_told_by_themselves_and_add_up(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    rows = json.loads(data.read_text())
    for place, row in enumerate(rows):
        row["lang"] = ["de", "en"][place % 2]
    data.write_text(json.dumps(rows))
    add("one")
    table = evaluate(store, ["base", "one"], base=str(base), data=data, split="all", by="lang")
    whole = evaluate(store, ["base", "one"], base=str(base), data=data, split="all")
    assert table[1].versus_base == whole[1].versus_base, "told apart or not"
    parts = table[1].parts
    assert list(parts) == ["de", "en"]
    assert sum(part.rows for part in parts.values()) == table[1].rows
    de = json.dumps([row for row in rows if row["lang"] == "de"])
    data.write_text(de)
    alone = evaluate(store, ["base", "one"], base=str(base), data=data, split="all")[1]
    assert alone.loss == pytest.approx(parts["de"].loss, rel=1e-5)
    assert alone.versus_base is not None
    assert parts["de"].versus_base is not None
    assert alone.versus_base.low == pytest.approx(parts["de"].versus_base.low, abs=1e-5)
    with pytest.raises(UsageError, match="no column 'langage'") as caught:
        evaluate(store, ["one"], base=str(base), data=data, by="langage")
    assert "lang" in caught.value.why


def test_a_system_prompt_is_tried_on_the_base(store: Store, base: Path, data: Path) -> None:
    def loss(**given: Any) -> list[float]:
        return [
            loss_of(row) for row in evaluate(store, ["base"], base=str(base), data=data, **given)
        ]

    plain, prompted = loss(system="Answer with a colour.")
    assert [plain] == loss()
    assert prompted != plain
    rows = json.loads(data.read_text())
    for row in rows:
        row["system"] = "Answer with a colour."
    data.write_text(json.dumps(rows))
    assert loss(split="all")[0] == pytest.approx(
        loss(split="all", system="Answer with a colour.")[1], rel=1e-6
    )


def test_an_evaluation_that_was_cut_short_goes_on_and_says_the_same(
    store: Store, add: Add, base: Path, data: Path
) -> None:
    add("one")

    class Impatient:
        def __init__(self, patience: int) -> None:
            self.patience = patience

        def advance(self, amount: float = 1, **status: object) -> None:
            self.patience -= 1
            if not self.patience:
                raise KeyboardInterrupt

        def update(self, text: str) -> None:
            pass

    def run(**given: Any) -> list[EvalRow]:
        return evaluate(
            store,
            ["base", "one"],
            base=str(base),
            data=data,
            split="all",
            measures=[parse_measure("exact")],
            max_new_tokens=4,
            batch_tokens=200,
            **given,
        )

    def told(rows: list[EvalRow]) -> list[tuple[object, ...]]:
        return [(row.name, row.loss, row.versus_base, row.measures) for row in rows]

    whole = run(cached=False)
    for kept in (default_folder() / "evaluations").iterdir():
        kept.unlink()
    for patience in (3, 12):
        with pytest.raises(KeyboardInterrupt, match="same command goes on"):
            run(progress=Impatient(patience))
    files = list((default_folder() / "evaluations").iterdir())
    assert files
    files[0].write_text(files[0].read_text() + '{"scores": [[0, 1')
    assert told(run()) == told(whole)
    before = [path.read_bytes() for path in sorted(files)]
    assert told(run()) == told(whole)
    assert [path.read_bytes() for path in sorted(files)] == before, "nothing was computed again"


def test_what_is_known_of_other_weights_or_rows_is_not_taken(
    store: Store, add: Add, base: Path, data: Path, tmp_path: Path
) -> None:
    add("one")
    first = evaluate(store, ["one"], base=str(base), data=data)[0].loss
    add("two", seed=3)
    assert evaluate(store, ["two"], base=str(base), data=data)[0].loss != first
    other = chat_base(tmp_path / "other", seed=1)
    moved = evaluate(store, ["one"], base=str(other), data=data, allow_mismatch=True)[0].loss
    assert moved != first
    assert evaluate(store, ["one"], base=str(base), data=data, max_length=60)[0].loss != first


def test_a_loss_beyond_every_perplexity_is_told_as_infinite() -> None:
    assert loss_in_words("worse", 8e4, 7e4, 9e4) == "worse, +inf% (+inf to +inf)"
    assert loss_in_words("better", -0.145, -0.16, -0.13) == "better, -13.5% (-14.8 to -12.2)"


def test_few_rows_are_said_to_be_few(store: Store, add: Add, base: Path, data: Path) -> None:
    add("one")
    said = call("eval", "base", "one", "--base", base, "--data", data, "--max-rows", "2")
    assert said.code == 0, said.err
    assert "2 rows say little" in said.err
