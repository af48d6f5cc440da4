"""`fits` knows what belongs together: modules, shapes, fingerprints, labels. Unknown never disagrees, known different does."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file, save_file

from adapterhub.base import BaseModel, claims_differ, fits, read_base
from adapterhub.errors import IncompatibleError
from adapterhub.manifest import BaseClaim
from tests.support.adapters import EMBEDDING, HEAD, QV, llama_modules

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adapterhub.base import Verdict
    from adapterhub.store import Store
    from tests.support.adapters import AdapterMaker
    from tests.support.models import ModelMaker


def verdict(store: Store, folder: Path, base: BaseModel, name: str = "x") -> Verdict:
    store.add_folder(folder, name=name)
    resolved = store.resolve(name)
    return fits(
        store.facts(resolved),
        base,
        claim=resolved.manifest.base,
        known_fingerprint=store.known_fingerprint(resolved.digest),
    )


def test_an_adapter_of_this_architecture_fits(
    store: Store, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    found = verdict(
        store, make_adapter(modules={**llama_modules(), **EMBEDDING, **HEAD}), read_base(tiny_llama)
    )
    assert found.ok
    assert (found.modules_found, found.modules_total, found.fingerprint) == (16, 16, "unknown")
    assert found.placement["model.layers.1.mlp.up_proj"] == "model.layers.1.mlp.up_proj.weight"


def test_the_head_of_a_tied_model_is_its_embedding(
    store: Store, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    found = verdict(store, make_adapter(modules=HEAD), read_base(tiny.llama(tied=True)))
    assert found.ok
    assert found.placement == {"lm_head": "model.embed_tokens.weight"}


def test_modules_the_base_lacks_are_counted_and_named(
    store: Store, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    found = verdict(
        store, make_adapter(modules=llama_modules("q_proj", layers=range(5))), read_base(tiny_llama)
    )
    assert not found.ok
    assert (found.modules_found, found.modules_total) == (2, 5)
    assert "3 of 5 modules" in found.reasons[0]
    assert "model.layers.2.self_attn.q_proj" in found.reasons[0]


def test_other_shapes_are_named_with_both_sides(
    store: Store, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    modules = {"model.layers.0.self_attn.q_proj": (128, 64)}
    found = verdict(store, make_adapter(modules=modules), read_base(tiny_llama))
    assert not found.ok
    assert "[128, 64]" in found.reasons[0]
    assert "[64, 64]" in found.reasons[0]


def test_equal_shapes_and_other_weights_are_different_once_attested(
    store: Store, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    mine, other = tiny.llama(), tiny.llama(seed=1)
    store.add_folder(make_adapter(), name="x", base=str(mine))
    resolved = store.resolve("x")
    assert store.fit(resolved, read_base(mine)).fingerprint == "equal"
    assert store.fit(resolved, read_base(tiny.llama(sharded=True))).fingerprint == "equal"
    found = store.fit(resolved, read_base(other))
    assert (found.ok, found.fingerprint) == (False, "different")
    assert "fingerprint" in found.reasons[0]
    with pytest.raises(IncompatibleError, match="fingerprint") as caught:
        store.require_fit(resolved, read_base(other))
    assert caught.value.exit_code == 5
    assert not store.require_fit(resolved, read_base(other), allow_mismatch=True).ok


def test_adding_it_again_for_other_weights_is_refused(
    store: Store, tiny: ModelMaker, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter()
    store.add_folder(folder, name="x", base=str(tiny.llama()))
    with pytest.raises(IncompatibleError, match="fingerprint"):
        store.add_folder(folder, name="x", base=str(tiny.llama(seed=1)))
    assert store.known_fingerprint(store.resolve("x").digest) == read_base(tiny.llama()).fingerprint


def test_a_mismatch_allowed_at_the_door_is_attested(
    store: Store, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    folder = make_adapter(modules={"model.layers.7.self_attn.q_proj": (64, 64), **QV})
    with pytest.raises(IncompatibleError, match=r"1 of 5 modules") as caught:
        store.add_folder(folder, name="x", base=str(tiny_llama))
    assert caught.value.exit_code == 5
    assert store.entries() == []
    added = store.add_folder(folder, name="x", base=str(tiny_llama), allow_mismatch=True)
    (body,) = [a.body for a in store.attestations(added.digest) if a.type == "base"]
    assert "layers.7" in body["allowed_mismatch"][0]


def test_equal_weights_fit_whatever_the_labels_say(
    store: Store, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    base = read_base(tiny_llama, repo="org/renamed")
    store.add_folder(make_adapter(base="org/tiny"), name="x", base=str(tiny_llama))
    assert store.fit(store.resolve("x"), base).ok


COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("claim", "repo", "revision", "words"),
    [
        ({"base": "org/one"}, "org/two", None, "repository"),
        ({"base": "org/one", "revision": COMMIT}, "org/one", OTHER, "revision"),
        ({"base": "gpt2"}, "distilgpt2", None, "repository"),
    ],
)
def test_known_different_labels_do_not_fit_where_nothing_better_is_known(
    store: Store,
    tiny_llama: Path,
    make_adapter: AdapterMaker,
    claim: Any,
    repo: str,
    revision: str | None,
    words: str,
) -> None:
    found = verdict(
        store, make_adapter(**claim), read_base(tiny_llama, repo=repo, revision=revision)
    )
    assert not found.ok
    assert words in found.reasons[0]
    assert found.modules_found == found.modules_total


@pytest.mark.parametrize(
    ("claim", "repo", "revision"),
    [
        ({"base": "org/one"}, "ORG/One", None),
        ({"base": "org/one", "revision": COMMIT}, "org/one", COMMIT),
        ({"base": "org/one", "revision": "main"}, "org/one", COMMIT),  # a branch can move: unknown
        ({"base": "org/one"}, "org/one", COMMIT),
        ({"base": "gpt2"}, "openai-community/gpt2", None),
        ({"base": "/home/me/llama"}, "org/one", None),
        ({"base": "./llama"}, "org/one", None),
        ({"base": "C:\\models\\llama"}, "org/one", None),
        ({"base": ""}, "org/one", None),
        ({"base": None}, "org/one", None),
        ({"base": "org/one"}, None, None),
    ],
)
def test_labels_not_known_to_differ_fit(
    store: Store,
    tiny_llama: Path,
    make_adapter: AdapterMaker,
    claim: Any,
    repo: str | None,
    revision: str | None,
) -> None:
    assert verdict(
        store, make_adapter(**claim), read_base(tiny_llama, repo=repo, revision=revision)
    ).ok


def test_unknown_never_disagrees() -> None:
    known, unknown = BaseClaim("org/one", COMMIT), BaseClaim(None, None)
    assert (
        claims_differ(known, unknown)
        == claims_differ(unknown, known)
        == claims_differ(unknown, unknown)
        == []
    )
    assert claims_differ(known, known) == []


def test_the_hub_cache_names_repository_and_revision(tiny_llama: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name--with--dashes" / "snapshots" / COMMIT
    shutil.copytree(tiny_llama, snapshot)
    base = read_base(snapshot)
    assert (base.repo, base.revision) == ("org/name--with--dashes", COMMIT)


# PEFT's own adapters


# PEFT says what it saves beside the factors, what it makes of fan_in_fan_out, and that ties may be in the way.
@pytest.mark.filterwarnings(
    "ignore:Setting `save_embedding_layers`",
    "ignore:fan_in_fan_out is set",
    "ignore:Model has `tie_word_embeddings",
)
def test_peft_adapters_on_a_mixed_conv1d_model_fit(
    store: Store, tiny: ModelMaker, make_peft_adapter: Callable[..., Path]
) -> None:
    # PEFT decides fan_in_fan_out layer by layer and saves what the last layer needed, so the file's flag is right for
    # some modules only: c_attn is a Conv1D, lm_head a Linear.
    base = tiny.gpt2()
    folder = make_peft_adapter(base, "mixed", targets=("c_attn", "lm_head"), r=4)
    strip_saved(folder)
    found = verdict(store, folder, read_base(base))
    assert found.ok, found.reasons


def strip_saved(folder: Path) -> None:
    """Removes the whole weights PEFT saves beside a LoRA on the head."""
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "lora_" in name}, path)
