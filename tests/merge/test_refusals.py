"""What a merge can't honour it refuses by name, and the store is then as it was. Nothing is dropped silently."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from adapterhub.errors import (
    AdapterHubError,
    ConflictError,
    FormatError,
    IncompatibleError,
    StoreDamagedError,
    UnsupportedError,
    UsageError,
)
from adapterhub.merge.recipe import make_recipe
from adapterhub.merge.run import merge
from tests.merge.conftest import Counter, silent
from tests.support.adapters import QV, llama_modules

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from adapterhub.store import Store
    from tests.merge.conftest import Merger

PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"
MORE_THAN_LORA: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": (
        {"use_dora": True, "extra": {f"{PREFIX}.lora_magnitude_vector": torch.ones(64)}},
        "DoRA",
    ),
    "DoRA whose flag was lost": (
        {"extra": {f"{PREFIX}.lora_magnitude_vector": torch.ones(64)}},
        "q_proj.lora_magnitude_vector",
    ),
    "DoRA of an older PEFT": (
        {"use_dora": True, "extra": {f"{PREFIX}.lora_magnitude_vector.weight": torch.ones(64)}},
        "DoRA",
    ),
    "modules_to_save": (
        {"modules_to_save": ["lm_head"], "extra": {"base_model.model.lm_head.weight": torch.ones(160, 64)}},
        "lm_head.weight",
    ),
    "modules_to_save that the configuration doesn't name": (
        {"extra": {"base_model.model.score.modules_to_save.default.weight": torch.ones(2, 64)}},
        "score.weight",
    ),
    "bias": (
        {"bias": "lora_only", "extra": {"base_model.model.model.layers.0.self_attn.q_proj.bias": torch.ones(64)}},
        "q_proj.bias",
    ),
    "bias in PEFT's base_layer": (
        {"bias": "all", "extra": {f"{PREFIX}.base_layer.bias": torch.ones(64)}},
        "bias",
    ),
    "lora_bias": (
        {"lora_bias": True, "extra": {f"{PREFIX}.lora_B.bias": torch.ones(64)}},
        "lora_bias",
    ),
    "AdaLoRA": (
        {"peft_type": "ADALORA", "extra": {f"{PREFIX}.lora_E": torch.ones(4, 1)}},
        "ADALORA",
    ),
    "IA3": (
        {"peft_type": "IA3", "extra": {f"{PREFIX}.ia3_l": torch.ones(64, 1)}},
        "IA3",
    ),
    "a convolution": (
        {
            "extra": {
                "base_model.model.conv.lora_A.weight": torch.ones(4, 3, 3, 3),
                "base_model.model.conv.lora_B.weight": torch.ones(8, 4, 1, 1),
            }
        },
        "conv.lora_A",
    ),
    "trainable tokens": (
        {"trainable_token_indices": [1, 2], "extra": {"base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(2, 64)}},
        "trainable",
    ),
    "PiSSA": ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
    "layer replication": ({"layer_replication": [[0, 2], [1, 2]]}, "layer replication"),
    "aLoRA": ({"alora_invocation_tokens": [5, 6]}, "aLoRA"),
}  # fmt: skip


def state(store: Store) -> dict[str, bytes]:
    """Every file of the store but locks and runs, which record the attempt."""
    found = {}
    for path in sorted(store.home.rglob("*")):
        relative = path.relative_to(store.home).as_posix()
        if path.is_file() and not relative.startswith("runs/") and path.name != "lock":
            found[relative] = path.read_bytes()
    return found


@pytest.mark.parametrize("kind", MORE_THAN_LORA)
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_more_than_a_plain_lora_is_kept_but_not_merged(merger: Merger, kind: str, method: str) -> None:
    settings, named = MORE_THAN_LORA[kind]
    odd = merger.add(merger.adapter(**settings))
    plain = merger.add(merger.adapter(seed=1))
    before = state(merger.store)
    with pytest.raises(UnsupportedError) as caught:
        merger.of([plain, odd], method)
    assert named.lower() in str(caught.value).lower()
    assert odd.label in caught.value.what
    assert state(merger.store) == before


def test_modules_of_one_name_and_other_shapes_are_refused(merger: Merger) -> None:
    other = {module: (out + 8, width) for module, (out, width) in QV.items()}
    with pytest.raises(IncompatibleError, match=r"q_proj.*\[64, 64\].*\[72, 64\]") as caught:
        merger([merger.adapter(), merger.adapter(modules=other)])
    assert caught.value.exit_code == 5


COMMIT, OTHER = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("one", "two", "named"),
    [
        ({"base": "org/one"}, {"base": "org/two"}, ["repository", "org/one", "org/two"]),
        (
            {"base": "org/one", "revision": COMMIT},
            {"base": "org/one", "revision": OTHER},
            ["revision", COMMIT[:12], OTHER[:12]],
        ),
    ],
)
def test_known_different_bases_are_refused_naming_what_differs(
    merger: Merger, one: dict[str, Any], two: dict[str, Any], named: list[str]
) -> None:
    parents = [merger.add(merger.adapter(**one)), merger.add(merger.adapter(seed=1, **two))]
    before = state(merger.store)
    with pytest.raises(IncompatibleError) as caught:
        merger.of(parents)
    assert caught.value.exit_code == 5
    assert all(word in caught.value.why for word in named)
    assert all(parent.label in caught.value.why for parent in parents)
    assert state(merger.store) == before

    merged = merger.of(parents, allow_mismatch=True)
    bodies = [a.body for a in merger.store.attestations(merged.outcome.digest) if a.type == "provenance"]
    assert len(bodies) == 1
    assert all(word in " ".join(bodies[0]["allowed_mismatch"]) for word in named)


def test_a_mismatch_among_three_is_found_wherever_it_is(merger: Merger) -> None:
    bases = ["org/one", None, "org/two"]
    folders = [merger.adapter(seed=seed, base=base) for seed, base in enumerate(bases)]
    with pytest.raises(IncompatibleError, match="org/one and org/two"):
        merger(folders)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"base": "org/one"}, {"base": None}),
        ({"base": None}, {"base": ""}),
        ({"base": "/somebody/else/model"}, {"base": "org/one"}),  # a path says nothing here
        ({"base": "gpt2"}, {"base": "openai-community/gpt2"}),  # a bare name may be an alias
        ({"base": "org/one", "revision": COMMIT}, {"base": "org/one"}),
        ({"base": "org/one", "revision": "main"}, {"base": "org/one", "revision": COMMIT}),
        ({"base": "Org/One"}, {"base": "org/one"}),
    ],
)
def test_what_is_not_known_to_differ_is_merged(merger: Merger, one: dict[str, Any], two: dict[str, Any]) -> None:
    merged = merger([merger.adapter(**one), merger.adapter(seed=1, **two)])
    assert merged.outcome.created
    unknown = [settings for settings in (one, two) if not settings["base"] or settings["base"].startswith("/")]
    assert bool(merged.warnings) == bool(unknown)
    assert all("unknown" in warning for warning in merged.warnings)


@pytest.mark.parametrize(("one", "two"), [("gpt2", "distilgpt2")])
def test_two_bare_names_that_differ_are_refused(merger: Merger, one: str, two: str) -> None:
    with pytest.raises(IncompatibleError, match="repository"):
        merger([merger.adapter(base=one), merger.adapter(seed=1, base=two)])


def test_a_result_that_overflows_its_dtype_is_refused_in_words_about_the_merge(merger: Merger) -> None:
    parents = [merger.add(merger.adapter(dtype="float16", seed=seed, scale=1.0)) for seed in range(2)]
    before = state(merger.store)
    with pytest.raises(FormatError) as caught:
        merger.of(parents, weights=[1e6, 1e6], dtype=None)
    text = str(caught.value)
    assert "checkpoint of that training" not in text, "the parents are sound: the weights are too large"
    assert "float16" in text
    assert state(merger.store) == before


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_parent_that_changed_in_the_store_is_not_merged(merger: Merger, file: str) -> None:
    parent = merger.add(merger.adapter())
    entry = parent.manifest.file(file)
    assert entry is not None
    path = merger.store.blobs.path(entry.digest)
    data = path.read_bytes()
    path.chmod(0o644)
    # Sound, of the same length, and another adapter: alpha 8 becomes 9, or one weight changes its sign.
    changed = data.replace(b'"lora_alpha": 8', b'"lora_alpha": 9') if file.endswith("json") else data[:-1] + bytes([data[-1] ^ 0x80])
    assert changed != data
    assert len(changed) == len(data)
    path.write_bytes(changed)
    with pytest.raises(StoreDamagedError) as caught:
        merger.of([parent])
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": [1.0]},
        {"weights": [1.0, 1.0, 1.0]},
        {"weights": [1.0, float("nan")]},
        {"rank": 0},
        {"rank": "all"},
        {"rank": -3},
        {"rank": 2.5},
        {"dtype": "int8"},
        {"density": 0.5},
    ],
)
def test_a_recipe_that_makes_no_sense_is_a_usage_error(merger: Merger, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        merger([merger.adapter(), merger.adapter(seed=1)], "linear", **wrong)
    assert caught.value.exit_code == 2


def test_an_unknown_method_is_a_usage_error_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="linear"):
        make_recipe("linaer", ["sha256:" + "0" * 64])


def test_a_taken_name_is_refused_and_the_same_merge_again_changes_nothing(merger: Merger) -> None:
    parents = [merger.add(merger.adapter(seed=seed)) for seed in range(2)]
    digests = [parent.digest for parent in parents]

    def run(weights: list[float]) -> Any:
        return merge(merger.store, parents, make_recipe("linear", digests, weights=weights), name="x", progress=silent)

    first = run([1, 1])
    before = state(merger.store)
    again = run([1, 1])
    assert (again.created, again.digest, again.report) == (False, first.digest, first.report)
    with pytest.raises(ConflictError, match="taken"):
        run([1, 2])
    assert state(merger.store) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, AdapterHubError("no", why="no")])
@pytest.mark.parametrize("method", ["linear", "ties"])
def test_an_interrupted_merge_leaves_the_store_as_it_was(
    merger: Merger, method: str, error: BaseException | type[BaseException]
) -> None:
    from contextlib import contextmanager

    class Breaking(Counter):
        def advance(self, amount: float = 1, **_: object) -> None:
            super().advance(amount)
            if self.done == 3:
                raise error

    @contextmanager
    def breaking(_: str, __: float) -> Any:
        yield Breaking()

    parents = [merger.add(merger.adapter(seed=seed, modules=llama_modules())) for seed in range(2)]
    before = state(merger.store)
    recipe = make_recipe(method, [parent.digest for parent in parents])
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else AdapterHubError):
        merge(merger.store, parents, recipe, name="broken", progress=breaking, workers=2)
    assert state(merger.store) == before
    (run,) = merger.store.runs_dir.iterdir()
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert events == ["started", "interrupted" if error is KeyboardInterrupt else "failed"]
    assert not (run / "adapter").exists()


def test_the_result_names_its_recipe_parents_and_cost(merger: Merger) -> None:
    parents = [merger.add(merger.adapter(seed=seed, base="org/one", revision=COMMIT)) for seed in range(2)]
    merged = merger.of(parents, "ties", weights=[1, 2], rank=3, density=0.4)
    (body,) = [a.body for a in merger.store.attestations(merged.outcome.digest) if a.type == "provenance"]
    assert body["event"] == "merged"
    assert body["recipe"]["parents"] == [parent.digest for parent in parents]
    assert body["recipe"]["weights"] == [1.0, 2.0]
    assert body["recipe"]["parameters"] == {"density": 0.4, "lambda": 1.0, "trim_scope": "model"}
    assert body["report"]["energy_kept"] < 1
    assert body["allowed_mismatch"] == []
    base = merged.outcome.manifest.base
    assert (base.repo, base.revision) == ("org/one", COMMIT)


def test_progress_ends_where_it_said_it_would(merger: Merger) -> None:
    from contextlib import contextmanager

    bars: list[tuple[float, Counter]] = []

    @contextmanager
    def watched(_: str, total: float) -> Any:
        bars.append((total, Counter()))
        yield bars[-1][1]

    parents = [merger.add(merger.adapter(seed=seed, modules=llama_modules())) for seed in range(2)]
    digests = [parent.digest for parent in parents]
    for number, (method, parameters) in enumerate(
        [("linear", {}), ("ties", {}), ("ties", {"density": 1.0}), ("ties", {"trim_scope": "module"})]
    ):
        recipe = make_recipe(method, digests, parameters=parameters)
        merge(merger.store, parents, recipe, name=f"p{number}", progress=watched)
    assert [bar.done for _, bar in bars] == [total for total, _ in bars]


def test_the_adapters_peft_made_with_saved_embeddings_are_refused_naming_them(
    merger: Merger, tiny_llama: Path, make_peft_adapter: Callable[..., Path]
) -> None:
    # PEFT saves the base's whole embedding beside a LoRA on it; whether it was trained can't be told without the base.
    with pytest.warns(UserWarning, match="save_embedding_layers"):
        folder = make_peft_adapter(tiny_llama, "embedding", targets=("embed_tokens", "q_proj"), r=4)
    with pytest.raises(UnsupportedError, match="embed_tokens"):
        merger([folder, merger.adapter()])
