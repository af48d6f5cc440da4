"""What an evaluation says of rows that the adapter was trained on: told, attested, and taken by no gate."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.data import read_rows
from adapterhub.data.split import split_rows
from adapterhub.errors import GateError
from adapterhub.evaluate import evaluate
from adapterhub.evaluated import evaluation_of
from adapterhub.names import parse_name
from adapterhub.store import Store
from tests.cli.calling import call

if TYPE_CHECKING:
    from tests.trainer.conftest import Training

PROD = parse_name("tiny:prod")


def test_rows_it_was_trained_on_are_told_and_open_no_gate(
    store: Store, train_tiny: Training, document: dict[str, Any], tmp_path: Path
) -> None:
    train_tiny(name="tiny")
    train_tiny(name="later", start_from="tiny", data={**document["data"], "split_seed": 5})
    data, base = tmp_path / "data.json", str(document["base"])
    rows = read_rows(data)
    share = document["data"].get("held_out", 0.1)
    learned = {row.digest for row in split_rows(rows, share, seed=0).train}
    asked = {row.digest for row in split_rows(rows, 0.5, seed=3).held_out}
    both = len(learned & asked)
    assert 0 < both < len(asked)

    def told(*names: str, **how: Any) -> list[int]:
        table = evaluate(store, ["base", *names], base=base, data=data, **how)
        assert all(asdict(row)["trained_on"] == row.trained_on for row in table)
        return [row.trained_on for row in table]

    assert told("tiny", held_out=share) == [0, 0], "the split of its recipe"
    other = {"held_out": 0.5, "split_seed": 3}
    assert told("tiny", **other) == [0, both]
    later = {row.digest for row in split_rows(rows, share, seed=5).train} | learned
    assert told("later", **other) == [0, len(later & asked)], "what it went on from, too"
    assert told("tiny", split="all", held_out=0.0) == [0, len(learned)]

    found = evaluation_of(store.attestations(store.resolve("tiny").digest)[-1])
    assert found is not None
    assert found.place.endswith(f", {len(learned)} of them trained on")
    digest = str(found.data)
    (store.home / "config.toml").write_text(
        f'[[gates]]\n[[gates.demands]]\ndata = "{digest}"\nat_most = 1e9\nheld_out = 0.5\nsplit_seed = 3\n'
    )
    strict = Store.open(store.home)
    with pytest.raises(GateError) as caught:
        strict.tag(strict.resolve("tiny"), PROD)
    assert f"{len(learned)} of its rows were trained on" in caught.value.why
    (store.home / "config.toml").write_text(
        f'[[gates]]\n[[gates.demands]]\ndata = "{digest}"\nat_most = 1e9\nheld_out = {share}\n'
    )
    strict = Store.open(store.home)
    assert strict.tag(strict.resolve("tiny"), PROD)

    said = call("eval", "base", "tiny", "--data", data, "--split", "all")
    assert said.code == 0, said.err
    assert f"tiny was trained on {len(learned)} of the {len(rows)} rows" in said.err


def test_a_merge_was_trained_on_what_its_parents_were(
    store: Store, train_tiny: Training, document: dict[str, Any], tmp_path: Path
) -> None:
    train_tiny(name="tiny")
    train_tiny(name="other", seed=7)
    assert call("merge", "tiny", "other", "--name", "both").code == 0
    data = tmp_path / "data.json"
    rows = evaluate(
        store, ["both"], base=str(document["base"]), data=data, split="all", held_out=0.0
    )
    assert rows[0].trained_on > 0

    elsewhere = tmp_path / "more.json"
    text = data.read_text()
    assert text.startswith("["), "one JSON array"
    elsewhere.write_text(text.replace("[", '[{"instruction": "New?", "output": "Yes."},', 1))
    rows = evaluate(
        store, ["both"], base=str(document["base"]), data=elsewhere, split="all", held_out=0.0
    )
    assert rows[0].trained_on == 0, "another file: nothing is known of it"
