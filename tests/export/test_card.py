"""The exported model's card: what the Hub reads of it, and that foreign words stay words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.repocard import metadata_load

from adapterhub.export.card import CARD_NAME, model_card

RECORD: dict[str, Any] = {
    "base": {"repo": "org/base", "revision": "a" * 40, "fingerprint": "sha256:" + "f" * 64},
    "adapters": [{"name": "support/tone", "digest": "sha256:" + "1" * 64}],
    "recipe": {"method": "linear"},
    "allowed_mismatch": [],
    "engine": {"adapterhub": "0.1.0", "torch": "2.13.0"},
}


def metadata(text: str, folder: Path) -> dict[str, Any]:
    """As huggingface_hub reads it."""
    (folder / "card.md").write_text(text)
    return dict(metadata_load(folder / "card.md") or {})


def test_the_hub_learns_the_base_and_that_it_was_merged(tmp_path: Path) -> None:
    card = model_card(RECORD, tmp_path)
    found = metadata(card, tmp_path)
    assert found["base_model"] == "org/base"
    assert found["base_model_relation"] == "merge"
    assert found["library_name"] == "transformers"
    assert "| support/tone | `111111111111` |" in card
    assert f"revision `{'a' * 40}`" in card


def test_what_was_done_is_named(tmp_path: Path) -> None:
    two = [{"name": name, "digest": "sha256:1"} for name in ("a", "b")]
    recipe = {"steps": [{"method": "ties"}, {"method": "linear"}]}
    card = model_card(
        {**RECORD, "adapters": two, "recipe": recipe, "quantize": {"method": "nf4"}}, tmp_path
    )
    assert "merged (ties, then linear)" in card
    assert "in 4 bits (nf4)" in card
    assert "4 bits" not in model_card(RECORD, tmp_path)


def test_a_base_without_a_name_is_not_claimed(tmp_path: Path) -> None:
    record = {**RECORD, "base": {"repo": None, "revision": None, "fingerprint": "sha256:f"}}
    found = metadata(model_card(record, tmp_path), tmp_path)
    assert "base_model" not in found
    assert "base_model_relation" not in found


def test_the_license_is_the_bases(tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_text(
        "---\nlicense: llama3.1\nlanguage: [en, de]\nbase_model: some/other\nmodel-index: [{a: 1}]\n---\nwords"
    )
    found = metadata(model_card(RECORD, tmp_path), tmp_path)
    assert found["license"] == "llama3.1"
    assert found["language"] == ["en", "de"]
    assert found["base_model"] == "org/base"
    assert "model-index" not in found


@pytest.mark.parametrize(
    "text",
    [b"---\n\xff\n---", b"---\n[1, 2]\n---", b"---\na: [\n---", b"", b"---\nlicense: {a: 1}\n---", b"---\n? [[[\n---\n"],
)  # fmt: skip
def test_a_card_of_the_base_that_makes_no_sense_is_left_aside(text: bytes, tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_bytes(text)
    assert "license" not in metadata(model_card(RECORD, tmp_path), tmp_path)


def test_what_was_allowed_is_told_and_foreign_words_stay_words(tmp_path: Path) -> None:
    record = {
        **RECORD,
        "base": {**RECORD["base"], "repo": "org/a`b\n---\nlicense: mine\n<script>\x1b[31m"},
        "adapters": [{"name": "mo|del\n# more", "digest": "sha256:1"}],
        "allowed_mismatch": ["the fingerprint differs"],
    }
    card = model_card(record, tmp_path)
    assert "- the fingerprint differs" in card
    assert "license" not in metadata(card, tmp_path)
    assert "<script>" not in card.partition("\n---\n")[2]
    assert "\x1b" not in card
    assert card.count("\n# ") == 1
