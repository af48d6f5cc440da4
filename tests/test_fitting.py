"""`fit` and `serve` come to one verdict, because it is one function; `fit` says it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapterhub.chat_template import digest_of_template, template_in
from adapterhub.serve.preflight import check
from adapterhub.store import Store
from tests.cli.calling import call
from tests.support.adapters import QV, AdapterMaker, random_factors
from tests.support.chat import CHATML
from tests.support.models import ModelMaker

SILENT = {name: (np.zeros_like(b), a) for name, (b, a) in random_factors(QV).items()}
BROKEN = {name: (b * np.nan, a) for name, (b, a) in random_factors(QV).items()}
DEEP = random_factors({"model.layers.9.self_attn.q_proj": (64, 64)})


@pytest.fixture
def add(
    store: Store, make_adapter: AdapterMaker, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """add(**fields of make_adapter): an adapter called tone, in a store that lets in what it was once let in."""

    def put(**fields: Any) -> str:
        monkeypatch.setattr(
            "adapterhub.store.adding.scan_values", lambda *_: (f"sha256:{'0' * 64}", [])
        )
        return store.add_folder(make_adapter(**{"base": None, **fields}), name="tone").digest

    return put


@pytest.mark.parametrize(
    ("fields", "fits", "said"),
    [
        ({}, True, ""),
        ({"factors": SILENT}, True, "changes nothing"),
        ({"alpha": 0}, True, "alpha is 0"),
        ({"factors": BROKEN}, False, "NaN"),
        ({"factors": DEEP}, False, "1 of 1 modules are not in"),
    ],
)
def test_fit_and_serve_say_the_same_of_an_adapter_and_a_base(
    store: Store,
    add: Callable[..., str],
    tiny_llama: Path,
    fields: dict[str, Any],
    fits: bool,
    said: str,
) -> None:
    add(**fields)
    told = call("fit", "tone", "--base", tiny_llama, "--json")
    served = check(store, store.resolve("tone"), "tone", store.bases.open(str(tiny_llama)))
    assert told.json["fits"] is fits is (not served.problems)
    assert told.code == (0 if fits else 5)
    assert said in " ".join((*told.json["reasons"], *told.json["remarks"]))
    assert said in " ".join((*(problem.text for problem in served.problems), *served.remarks))
    assert (told.json["kind"], told.json["rank"]) == ("lora", served.rank)
    assert bool(told.json["reasons"]) is not fits


def test_fit_says_whether_the_template_is_the_one_it_was_trained_with(
    store: Store, add: Callable[..., str], tiny: ModelMaker
) -> None:
    digest, base = add(), tiny.llama()

    def found() -> dict[str, Any]:
        document: dict[str, Any] = call("fit", "tone", "--base", base, "--json").json
        return document

    assert found()["template"] == "unknown"
    store.attest(digest, "template", {"digest": digest_of_template(template_in(base))})
    assert found()["template"] == "equal"
    store.attest(digest, "template", {"digest": digest_of_template(CHATML)})
    assert found()["template"] == "different"
    assert found()["fits"]
    assert "trained with the chat template" in found()["remarks"][-1]


def test_a_model_it_was_exported_into_does_not_fit_and_says_that_it_has_it(
    store: Store, make_adapter: AdapterMaker, tiny_llama: Path, tmp_path: Path
) -> None:
    store.add_folder(make_adapter(), name="tone", base=str(tiny_llama), allow_mismatch=True)
    baked = tmp_path / "baked"
    words = ("--base", tiny_llama, "--allow-mismatch", "--no-verify")
    assert call("export", "tone", *words, "-o", baked).code == 0
    told = call("fit", "tone", "--base", baked, "--json")
    assert "exported with this adapter in its weights" in " ".join(
        (*told.json["reasons"], *told.json["remarks"])
    )
