"""What counts as evidence at a gate: what was found last, on the base as it is, with answers as long as is asked."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapterhub.canonical import canonical_bytes
from adapterhub.data import dataset_digest, read_rows
from adapterhub.errors import GateError, UsageError
from adapterhub.evaluate import EvalRow, evaluate
from adapterhub.evaluate.attesting import body_of
from adapterhub.evaluate.measures import parse_measure
from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.support.evaluated import loss_of

Add = Callable[..., str]
PROD = parse_name("one:prod")


@pytest.fixture
def gated(store: Store, add: Add, base: Path, data: Path) -> Callable[[str], Store]:
    """gated(demand) is the store whose prod asks for that of the data."""
    add("one")
    store.bases.remember(store.bases.open(str(base)))

    def configure(demand: str) -> Store:
        digest = dataset_digest(read_rows(data))
        text = f'[[gates]]\n[[gates.demands]]\ndata = "{digest}"\n{demand}\n'
        store.layout.settings.write_text(text)
        return Store.open(store.home)

    return configure


def refused(store: Store) -> str:
    with pytest.raises(GateError) as caught:
        store.tag(store.resolve("one"), PROD)
    return str(caught.value.why)


def on(store: Store, base: Path, data: Path, **given: Any) -> EvalRow:
    return evaluate(store, ["base", "one"], base=str(base), data=data, split="all", **given)[1]


def test_what_was_found_last_holds_though_it_was_found_before(
    gated: Callable[[str], Store], base: Path, data: Path
) -> None:
    store = gated('measure = "length"\nat_least = 0\nat_most = 1e9\nmax_new_tokens = 2')
    few = [parse_measure("length")]
    on(store, base, data, measures=few, max_new_tokens=1)
    assert "at most 1 tokens" in refused(store)
    on(store, base, data, measures=few, max_new_tokens=2)
    on(store, base, data, measures=few, max_new_tokens=1)
    assert lengths(store) == [1, 2, 1], "the last one is told again, and is the newest"
    on(store, base, data, measures=few, max_new_tokens=1)
    assert lengths(store) == [1, 2, 1], "the same again is nothing new"


def lengths(store: Store) -> list[int]:
    """Of the answers of each evaluation, oldest first."""
    told = store.attestations(store.resolve("one").digest)
    return [one.body["settings"]["max_new_tokens"] for one in told if one.type == "eval"]


def copied(base: Path, folder: Path) -> Path:
    shutil.copytree(base, folder)
    return folder


def test_a_base_that_computes_otherwise_is_no_evidence_and_no_memory(
    gated: Callable[[str], Store], base: Path, data: Path, tmp_path: Path
) -> None:
    store = gated("at_most = 1e9")
    other = copied(base, tmp_path / "configured")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1000.0}))
    elsewhere = loss_of(on(store, other, data))
    assert "configured otherwise" in refused(store)
    assert loss_of(on(store, base, data)) != pytest.approx(elsewhere, rel=1e-3)
    assert store.tag(store.resolve("one"), PROD)


def test_another_chat_template_is_no_evidence(
    gated: Callable[[str], Store], base: Path, data: Path, tmp_path: Path
) -> None:
    store = gated("at_most = 1e9")
    other = copied(base, tmp_path / "worded")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|im_end|>'", "'!!!<|im_end|>'"))
    on(store, other, data)
    assert "another chat template" in refused(store)


def test_parts_of_another_column_are_no_evidence(
    gated: Callable[[str], Store], base: Path, data: Path
) -> None:
    rows = json.loads(data.read_text())
    for place, row in enumerate(rows):
        row |= {"language": "eu" if place % 2 else "us", "easy": "eu" if place < 5 else "us"}
    data.write_text(json.dumps(rows))
    store = gated('by = "language"\npart = "eu"\nat_most = 1e9')
    on(store, base, data, by="easy")
    assert "--by language" in refused(store)
    on(store, base, data, by="language")
    assert store.tag(store.resolve("one"), PROD)


def test_a_part_of_data_needs_its_column(gated: Callable[[str], Store]) -> None:
    with pytest.raises(UsageError, match="not by which column"):
        _ = gated('part = "eu"\nat_most = 1').settings


def test_a_schema_is_known_by_what_it_says(
    gated: Callable[[str], Store], base: Path, data: Path, tmp_path: Path
) -> None:
    store = gated('measure = "schema=s.json"\nat_least = 0\nmax_new_tokens = 2')
    (store.home / "s.json").write_text('{"type": "object"}')
    (tmp_path / "s.json").write_text("{}")
    easy = parse_measure(f"schema={tmp_path / 's.json'}")
    strict = parse_measure(f"schema={store.home / 's.json'}")
    on(store, base, data, measures=[easy], max_new_tokens=2)
    assert "another schema" in refused(store)
    on(store, base, data, measures=[strict], max_new_tokens=2)
    assert store.tag(store.resolve("one"), PROD)
    with pytest.raises(UsageError, match=r"Two measures are called schema=s.json"):
        on(store, base, data, measures=[easy, strict])


def test_a_fresh_evaluation_takes_the_place_of_what_was_kept(
    gated: Callable[[str], Store], base: Path, data: Path
) -> None:
    from adapterhub.store.catalogue.cachefile import default_folder

    store = gated("at_most = 1e9")
    truth = loss_of(on(store, base, data))
    for file in (default_folder() / "evaluations").iterdir():
        file.write_text(json.dumps({"scores": [[place, 1.0, 1] for place in range(30)]}))
    assert loss_of(on(store, base, data)) != pytest.approx(truth)
    assert loss_of(on(store, base, data, cached=False)) == pytest.approx(truth)
    assert loss_of(on(store, base, data)) == pytest.approx(truth)


def test_a_model_that_diverged_can_be_told(store: Store, add: Add, base: Path, data: Path) -> None:
    add("one")
    rows = evaluate(store, ["base", "one"], base=str(base), data=data, attest=False)
    reference = EvalRow("base", "base", None, 900.0, math.inf, 1, 1, None, 0.0)
    body = body_of(rows[1], [reference, rows[1]], {}, None)
    assert body["result"]["base_perplexity"] is None
    assert canonical_bytes(body)
