"""What a server takes, computed beforehand: against known figures here, against vLLM itself in test_capacity_real."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from adapterhub.formats.safetensors import TensorInfo
from adapterhub.serve.capacity import GIB, Capacity, Demand, capacity, demand_of, weight_bytes
from adapterhub.serve.extra import number, value, values
from adapterhub.serve.kv_cache import token_cost
from adapterhub.serve.lora_layers import slot_width
from adapterhub.serve.memory import Memory, read_gpus, visible
from adapterhub.serve.plan import make_plan
from adapterhub.serve.preflight import Size
from adapterhub.store import Store
from tests.serve.shapes import headers
from tests.support.adapters import AdapterMaker, llama_modules

PAGE = Path(__file__).parents[2] / "docs" / "serving-capacity.md"
MIB = 2**20
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
H100 = Memory("GPU 0, H100", 81559 * MIB, 80994 * MIB, 200 * GIB, gpu=True)
HOST = Memory("host", None, 32 * GIB, 32 * GIB, gpu=False)


def tenants(count: int, rank: int = 16, targets: tuple[str, ...] = ALL_LINEAR) -> list[Size]:
    """So many adapters of Llama-3.1-8B on these linears."""
    width = slot_width(headers(), targets)
    assert width
    return [Size(width.linears * rank, frozenset(targets))] * count


def computed(
    memory: Memory = H100, sizes: list[Size] | None = None, *, base: Any = None, **demand: Any
) -> Capacity:
    wanted = Demand(**{"max_lora_rank": 16, "max_loras": 9, "max_cpu_loras": 102, **demand})
    return capacity(base or headers(), tenants(100) if sizes is None else sizes, wanted, memory)


# A slot


@pytest.mark.parametrize(
    ("rank", "linears", "all_of_it"), [(8, 40, 44.04), (16, 80, 88.08), (64, 320, 352.31)]
)
def test_a_slot_of_llama_8b_is_40_80_320_mib_in_its_linears_and_a_tenth_more_with_both_ends(
    rank: int, linears: int, all_of_it: float
) -> None:
    width = slot_width(headers())
    assert width
    assert width.exact
    assert width.linears * rank * 2 == linears * MIB
    assert width.total * rank * 2 / MIB == pytest.approx(all_of_it, abs=0.005)


def test_a_slot_has_room_for_every_layer_whatever_the_adapters_change_unless_layers_are_chosen() -> (
    None
):
    sizes = tenants(4, targets=("q_proj", "v_proj"))
    everything, chosen = (
        computed(sizes=sizes, extra=extra)
        for extra in ((), ("--lora-target-modules", "q_proj", "v_proj"))
    )
    assert everything.slot == computed(sizes=tenants(4)).slot
    assert everything.slot
    assert chosen.slot
    # q, k and v are one layer of vLLM: any of them brings all three
    assert chosen.slot == 32 * ((4096 + 4096) + 2 * (4096 + 1024)) * 16 * 2
    assert chosen.slot < everything.slot / 4


def test_whether_the_ends_are_in_a_slot_is_for_the_architecture_to_say() -> None:
    llama, cohere, qwen, other = (
        slot_width(headers(architectures=[f"{name}ForCausalLM"]))
        for name in ("Llama", "Cohere", "Qwen2", "Novel")
    )
    assert llama
    assert cohere
    assert qwen
    assert other
    assert (qwen.ends, cohere.ends, llama.ends) == (0, 128256 + 4096, 2 * (128256 + 4096))
    assert other.total == llama.total
    assert not other.exact
    assert "isn't known" in other.why
    tied = slot_width(headers(tie_word_embeddings=True))
    assert tied
    assert tied.ends == llama.ends  # the head has its own A and B, though not its own weight


def test_experts_count_each_and_packed_weights_are_said_to_be_unknown() -> None:
    base = headers()
    path = base.path / "model.safetensors"
    expert = TensorInfo("model.layers.0.mlp.experts.0.w1.weight", "BF16", (100, 50), 0, 10000, path)
    stack = TensorInfo(
        "model.layers.0.mlp.experts.gate_up_proj", "BF16", (8, 50, 200), 0, 160000, path
    )
    plain = slot_width(base)
    assert plain
    for info, more in ((expert, 150), (stack, 8 * 250)):
        found = slot_width(dataclasses.replace(base, tensors={**base.tensors, info.name: info}))
        assert found
        assert found.total == plain.total + more
    packed = TensorInfo("model.layers.0.mlp.up_proj.qweight", "I32", (512, 14336), 0, 1, path)
    quantised = dataclasses.replace(base, tensors={**base.tensors, packed.name: packed})
    assert slot_width(quantised) is None
    judged = computed(base=quantised)
    assert judged.fits is None
    assert "packed" in " ".join(judged.unknown)


# Weights and KV cache


def test_weights_are_counted_in_the_dtype_they_are_served_in_and_a_tied_head_once() -> None:
    assert weight_bytes(headers(), "auto") == 2 * 8_030_261_248
    assert weight_bytes(headers(dtype="F32"), "auto") == 2 * 8_030_261_248
    assert weight_bytes(headers(), "float32") == 4 * 8_030_261_248
    stored_twice = dataclasses.replace(
        headers(), config={**headers().config, "tie_word_embeddings": True}
    )
    assert weight_bytes(stored_twice, "auto") == 2 * (8_030_261_248 - 128256 * 4096)


def test_a_token_of_llama_8b_takes_128_kib_and_what_is_not_computed_is_said() -> None:
    cost = token_cost(headers(), 2)
    assert cost
    assert (cost.bytes, cost.why) == (128 * 1024, "")
    windowed = token_cost(headers(sliding_window=4096), 2)
    assert windowed
    assert windowed.bytes == 128 * 1024
    assert windowed.why
    unused = token_cost(headers(sliding_window=4096, use_sliding_window=False), 2)
    assert unused
    assert not unused.why
    others: list[dict[str, Any]] = [
        {"kv_lora_rank": 512},
        {"layer_types": ["full_attention", "linear_attention"]},
    ]
    for other in others:
        assert token_cost(headers(**other), 2) is None
        assert computed(base=headers(**other)).fits is None


def test_head_size_is_the_stated_one_where_there_is_one() -> None:
    cost = token_cost(headers(head_dim=64), 2)
    assert cost
    assert cost.bytes == 64 * 1024


# Does it fit


def test_a_hundred_tenants_fit_one_gpu_of_80_gb() -> None:
    found = computed()
    assert found.fits
    assert not found.problems
    assert not found.advice
    by_name = {part.what: part.bytes for part in found.parts}
    assert by_name["slots"] == 9 * 92_356_608
    assert by_name["adapters kept loaded"] == 100 * 80 * MIB
    assert by_name["together"] == int(81559 * MIB * 0.92)
    parts = ("weights", "slots", "work space", "KV cache")
    assert sum(by_name[name] or 0 for name in parts) == by_name["together"]
    assert found.tokens
    assert found.tokens > 400_000


def test_a_gpu_in_use_is_said_with_the_share_that_is_free() -> None:
    busy = dataclasses.replace(H100, free=40 * GIB)
    found = computed(busy)
    assert found.fits is False
    assert "92%" in found.problems[0]
    assert found.advice[0].startswith("-- --gpu-memory-utilization 0.50")
    smaller = computed(busy, extra=("--gpu-memory-utilization", "0.5"))
    assert smaller.fits


def test_a_cache_of_a_given_size_is_held_against_what_is_free() -> None:
    assert computed(extra=("--kv-cache-memory-bytes", "20G")).fits
    found = computed(extra=("--kv-cache-memory-bytes=70G",))
    assert found.fits is False
    assert "are free" in found.problems[0]


def test_where_the_longest_request_has_no_room_the_length_that_has_is_named() -> None:
    card = Memory("GPU 0, small", 24564 * MIB, 24200 * MIB, 64 * GIB, gpu=True)
    found = computed(card)
    assert found.fits is False
    assert "131,072 tokens" in found.problems[0]
    (length,) = [
        re.search(r"--max-model-len (\d+)", words)
        for words in found.advice
        if "max-model-len" in words
    ]
    assert length
    assert computed(card, max_model_len=int(length[1])).fits
    assert computed(card, max_model_len=int(length[1]) + 4096).fits is False


def test_narrower_slots_are_advised_where_the_adapters_change_little() -> None:
    card = Memory("GPU 0, small", 24564 * MIB, 24200 * MIB, 64 * GIB, gpu=True)
    sizes = tenants(100, 64, ("q_proj", "v_proj"))
    found = computed(card, sizes, max_lora_rank=64, max_model_len=16384)
    assert found.fits is False
    advice = [words for words in found.advice if "--lora-target-modules q_proj v_proj" in words]
    assert len(advice) == 1
    extra = ("--lora-target-modules", "q_proj", "v_proj")
    assert computed(card, sizes, max_lora_rank=64, max_model_len=16384, extra=extra).fits


def test_on_a_cpu_the_cache_has_the_size_it_is_given_and_everything_is_the_hosts() -> None:
    found = computed(HOST, tenants(3), max_cpu_loras=5, kv_space=GIB, max_model_len=4096)
    assert found.fits
    assert found.tokens == 8192
    too_long = computed(HOST, tenants(3), max_cpu_loras=5, kv_space=GIB)
    assert too_long.fits is False
    assert "VLLM_CPU_KVCACHE_SPACE=17 in the environment (GiB)" in too_long.advice
    small = dataclasses.replace(HOST, free=16 * GIB)
    assert computed(small, tenants(3), kv_space=GIB, max_model_len=4096).fits is False


def test_float32_is_twice_of_everything_and_the_advice_says_what_halves_it() -> None:
    small = dataclasses.replace(HOST, free=30 * GIB)
    found = computed(small, tenants(3), dtype="float32", kv_space=GIB, max_model_len=1024)
    assert found.fits is False
    assert found.advice[0].startswith("--dtype bfloat16")
    assert found.slot == 2 * 92_356_608


def test_what_cannot_be_told_is_neither_yes_nor_no() -> None:
    assert computed(Memory("GPU", None, None, None, gpu=True)).fits is None
    for extra in (("-tp", "2"), ("--quantization", "fp8"), ("--config=x.yaml",)):
        found = computed(extra=extra)
        assert found.fits is None
        assert found.unknown


def test_slots_that_fit_leave_a_cache_for_one_longest_request_and_no_more() -> None:
    found = computed()
    most = found.slots_that_fit(16)
    assert most
    assert computed(max_loras=most, max_cpu_loras=most).fits
    assert computed(max_loras=most + 2, max_cpu_loras=most + 2).fits is False
    halves = found.slots_that_fit(8)
    assert halves in (2 * most, 2 * most + 1)


# What it is told by


def test_arguments_for_vllm_are_read_in_every_way_they_can_be_written() -> None:
    extra = ["--a-b", "x", "y", "--c=8k", "--d_e", "-1", "--c", "1.5K", "-tp", "2"]
    assert values(extra, "--a-b") == ["x", "y"]
    assert number(extra, "--c") == 1536  # the last counts
    assert value(extra, "--d-e") == "-1"
    assert number(extra, "-tp") == 2
    assert values(extra, "--missing") is None
    assert number(["--c", "many"], "--c") is None
    assert number(["--c=8k"], "--c") == 8000


def test_the_first_visible_gpu_is_the_one_that_counts() -> None:
    said = (
        "0, GPU-aaaa-1, NVIDIA H200, 143771, 143000\n"
        "1, GPU-bbbb-2, NVIDIA L4, 23034, 22500\n"
        "2, GPU-cccc-3, NVIDIA GB10, [N/A], [N/A]\n"
        "No devices were found\n"
    )
    gpus = read_gpus(said)
    assert [gpu.index for gpu in gpus] == ["0", "1"]
    assert gpus[0].free == 143000 * MIB

    def first(chosen: str | None) -> str | None:
        found = visible(gpus, {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen})
        return None if found is None else found.index

    assert [first(chosen) for chosen in (None, "1,0", "GPU-bbbb", "", "7")] == [
        "0",
        "1",
        "1",
        None,
        None,
    ]


# What the page says


def test_the_page_says_what_is_computed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for rank in (8, 16, 32, 64, 128):
        width = slot_width(headers())
        assert width
        qv = slot_width(headers(), ("q_proj", "v_proj"))
        assert qv
        linears, total, narrow = (
            f"{number_ * rank * 2 / MIB:,.0f}" for number_ in (width.linears, width.total, qv.total)
        )
        tokens = f"{width.total * rank * 2 / (128 * 1024):,.0f}"
        assert f"| {rank} | {linears} | {total} | {narrow} | {tokens} |" in page
    found = computed()
    for part in found.rows():
        assert f"| {part['what']} | {part['bytes']} |" in page, part
    assert f"{found.tokens:,} tokens" in page
    assert f"{found.slots_that_fit(16):,} slots of rank 16" in page


def test_a_plan_says_what_it_demands(store: Store, base: Path, make_adapter: AdapterMaker) -> None:
    store.add_folder(make_adapter("tone", rank=4, modules=llama_modules()), name="tone")
    plan = make_plan(store, ["tone"], base=str(base), dtype="float32", max_model_len=64)
    demand = demand_of(plan, {"VLLM_CPU_KVCACHE_SPACE": "2"})
    assert (demand.max_loras, demand.max_lora_rank) == (plan.max_loras, 8)
    found = capacity(plan.base, [one.size for one in plan.adapters], demand, HOST)
    assert found.fits
    kept = next(part for part in found.parts if part.what == "adapters kept loaded")
    layer = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 96)
    assert kept.bytes == 2 * layer * 4 * 4
    assert found.document()["slot_bytes"] == (2 * layer + 2 * (160 + 64)) * 8 * 4
