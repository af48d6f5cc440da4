"""Finding adapters: every filter, against what the slow way says; kinship, twins, and one base under many names."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from adapterhub.base import BaseModel, read_base
from adapterhub.errors import NotFoundError, UsageError
from adapterhub.names import parse_name
from adapterhub.store import Store
from adapterhub.store.catalogue.belonging import wanted_base
from adapterhub.store.catalogue.catalogue import Catalogue
from adapterhub.store.catalogue.indexing import silently
from adapterhub.store.catalogue.search import Found, Query, parse_ranks, search
from adapterhub.store.catalogue.shapes import fill_shapes
from adapterhub.store.catalogue.use import in_use
from tests.store.catalogued import merged
from tests.support.adapters import EMBEDDING, HEAD, AdapterMaker, llama_modules
from tests.support.models import ModelMaker

SHARED = Path(os.environ.get("ADAPTERHUB_SHARED", Path(__file__).parents[2].parent / "shared"))
DAY = 86400.0


def find(store: Store, **query: Any) -> list[Found]:
    """The rows that match, with all shapes read."""

    def question(db: sqlite3.Connection) -> list[Found]:
        fill_shapes(db, store.layout, silently)
        base = query.get("base")
        given = {**query, "base": wanted_base(db, store.bases, base)} if base else query
        return search(db, Query(**given), {})

    return Catalogue(store.layout).ask(question)


def names(store: Store, **query: Any) -> list[str]:
    return [row.name for row in find(store, **query)]


# Text


@pytest.fixture
def library(store: Store, make_adapter: AdapterMaker) -> Store:
    """Three adapters that differ in everything that can be searched."""
    card = make_adapter("a", seed=1, base="google/gemma-3-270m-it")
    (card / "README.md").write_text("---\nlicense: cc-by-4.0\n---\nSpeaks très politely.")
    store.add_folder(card, name="support/tone")
    plain = make_adapter("b", seed=2, rank=8, modules=llama_modules("up_proj"), base="/models/x y")
    digest = store.add_folder(plain, name="support/tone-v2").digest
    store.attest(digest, "note", {"text": "for the Osaka office"})
    both = make_adapter("c", seed=3, rank=32, modules=llama_modules(), base=None)
    store.add_folder(both, name="mixed", provenance=merged(digest))
    return store


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["mixed", "support/tone", "support/tone-v2"]),
        ("tone", ["support/tone", "support/tone-v2"]),
        ("TONE-V", ["support/tone-v2"]),
        ("ort/to", ["support/tone", "support/tone-v2"]),
        ("polite", ["support/tone"]),
        ("tres pol", ["support/tone"]),
        ("osa", ["support/tone-v2"]),
        ("up_proj", ["mixed", "support/tone-v2"]),
        ("gemma-3-270", ["support/tone"]),
        ("models/x", ["support/tone-v2"]),
        ("ties", ["mixed"]),
        ("support osaka", ["support/tone-v2"]),
        ("nothing-of-this", []),
    ],
)
def test_text_is_looked_for_in_names_and_everywhere_else(
    text: str, expected: list[str], library: Store
) -> None:
    assert names(library, text=text) == expected


@given(text=st.text(max_size=30) | st.text("\"*():^-+{}~ANDORNEAR'\0\\ ", max_size=20))
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_text_is_a_syntax_error(text: str, library: Store) -> None:
    catalogue = Catalogue(library.layout)
    found = catalogue.ask(lambda db: search(db, Query(text=text), {}))
    assert catalogue.file.path.exists()
    plain = text.replace("\0", " ").strip()
    if plain and not any(map(str.isalnum, plain)):
        assert [row.name for row in found] == [
            name for name in ("mixed", "support/tone", "support/tone-v2") if plain in name
        ]


# Filters


def test_filters_hold_together(library: Store) -> None:
    assert names(library, targets=("q_proj",)) == ["mixed", "support/tone"]
    assert names(library, targets=("q_proj", "up_proj")) == ["mixed"]
    assert names(library, targets=("proj",)) == []
    assert names(library, ranks=parse_ranks("8..32")) == ["mixed", "support/tone-v2"]
    assert names(library, ranks=parse_ranks(">8")) == ["mixed"]
    assert names(library, method="TIES") == ["mixed"]
    assert names(library, method="imported") == ["support/tone", "support/tone-v2"]
    assert names(library, kind="lora", text="tone", ranks=(0, 4)) == ["support/tone"]
    assert names(library, kind="dora") == []
    parent = library.resolve("support/tone-v2").digest
    assert names(library, parent=parent) == ["mixed"]
    assert names(library, parent=library.resolve("mixed").digest) == []
    assert find(library, text="polite")[0].license == "cc-by-4.0"


def test_order(library: Store) -> None:
    os.utime(library.layout.ref(parse_name("support/tone")), (1e9, 1e9))
    assert names(library, reverse=True) == ["support/tone-v2", "support/tone", "mixed"]
    assert names(library, sort="rank") == ["support/tone", "support/tone-v2", "mixed"]
    assert names(library, sort="rank", reverse=True) == ["mixed", "support/tone-v2", "support/tone"]
    assert names(library, sort="base")[0] == "support/tone", "what has no base comes last"
    sizes = [row.size for row in find(library, sort="size")]
    assert sizes == sorted(sizes)
    assert names(library, sort="added")[0] == "support/tone"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8", (8, 8)), ("8..64", (8, 64)), ("..64", (0, 64)), (">=16", (16, None)), ("> 16", (17, None)),
        ("<16", (0, 15)), ("<=16", (0, 16)), ("16..", (16, None)),
    ],
)  # fmt: skip
def test_ranks_are_numbers_ranges_and_bounds(text: str, expected: tuple[int, int | None]) -> None:
    low, high = parse_ranks(text)
    assert (low, high if high < 2**60 else None) == expected


@pytest.mark.parametrize("text", ["", "..", "many", "8-64", "-8", "8..64..128", "=8", "8.5"])
def test_what_is_no_rank_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ranks(text)


# Unused


def test_unused_means_that_nothing_was_done_with_it(
    store: Store, make_adapter: AdapterMaker
) -> None:
    digests: dict[str, str] = {}
    for n, name in enumerate(
        ["kept", "served", "exported", "viewed", "evaluated", "parent", "idle"]
    ):
        digests[name] = store.add_folder(make_adapter(name, seed=n), name=name).digest
    later = time.time() + 60 * DAY  # everything above is 60 days ago then
    assert names(store, unused_since=later - 30 * DAY) == sorted(digests)
    assert names(store, unused_since=time.time() - 30 * DAY) == []
    used = time.time() + 50 * DAY
    run = store.runs_dir / "export-1"
    run.mkdir(parents=True)
    (run / "recipe.json").write_text(json.dumps({"adapters": [{"digest": digests["exported"]}]}))
    view = store.view(digests["viewed"])
    for path in (run / "recipe.json", view):
        os.utime(path, (used, used))
    with store.leases.held("serve", [digests["served"]], "at a port"):
        held = in_use(store)
    assert names(store, unused_since=later - 30 * DAY, in_use=held) == [
        "evaluated", "idle", "kept", "parent",
    ]  # fmt: skip
    assert digests["served"] not in in_use(store)


def test_an_evaluation_a_child_and_a_new_name_are_uses(
    store: Store, make_adapter: AdapterMaker
) -> None:
    """Times are compared to the second, so the border is drawn between them."""
    digests = [
        store.add_folder(make_adapter(f"a{n}", seed=n), name=f"a{n}").digest for n in range(4)
    ]
    time.sleep(2.1)
    border = time.time() - 1
    store.attest(digests[0], "eval", {"perplexity": 3})
    child = make_adapter("child", seed=9)
    store.add_folder(child, name="child", provenance=merged(digests[1]))
    store.tag(store.resolve("a2"), parse_name("a2:prod"))
    assert names(store, unused_since=border) == ["a3"]


# Fits


def test_fits_says_what_the_store_says_of_every_adapter_and_base(
    store: Store, tiny: ModelMaker, make_adapter: AdapterMaker, tmp_path: Path
) -> None:
    """Modules, shapes, transposed weights, tied heads, claims, revisions and fingerprints: all of them against all."""
    revision = "a" * 40
    kinds: list[dict[str, Any]] = [
        {"modules": llama_modules("q_proj", "v_proj")},
        {"modules": {**llama_modules(), **EMBEDDING, **HEAD}},
        {"modules": llama_modules("q_proj", layers=range(5))},
        {"modules": {"model.layers.0.self_attn.q_proj": (64, 32)}},
        {"modules": {"transformer.h.0.attn.c_attn": (192, 64)}, "fan_in_fan_out": True},
        {"modules": {"h.0.attn.c_attn": (192, 64)}},
    ]
    claims: list[dict[str, Any]] = [
        {"base": None}, {"base": "org/tiny"}, {"base": "other/tiny"}, {"base": "/a/path"},
        {"base": "org/tiny", "revision": "b" * 40}, {"base": "org/tiny", "revision": revision},
    ]  # fmt: skip
    llama = tiny.llama()
    for n, (kind, claim) in enumerate(itertools.product(kinds, claims)):
        known = str(llama) if n % 2 and n // len(claims) < 2 else None
        store.add_folder(
            make_adapter(f"a{n}", seed=n, **kind, **claim),
            name=f"a{n}",
            base=known,
            allow_mismatch=True,
        )
    copy = tmp_path / "copy"
    shutil.copytree(llama, copy)
    bases = [
        read_base(llama),
        read_base(llama, repo="org/tiny", revision=revision),
        read_base(copy, repo="ORG/TINY", revision="b" * 40),
        read_base(tiny.llama(tied=True), repo="other/tiny"),
        read_base(tiny.llama(seed=1), repo="org/tiny"),
        read_base(tiny.gpt2(), repo="gpt2"),
    ]
    outcomes = set()
    for base in bases:
        expected = {
            str(entry.name): f"fingerprint {verdict.fingerprint}"
            for entry in store.entries()
            if (verdict := store.fit(store.resolve(str(entry.name)), base)).ok
        }
        assert {row.name: row.note for row in find(store, fits=base)} == expected
        outcomes.add(frozenset(expected.items()))
    assert len(outcomes) >= 4, "the bases must differ in what fits them"


def test_adapters_whose_weights_are_gone_are_named_and_fit_nothing(
    store: Store, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    for n in range(2):
        store.add_folder(make_adapter(f"a{n}", seed=n), name=f"a{n}")
    entry = store.resolve("a0").manifest.file("adapter_model.safetensors")
    assert entry
    path = store.layout.blob(entry.digest)
    data = path.read_bytes()
    path.unlink()
    catalogue = Catalogue(store.layout)
    (problem,) = catalogue.ask(lambda db: fill_shapes(db, store.layout, silently))
    assert str(path) in problem.why
    base = read_base(tiny_llama)
    assert names(store, fits=base) == ["a1"]
    path.write_bytes(data)
    assert names(store, fits=base) == ["a0", "a1"]


# One base under many names


SPELLINGS = {
    "hub": "google/gemma-3-270m-it",
    "path": "./gemma-3-270m-it",
    "deep": "/content/work/google/gemma-3-270m-it/",
    "bare": "gemma3-270m",
    "shout": "Gemma_3_270M_IT",
    "other": "google/gemma-2-2b",
    "empty": None,
}


def test_the_spellings_of_one_base_are_candidates_once_its_weights_are_known(
    store: Store, gemma: Path, make_adapter: AdapterMaker
) -> None:
    for n, (name, base) in enumerate(SPELLINGS.items()):
        store.add_folder(make_adapter(name, seed=n, base=base), name=name)
    wrong = make_adapter(
        "wrong", modules={"model.layers.0.self_attn.q_proj": (64, 32)}, base="gemma3-270m"
    )
    store.add_folder(wrong, name="wrong-shapes")
    store.bases.remember(read_base(gemma))
    assert names(store, base=str(gemma)) == [], "nothing says yet what these weights are called"
    # One of them is checked against the weights, and so says how their name is spelled.
    store.add_folder(make_adapter.root / "hub", name="hub", base=str(gemma))
    notes = {row.name: row.note for row in find(store, base=str(gemma))}
    assert notes == {
        "hub": "equal", "path": "candidate", "deep": "candidate", "bare": "candidate", "shout": "candidate",
    }  # fmt: skip
    assert names(store, base="google/gemma-3-270m-it") == ["hub"], "the name alone, in other words"


def test_a_repository_is_found_by_claim_by_fingerprint_and_without_regard_to_case(
    store: Store, gemma: Path, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    other = tiny.llama(seed=1)
    store.bases.remember(read_base(gemma, repo="google/gemma-3-270m-it"))
    for n, (name, claim, base) in enumerate(
        [
            ("checked", "./somewhere", gemma),
            ("claims", "Google/Gemma-3-270m-it", None),
            ("elsewhere", "google/gemma-3-270m-it", other),
            ("stranger", "org/other", None),
            ("bare", "gemma-3-270m", None),
        ]
    ):
        folder = make_adapter(name, seed=n, base=claim)
        store.add_folder(folder, name=name, base=str(base) if base else None, allow_mismatch=True)
    expected = {
        "checked": "equal", "claims": "claimed", "elsewhere": "other weights", "bare": "candidate",
    }  # fmt: skip
    fingerprint = read_base(gemma).fingerprint
    for text in (
        "google/gemma-3-270m-it",
        "GOOGLE/gemma-3-270M-it",
        fingerprint[7:17],
        fingerprint,
    ):
        assert {row.name: row.note for row in find(store, base=text)} == expected, text
    with pytest.raises(NotFoundError, match="no base"):
        find(store, base="./no-such-folder")
    with pytest.raises(UsageError, match="2 bases"):
        _two_alike(store)


def _two_alike(store: Store) -> None:
    digest = store.resolve("claims").digest
    for end in "12":
        store.attest(digest, "base", {"fingerprint": f"sha256:{'abcdef' + end:0<64}"})
    find(store, base="abcdef")


# People's own adapters


REAL = ("0112LY__logo-gemma-lora", "fanyihan-max__WorkforLLM", "ao-wei__gemma3-270m-svg-lora-partb")


@pytest.mark.skipif(
    not (SHARED / "adapters").is_dir(), reason="the folder with people's adapters isn't here"
)
def test_three_peoples_spellings_of_gemma_are_one_base(store: Store, tmp_path: Path) -> None:
    """The hub's name, a path and a bare name. The base has Gemma 3 270m's shapes and weights of our own."""
    for name in REAL:
        store.add_folder(SHARED / "adapters" / name, name=name)
    base = gemma_like(
        tmp_path / "some-weights", [store.facts(store.resolve(n)).modules for n in REAL]
    )
    store.bases.remember(base)
    assert names(store, base=str(base.path)) == []
    assert set(names(store, fits=base)) == set(REAL)
    folder = SHARED / "adapters" / REAL[0]
    store.add_folder(folder, name=REAL[0], base=str(base.path))
    assert {row.name: row.note for row in find(store, base=str(base.path))} == {
        REAL[0]: "equal", REAL[1]: "candidate", REAL[2]: "candidate",
    }  # fmt: skip


def gemma_like(folder: Path, adapters: list[Any]) -> BaseModel:
    """A base with exactly the modules that the adapters change."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Gemma3ForCausalLM"]}))
    random = np.random.default_rng(0)
    weights = {
        f"{name}.weight": random.integers(-9, 9, (module.out_features, module.in_features), np.int8)
        for modules in adapters
        for name, module in modules.items()
    }
    save_file(weights, folder / "model.safetensors")
    return read_base(folder)


def test_a_row_says_what_the_newest_evaluation_with_a_number_measured(
    store: Store, make_adapter: AdapterMaker
) -> None:
    digest = store.add_folder(make_adapter("tone"), name="tone").digest

    def scored() -> tuple[str | None, float | None]:
        [row] = Catalogue(store.layout).ask(lambda db: search(db, Query(), {}))
        return row.metric, row.score

    assert scored() == (None, None)
    for body in (
        {"metric": "perplexity", "result": {"perplexity": 7.5}},
        {"metric": "accuracy", "result": {"accuracy": 1}},
    ):
        store.attest(digest, "eval", body)
    assert scored() == ("accuracy", 1.0)
    for odd in (
        {"metric": "bake_loss", "result": {"bake_loss": {"total": 1}}},
        {"metric": 3},
        {"result": 1},
    ):
        store.attest(digest, "eval", odd)
    assert scored() == ("accuracy", 1.0), "what has no number of its own says nothing"
