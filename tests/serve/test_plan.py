"""What is served under which names, and the numbers vLLM is told beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.errors import IncompatibleError, NotFoundError, UnsupportedError
from adapterhub.serve.plan import Places, Plan, make_plan
from adapterhub.store import Store
from adapterhub.words import short
from tests.support.adapters import AdapterMaker
from tests.support.models import ModelMaker

Add = Callable[..., str]


def test_every_adapter_is_served_under_its_name_and_under_its_digest(
    store: Store, add: Add
) -> None:
    tone, terms = add("support/tone"), add("terms", seed=1)
    plan = make_plan(store, ["support/tone", "terms"])
    assert plan.names == (
        "org/tiny",
        "support/tone",
        f"support/tone@{short(tone)}",
        "terms",
        f"terms@{short(terms)}",
    )
    assert store.resolve(plan.names[2]).digest == tone


def test_two_names_of_one_digest_are_both_served(store: Store, add: Add) -> None:
    digest = add("tone")
    assert add("voice") == digest
    plan = make_plan(store, ["tone", "voice"])
    assert set(plan.modules) == {"tone", f"tone@{short(digest)}", "voice", f"voice@{short(digest)}"}
    assert set(plan.modules.values()) == {store.view(digest)}


def test_tags_of_one_digest_share_its_version_and_repeated_names_count_once(
    store: Store, add: Add
) -> None:
    digest = add("tone")
    add("tone:v2")
    plan = make_plan(store, ["tone", "tone:v2", "tone"])
    assert list(plan.modules) == ["tone", f"tone@{short(digest)}", "tone:v2"]
    assert plan.loaded == 2
    assert replace(plan, direct=True).max_loras == 4


def test_a_digest_pointer_is_served_as_that_version_alone(store: Store, add: Add) -> None:
    digest = add("tone")
    assert list(make_plan(store, [f"@{short(digest, 8)}"]).modules) == [f"@{short(digest)}"]
    assert list(make_plan(store, [f"tone@{short(digest, 8)}"]).modules) == [f"tone@{short(digest)}"]


def test_a_name_that_moves_is_served_from_another_folder_and_the_old_one_stays(
    store: Store, add: Add, make_adapter: AdapterMaker
) -> None:
    add("tone")
    before = make_plan(store, ["tone"]).modules["tone"]
    store.add_folder(make_adapter("newer", seed=9), name="tone", move=True)
    after = make_plan(store, ["tone"]).modules["tone"]
    assert before != after
    assert (before / "adapter_model.safetensors").is_file()


def test_max_lora_rank_is_the_smallest_allowed_one_that_holds_all(store: Store, add: Add) -> None:
    add("tone", rank=1)
    plan = make_plan(store, ["tone"])
    (adapter,) = plan.adapters
    for rank, expected in ((1, 1), (2, 8), (8, 8), (9, 16), (64, 64), (65, 128), (512, 512)):
        larger = replace(plan, adapters=(adapter, replace(adapter, rank=rank)))
        assert larger.max_lora_rank == expected


def test_a_rank_in_a_pattern_counts_and_so_does_the_default_that_no_module_has(
    store: Store, add: Add
) -> None:
    add("patterned", rank=4, rank_pattern={"v_proj": 20})
    assert make_plan(store, ["patterned"]).max_lora_rank == 32
    add("unused", rank=100, rank_pattern={"q_proj": 4, "v_proj": 4})
    assert make_plan(store, ["unused"]).max_lora_rank == 128  # vLLM refuses by the declared rank


def test_directly_one_slot_more_than_served_names_stays_empty(store: Store, add: Add) -> None:
    add("a")
    add("b", seed=1)
    plan = make_plan(store, ["a", "b"], direct=True)
    assert len(plan.modules) == 4
    assert plan.max_loras == plan.max_cpu_loras == 5


def test_behind_the_door_there_is_room_for_a_swap_and_for_the_zeros(store: Store, add: Add) -> None:
    for number in range(20):
        add(f"a{number:02}", seed=number)
    few = make_plan(store, ["a00", "a01"])
    assert (few.loaded, few.max_loras, few.max_cpu_loras) == (3, 3, 5)
    many = make_plan(store, [], everything=True)
    assert len(many.adapters) == 20
    assert (many.loaded, many.max_loras, many.max_cpu_loras) == (16, 8, 18)
    said = make_plan(store, ["a*"], places=Places(loaded=4, batch=2, rank=100))
    assert (said.loaded, said.max_loras, said.max_cpu_loras, said.max_lora_rank) == (4, 2, 6, 128)


def test_of_what_a_pattern_matches_the_unfit_are_left_out_but_not_what_is_named(
    store: Store, add: Add, make_adapter: AdapterMaker
) -> None:
    add("support/tone")
    add("support/long", rank=600)
    add("other")
    plan = make_plan(store, ["support/*"])
    assert [adapter.label for adapter in plan.adapters] == ["support/tone"]
    (left_out,) = plan.skipped
    assert left_out.startswith("support/long: it has rank 600")
    with pytest.raises(UnsupportedError, match="support/long can't be served"):
        make_plan(store, ["support/*", "support/long"])
    with pytest.raises(NotFoundError, match="No adapter matches"):
        make_plan(store, ["nothing/*"])


def test_the_base_keeps_out_of_an_adapters_name(store: Store, add: Add, base: Path) -> None:
    add(base.name)
    plan = make_plan(store, [base.name], base=str(base))
    assert plan.base_name == "org/tiny"
    store.bases.remember(store.bases.open(str(base)))
    (record,) = store.bases.records()
    assert record["repo"] == "org/tiny"


def test_a_base_folder_named_like_an_adapter_is_served_under_its_path(
    store: Store, tiny_llama: Path, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("twin", base=None), name=tiny_llama.name)
    plan = make_plan(store, [tiny_llama.name], base=str(tiny_llama))
    assert plan.base_name == str(tiny_llama.resolve())


def test_unknown_names_are_reported_together_each_with_what_it_may_mean(
    store: Store, add: Add
) -> None:
    add("support/tone")
    with pytest.raises(NotFoundError, match="2 of 3") as caught:
        make_plan(store, ["support/tone", "suport/tone", "nowhere"])
    assert "Did you mean support/tone?" in caught.value.why
    assert "nowhere" in caught.value.why


def test_without_base_the_adapters_own_is_found(store: Store, add: Add, base: Path) -> None:
    add("tone")
    assert make_plan(store, ["tone"]).base.path == base.resolve()


def test_one_adapter_that_knows_its_base_finds_it_for_the_others(
    store: Store, add: Add, base: Path
) -> None:
    add("silent", base=None)
    add("tone", seed=1)
    assert make_plan(store, ["silent", "tone"]).base.path == base.resolve()


def test_a_base_that_is_not_on_this_machine_is_said_so(
    store: Store, make_adapter: AdapterMaker
) -> None:
    store.add_folder(make_adapter("tone", base="org/elsewhere"), name="tone")
    with pytest.raises(NotFoundError, match="org/elsewhere"):
        make_plan(store, ["tone"])


def test_adapters_of_different_bases_are_refused_naming_the_difference(
    store: Store, add: Add
) -> None:
    add("tone")
    add("other", base="org/other")
    with pytest.raises(IncompatibleError, match="different base models") as caught:
        make_plan(store, ["tone", "other"])
    assert "org/tiny" in caught.value.why
    assert "org/other" in caught.value.why
    plan = make_plan(store, ["tone", "other"], allow_mismatch=True)
    assert all("org/other" in adapter.overridden[0] for adapter in plan.adapters)


def test_a_base_of_the_same_shape_and_other_weights_is_refused_unless_allowed(
    store: Store, make_adapter: AdapterMaker, tiny: ModelMaker
) -> None:
    right, wrong = tiny.llama(), tiny.llama(seed=7)
    store.add_folder(make_adapter("tone", base=None), name="tone", base=str(right))
    with pytest.raises(IncompatibleError, match="tone can't be served") as caught:
        make_plan(store, ["tone"], base=str(wrong))
    assert "fingerprint" in caught.value.why
    plan = make_plan(store, ["tone"], base=str(wrong), allow_mismatch=True)
    assert "fingerprint" in plan.adapters[0].overridden[0]
    assert plan.adapters[0].fingerprint == "different"


@pytest.mark.parametrize(
    ("host", "url", "local"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000", True),
        ("localhost", "http://localhost:8000", True),
        ("::1", "http://[::1]:8000", True),
        ("0.0.0.0", "http://127.0.0.1:8000", False),
        ("::", "http://[::1]:8000", False),
        ("10.0.0.7", "http://10.0.0.7:8000", False),
    ],
)
def test_the_url_is_one_that_this_machine_can_reach(
    store: Store, add: Add, host: str, url: str, local: bool
) -> None:
    add("tone")
    plan = make_plan(store, ["tone"], host=host)
    assert (plan.url, plan.local) == (url, local)


def test_the_table_lists_the_base_and_every_adapter(store: Store, add: Add) -> None:
    digest = add("tone", rank=4)
    plan: Plan = make_plan(store, ["tone"])
    first, second = plan.rows()
    assert (first["name"], first["kind"]) == ("org/tiny", "base")
    assert second == {
        "name": "tone",
        "version": f"tone@{short(digest)}",
        "kind": "adapter",
        "rank": 4,
        "modules": "4/4",
        "base weights": "unknown",
    }
