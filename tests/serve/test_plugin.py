"""The plugin inside vLLM: base rows get nothing from an adapter, and the store answers for its names, and for no others.

The kernels are vLLM's own, those it runs on CPUs. A whole server with the plugin: test_zero.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.names import parse_name
from adapterhub.serve import vllm_plugin
from adapterhub.serve.vllm_plugin import LOGGER, MASK, RESOLVER, mask, register
from adapterhub.store import Store
from adapterhub.store.garbage import collect
from tests.support.adapters import AdapterMaker

pytest.importorskip("vllm", reason="the plugin is for vLLM's own environment")
pytestmark = [
    pytest.mark.slow,  # importing vLLM takes 5 s
    # what vLLM and its dependencies say when they are imported is theirs
    pytest.mark.filterwarnings("ignore"),
]

Add = Callable[..., str]
KERNELS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice", "sgmv_shrink", "sgmv_expand", "sgmv_expand_slice")  # fmt: skip


@pytest.fixture
def punica(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that vLLM's CPU layers call, as it was installed; what a test does to its kernels is undone."""
    from vllm.lora.ops import torch_ops
    from vllm.lora.ops.torch_ops import lora_ops
    from vllm.lora.punica_wrapper import punica_cpu

    for module in (lora_ops, torch_ops, punica_cpu):
        for name in KERNELS:
            monkeypatch.setattr(module, name, getattr(module, name))
    monkeypatch.setattr(mask, "_found", None)
    return punica_cpu


@pytest.fixture
def faulty(punica: Any) -> Any:
    """The same, of a vLLM that gives base rows the last slot's adapter."""
    if not mask.exposed():
        pytest.skip("this vLLM keeps base rows apart by itself")
    return punica


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the plugin logs, which vLLM's logger keeps from others."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger(LOGGER)
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.DEBUG)
    yield found
    log.removeHandler(handler)
    log.setLevel(level)


def test_the_kernels_of_this_version_have_the_fault_and_the_mask_ends_it_in_every_operation(
    faulty: Any,
) -> None:
    assert len(mask.exposed()) == 6  # linear layers, embeddings, logits; prefill and decode
    assert mask.protect() == mask.Protection((), installed=True)
    assert mask.exposed() == ()


def test_to_install_it_again_changes_nothing(faulty: Any) -> None:
    mask.protect()
    kernels = [getattr(faulty, name) for name in KERNELS]
    mask._found = None
    assert mask.protect().installed
    mask.install()
    assert [getattr(faulty, name) for name in KERNELS] == kernels


@pytest.mark.parametrize("name", KERNELS)
def test_rows_of_the_base_keep_their_bits_and_adapters_rows_follow_the_formula(
    punica: Any, name: str
) -> None:
    """Whatever the sizes, the order of rows and what is in slots nobody asked for: NaN there reaches no one."""
    before = getattr(punica, name)
    mask.install()
    after = getattr(punica, name)

    @given(
        runs=st.lists(st.tuples(st.integers(-1, 2), st.integers(1, 3)), min_size=1, max_size=6),
        rank=st.integers(1, 5),
        outs=st.integers(1, 7),
        adds=st.booleans(),
        flat=st.booleans(),
        seed=st.integers(0, 2**31),
    )
    @settings(max_examples=60, deadline=None, derandomize=True)
    def holds(
        runs: list[tuple[int, int]], rank: int, outs: int, adds: bool, flat: bool, seed: int
    ) -> None:
        _compare(before, after, name, runs, rank, outs, adds, flat, seed)

    holds()


@pytest.mark.parametrize("with_mask", [False, True])
def test_a_slot_of_zeros_adds_nothing_in_any_operation(punica: Any, with_mask: bool) -> None:
    """What a zero adapter rests on: its rows are the base's, next to those of an adapter in the last slot."""
    if with_mask:
        mask.install()
    wrapper = punica.PunicaWrapperCPU(4, 4, device="cpu")
    rows = (7, 9, 7, 7)
    mapping = SimpleNamespace(index_mapping=rows, prompt_mapping=rows, is_prefill=True)
    wrapper.update_metadata(mapping, [7, 9], 2, 5)
    a, b = torch.randn(2, 1, 3, 6), torch.randn(2, 1, 5, 3)
    a[0], b[0] = 0, 0
    x, y = torch.randn(4, 6), torch.randn(4, 5)
    linear, logits, embedding = y.clone(), y.clone(), y.clone()
    wrapper.add_lora_linear(linear, x, (a,), (b,), 1.0, (5,))
    wrapper.add_lora_logits(logits, x, a, b, 1.0)
    wrapper.add_lora_embedding(embedding, x[:, :3], b)
    for out in (linear, logits, embedding):
        assert _bits(out[[0, 2, 3]]) == _bits(y[[0, 2, 3]])
        assert (out[1] != y[1]).all()


def test_a_batch_without_the_base_is_handed_on_as_it_came(punica: Any) -> None:
    seen: list[tuple[torch.Tensor, ...]] = []
    kernel = mask.masked_expand(lambda *given: seen.append(given))
    x, b, y, indices = torch.ones(2, 1), torch.ones(1, 1, 3, 1), torch.ones(2, 3), torch.zeros(2, dtype=torch.long)  # fmt: skip
    kernel(x, b, y, indices)
    assert [one is other for one, other in zip(seen[0], (x, b, y, indices), strict=False)] == [True] * 4  # fmt: skip


def _compare(
    before: Callable[..., None],
    after: Callable[..., None],
    name: str,
    runs: list[tuple[int, int]],
    rank: int,
    outs: int,
    adds: bool,
    flat: bool,
    seed: int,
) -> None:
    """One batch: `runs` are (slot, rows); -1 is the base. `flat`: weights without the extra dimension of 1."""
    random = torch.Generator().manual_seed(seed)
    slots, lengths = (torch.tensor(part) for part in zip(*runs, strict=True))
    rows = torch.repeat_interleave(slots, lengths)
    shrink = "shrink" in name
    wide, tall = (outs, rank) if shrink else (rank, outs)
    weights = torch.randn(3, 1, tall, wide, generator=random)
    x = torch.randn(len(rows), wide, generator=random)
    weights[[slot for slot in range(3) if slot not in slots.tolist()]] = torch.nan
    y = torch.randn(len(rows), tall + 3, generator=random)
    y[:, 0] = -0.0
    start = 2 if "slice" in name else 0
    rest = (0.5,) if shrink else ((start, tall, adds) if "slice" in name else (adds,))
    starts = torch.cumsum(lengths, 0) - lengths
    metadata = (starts, lengths, slots, len(runs), int(lengths.max()), len(rows))

    def run(kernel: Callable[..., None], out: torch.Tensor, where: torch.Tensor) -> None:
        stacked = weights.squeeze(1) if flat else weights
        if name.startswith("sgmv"):
            kernel(x, stacked, out, *metadata[:2], where, *metadata[3:], *rest)
        else:
            kernel(x, stacked, out, where, *rest)

    result = y.clone()
    run(after, result, slots if name.startswith("sgmv") else rows)
    base = rows < 0
    written = slice(start, start + tall)
    untouched = torch.ones(tall + 3, dtype=torch.bool)
    untouched[written] = False
    assert _bits(result[:, untouched]) == _bits(y[:, untouched])
    if adds and not shrink:
        assert _bits(result[base]) == _bits(y[base])
    else:
        assert not result[base, written].any()
    factor = 0.5 if shrink else 1.0
    delta = torch.einsum("bi,boi->bo", x.double(), weights[rows.clamp(min=0), 0].double()) * factor
    expected = delta + (y[:, written].double() if adds and not shrink else 0)
    assert torch.allclose(result[~base, written].double(), expected[~base], rtol=1e-5, atol=1e-6)
    if not base.any():  # nothing to keep apart: the same bits as without the mask
        plain = y.clone()
        run(before, plain, slots if name.startswith("sgmv") else rows)
        assert _bits(result) == _bits(plain)


def _bits(values: torch.Tensor) -> list[int]:
    return values.contiguous().view(torch.int32).flatten().tolist()


def test_importing_the_plugin_loads_neither_torch_nor_vllm() -> None:
    code = "import sys, adapterhub.serve.vllm_plugin; print({'torch', 'vllm', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "set()\n"


def test_it_installs_the_mask_once_however_often_it_is_called(faulty: Any) -> None:
    register()
    kernel = faulty.bgmv_expand
    register()
    assert mask.masked()
    assert faulty.bgmv_expand is kernel


def test_it_can_be_told_to_leave_the_kernels_alone_and_says_so(
    faulty: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MASK, "0")
    register()
    assert not mask.masked()
    assert said == [f"{MASK}=0: the LoRA kernels stay as they are."]


def test_a_mask_that_does_not_help_is_an_error_in_the_log_and_ends_vllm_only_where_it_is_required(
    faulty: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask, "install", lambda: None)
    register()
    assert "rows of the base are given an adapter's output in linear layers" in said[-1]
    monkeypatch.setenv(MASK, "require")
    with pytest.raises(RuntimeError, match="rows of the base are given an adapter's output"):
        register()


def test_a_vllm_whose_kernels_are_elsewhere_starts_all_the_same_unless_the_mask_is_required(
    punica: Any, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(punica, "PunicaWrapperCPU")
    register()
    assert "can't be told" in said[-1]
    monkeypatch.setenv(MASK, "require")
    with pytest.raises(RuntimeError, match="can't be told"):
        register()


@pytest.mark.parametrize("wrapper", ["punica_gpu.PunicaWrapperGPU", "punica_xpu.PunicaWrapperXPU"])  # fmt: skip
def test_where_triton_runs_nothing_is_touched(
    punica: Any, monkeypatch: pytest.MonkeyPatch, wrapper: str
) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "get_punica_wrapper", lambda *_: f"vllm.lora.punica_wrapper.{wrapper}")  # fmt: skip
    assert mask.protect() == mask.Protection((), installed=False)
    assert not mask.masked()


@pytest.mark.parametrize(
    ("variables", "offered"),
    [
        ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}, True),
        ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", RESOLVER: "0"}, False),
        ({"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "ADAPTERHUB_HOME": ""}, False),
        ({}, False),
    ],
)
def test_the_store_is_offered_where_there_is_one_and_vllm_asks_resolvers(
    punica: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    offered: bool,
) -> None:
    from vllm.lora.resolver import LoRAResolverRegistry

    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
    monkeypatch.setenv(
        "HOME", str(tmp_path)
    )  # where no store is named, none lies in the home either
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    register()
    register()
    assert list(LoRAResolverRegistry.resolvers) == (["adapterhub store"] if offered else [])


def test_a_store_that_cannot_be_read_is_logged_and_vllm_starts(
    punica: Any, said: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora.resolver import LoRAResolverRegistry

    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    store.prepare()
    store.layout.version.write_text("99\n")
    register()
    assert "adapterhub's store isn't offered to this server." in said
    assert LoRAResolverRegistry.resolvers == {}


def test_no_store_is_offered_to_a_server_that_mixes_base_and_adapters(
    faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.lora.resolver import LoRAResolverRegistry

    monkeypatch.setattr(LoRAResolverRegistry, "resolvers", {})
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    monkeypatch.setattr(mask, "install", lambda: None)
    register()
    assert LoRAResolverRegistry.resolvers == {}


def test_the_entry_point_leads_to_it() -> None:
    from importlib.metadata import entry_points

    found = {point.value for point in entry_points(group="vllm.general_plugins")}
    assert f"{vllm_plugin.__name__}:register" in found


@pytest.fixture
def resolver(store: Store) -> Iterator[Any]:
    from adapterhub.serve.vllm_plugin.resolver import StoreResolver

    made = StoreResolver(store)
    yield made
    made.close()


def gc(store: Store) -> None:
    collect(store, grace=0, trash_grace=0)
    collect(store, grace=0, trash_grace=0)


async def test_every_way_to_name_a_version_gives_its_one_folder(
    store: Store, resolver: Any, add: Add, base: Path
) -> None:
    digest = add("support/tone")
    whole = digest.removeprefix("sha256:")
    names = [
        "support/tone",
        "support/tone:latest",
        f"support/tone@{whole[:12]}",
        f"@{whole[:12]}",
    ]
    for name in [*names, whole, digest, f"@{whole}"]:
        request = await resolver.resolve_lora(str(base), name)
        assert (request.lora_name, request.lora_path) == (name, str(store.view(digest)))
        assert request.lora_int_id >= 1


@pytest.mark.parametrize(
    "name",
    ["tone", "support/ton", "gpt-4", "", "@", "a/b/c", "support/tone@zz", "tone@" + "0" * 64, "0" * 64, "x\x00y", "n" * 9999],
)  # fmt: skip
async def test_a_name_the_store_does_not_have_is_left_to_other_resolvers(
    store: Store, resolver: Any, add: Add, base: Path, name: str
) -> None:
    add("support/tone")
    assert await resolver.resolve_lora(str(base), name) is None
    assert store.leases.all() == []


async def test_no_name_leads_out_of_the_store(
    store: Store, resolver: Any, add: Add, base: Path, make_adapter: AdapterMaker
) -> None:
    add("support/tone")
    outside = make_adapter("outside")
    beside = store.home / "outside"
    beside.symlink_to(outside)
    climb = "../" * 20
    for name in [
        str(outside), f"{climb}{outside}", "../outside", "support/../../outside", "../../outside", "support/tone/../../outside",
        "./support/tone", "/support/tone", "support\\tone", "~/outside", f"file://{outside}", "outside", "..", ".", "../tone@abcdef",
    ]:  # fmt: skip
        assert await resolver.resolve_lora(str(base), name) is None, name


async def test_what_does_not_fit_or_cannot_be_served_is_a_refusal_with_its_reason(
    store: Store, resolver: Any, add: Add, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.entrypoints.serve import create_error_response
    from vllm.exceptions import VLLMValidationError

    add("elsewhere", base="org/other")
    add("dora", use_dora=True)
    add("wide", rank=600)
    with monkeypatch.context() as patch:  # as a store from before values were read would have it
        patch.setattr("adapterhub.store.adding.scan_values", lambda *_: ("sha256:" + "0" * 64, []))  # fmt: skip
        add("broken", scale=float("nan"), seed=9)
    for name, reason in {
        "elsewhere": "the repository differs: org/other and org/tiny",
        "dora": "DoRA",
        "wide": "rank 600",
        "broken": "NaN",
    }.items():
        with pytest.raises(VLLMValidationError, match=reason) as caught:
            await resolver.resolve_lora(str(base), name)
        answer = create_error_response(caught.value).error
        assert (answer.code, answer.param) == (400, "model")
        assert str(store.home) not in answer.message
    assert store.leases.all() == []


async def test_a_base_that_cannot_be_read_is_a_refusal_and_its_path_stays_in_the_log(
    resolver: Any, add: Add, tmp_path: Path, said: list[str]
) -> None:
    from vllm.exceptions import VLLMValidationError

    add("tone")
    with pytest.raises(VLLMValidationError, match="the server's log says why") as caught:
        await resolver.resolve_lora(str(tmp_path / "nowhere"), "tone")
    assert str(tmp_path) not in str(caught.value)
    assert str(tmp_path / "nowhere") in said[-1]


async def test_a_name_stays_the_version_it_was_first_asked_for_and_says_so(
    store: Store, resolver: Any, add: Add, base: Path, said: list[str]
) -> None:
    first, second = add("tone"), add("next", seed=5)
    before = await resolver.resolve_lora(str(base), "tone")
    assert f"On this server tone is tone@{first[7:19]} from now on" in said[-1]
    store.tag(store.resolve("next"), parse_name("tone"), move=True)
    again = await resolver.resolve_lora(str(base), "tone")  # as after an unload
    assert again.lora_path == before.lora_path == str(store.view(first))
    assert "tone has moved on in the store" in said[-1]
    new = await resolver.resolve_lora(str(base), f"tone@{second[7:19]}")
    assert new.lora_path == str(store.view(second))
    store.remove([parse_name("tone")])
    assert (await resolver.resolve_lora(str(base), "tone")).lora_path == before.lora_path


async def test_what_was_handed_out_is_leased_once_and_survives_a_collection(
    store: Store, resolver: Any, add: Add, base: Path
) -> None:
    digest = add("tone")
    request = await resolver.resolve_lora(str(base), "tone")
    await resolver.resolve_lora(str(base), f"tone@{digest[7:19]}")
    (lease,) = store.leases.live()
    assert (lease.kind, lease.digests) == ("vllm", (digest,))
    store.remove([parse_name("tone")])
    gc(store)
    assert request.lora_path == str(store.layout.view(digest))
    assert store.layout.view(digest).is_dir()
    resolver.close()
    assert store.leases.all() == []
    gc(store)
    assert not store.layout.view(digest).exists()


async def test_while_the_store_is_busy_the_event_loop_is_not(
    store: Store, resolver: Any, add: Add, base: Path
) -> None:
    add("tone")
    with store.alone():  # a collection
        asked = asyncio.create_task(resolver.resolve_lora(str(base), "tone"))
        for _ in range(20):
            await asyncio.sleep(0.005)  # never reached again, were the resolver waiting on the loop
        assert not asked.done()
    assert (await asked).lora_name == "tone"


async def test_many_who_ask_together_get_one_folder_and_one_lease(
    store: Store, resolver: Any, add: Add, base: Path
) -> None:
    add("tone")
    found = await asyncio.gather(*(resolver.resolve_lora(str(base), "tone") for _ in range(8)))
    assert len({request.lora_path for request in found}) == 1
    assert len(store.leases.live()) == 1
