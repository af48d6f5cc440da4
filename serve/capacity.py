"""What a server takes and what there is, before anything is started: weights, slots for adapters, KV cache.

Pure arithmetic over the base's headers and configuration, the numbers vLLM will be given, and the memory that was found.
What is computed is what vLLM 0.32 allocates; the one estimate (the room that a pass through the model works in, which vLLM
measures when it starts) says that it is one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.base import HEAD_NAME, BaseModel
from adapterhub.serve.extra import number, value, values
from adapterhub.serve.kv_cache import TokenCost, longest, token_cost
from adapterhub.serve.lora_layers import Width, slot_width
from adapterhub.serve.memory import Memory
from adapterhub.serve.preflight import Size
from adapterhub.words import counted, human_size

if TYPE_CHECKING:
    from adapterhub.serve.plan import Plan

GIB = 2**30
SHARE = 0.92
"""Of a GPU's memory, what vLLM takes where --gpu-memory-utilization says nothing."""
GPU_RUNTIME = 2 * GIB
"""The driver's context, libraries and CUDA graphs. An estimate."""
PROCESSES = 2 * GIB
"""Of the host's memory, what vLLM's processes and ours take by themselves: 1.5 GB of vLLM's, measured with a tiny model on a
CPU, and rounded up."""
ITEM_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
"""`auto` is the model's own dtype, and 16 bits where that is float32."""

_CACHE_SIZES = {"auto": None, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
_BEYOND = {
    "--tensor-parallel-size": "the model is spread over several GPUs",
    "-tp": "the model is spread over several GPUs",
    "--pipeline-parallel-size": "the model is spread over several GPUs",
    "-pp": "the model is spread over several GPUs",
    "--data-parallel-size": "there are several copies of the model",
    "-dp": "there are several copies of the model",
    "--quantization": "vLLM quantises the weights itself",
    "-q": "vLLM quantises the weights itself",
    "--cpu-offload-gb": "part of the weights stays in the host's memory",
    "--config": "a file says more to vLLM",
}
"""Arguments after which this arithmetic isn't the one that counts."""


@dataclass(frozen=True)
class Demand:
    """What a server is set up for. `kv_space`: bytes of the KV cache, where they are given (on a CPU they are)."""

    max_lora_rank: int
    max_loras: int
    max_cpu_loras: int
    dtype: str = "auto"
    max_model_len: int | None = None
    kv_space: int | None = None
    extra: tuple[str, ...] = ()
    direct: bool = False
    """Whether every served name has a slot, which no flag changes."""


@dataclass(frozen=True)
class Part:
    """One line of the table: what, how many bytes (None: it can't be told), where they lie, how they were computed."""

    what: str
    bytes: int | None
    place: str
    how: str


@dataclass(frozen=True)
class Capacity:
    """What a server takes beside what there is.

    `fits` is False where it is known not to fit, None where something that matters can't be told. `slot` are the bytes of
    one slot; `tokens` how many fit into the KV cache together, at least.
    """

    parts: tuple[Part, ...]
    fits: bool | None
    problems: tuple[str, ...]
    advice: tuple[str, ...]
    """What to change where it doesn't fit, with the flags that do it."""
    unknown: tuple[str, ...]
    slot: int | None
    tokens: int | None
    token_bytes: int | None
    room: int | None
    """Bytes for slots once the weights, the work space and a KV cache for one longest request are there."""
    _width: Width | None
    _lora_itemsize: int

    def slot_bytes(self, rank: int) -> int | None:
        """Bytes of one slot at `rank`."""
        return None if self._width is None else self._width.total * rank * self._lora_itemsize

    def slots_that_fit(self, rank: int) -> int | None:
        """How many slots of `rank` there is room for, with a KV cache for no more than one longest request."""
        slot = self.slot_bytes(rank)
        return None if slot is None or self.room is None else max(0, self.room // slot)

    def rows(self) -> list[dict[str, Any]]:
        """The table, with sizes as people read them."""
        return [
            {
                "what": part.what,
                "bytes": None if part.bytes is None else human_size(part.bytes),
                "where": part.place,
                "how": part.how,
            }
            for part in self.parts
        ]

    def document(self) -> dict[str, Any]:
        """The same as data."""
        return {
            "parts": [
                {"what": p.what, "bytes": p.bytes, "where": p.place, "how": p.how}
                for p in self.parts
            ],
            "fits": self.fits,
            "problems": list(self.problems),
            "advice": list(self.advice),
            "unknown": list(self.unknown),
            "slot_bytes": self.slot,
            "kv_cache_tokens": self.tokens,
        }


def capacity(base: BaseModel, sizes: Sequence[Size], demand: Demand, memory: Memory) -> Capacity:
    """What serving adapters of these `sizes` on `base` takes of `memory`."""
    return _Sum(base, sizes, demand, memory).result()


def demand_of(plan: Plan, variables: Mapping[str, str]) -> Demand:
    """What `plan` sets vLLM up for, started with these environment variables."""
    space = variables.get("VLLM_CPU_KVCACHE_SPACE", "")
    return Demand(
        max_lora_rank=plan.max_lora_rank,
        max_loras=plan.max_loras,
        max_cpu_loras=plan.max_cpu_loras,
        dtype=plan.dtype,
        max_model_len=plan.max_model_len,
        kv_space=int(space) * GIB if space.isdigit() else None,
        extra=plan.extra,
        direct=plan.direct,
    )


def weight_bytes(base: BaseModel, dtype: str) -> int:
    """Bytes of the weights as vLLM loads them: floats of 16 bits or more in `dtype`, others as they are stored; a tied head once."""
    itemsize = ITEM_SIZES[dtype]
    return sum(
        info.count * itemsize
        if info.dtype in ("F64", "F32", "F16", "BF16")
        else info.end - info.start
        for name, info in base.tensors.items()
        if not (base.tied and (name == HEAD_NAME or name.endswith(f".{HEAD_NAME}")))
    )


class _Sum:
    """The arithmetic of `capacity`, part by part."""

    def __init__(
        self, base: BaseModel, sizes: Sequence[Size], demand: Demand, memory: Memory
    ) -> None:
        self.base, self.sizes, self.demand, self.memory = base, sizes, demand, memory
        extra = demand.extra
        self.itemsize = ITEM_SIZES[demand.dtype]
        self.lora_itemsize = ITEM_SIZES.get(value(extra, "--lora-dtype") or "", self.itemsize)
        if value(extra, "--lora-dtype") == "auto":
            self.lora_itemsize = self.itemsize
        self.width = slot_width(base, values(extra, "--lora-target-modules"))
        self.unknown = [words for flag, words in _BEYOND.items() if values(extra, flag) is not None]
        self.length = demand.max_model_len or longest(base)
        self.weights = weight_bytes(base, demand.dtype)
        self.slot = self._slot(self.width)
        self.slots = None if self.slot is None else demand.max_loras * self.slot
        self.kept = sorted((size.parameters for size in sizes), reverse=True)[
            : demand.max_cpu_loras
        ]
        self.cached = sum(self.kept) * self.lora_itemsize
        self.cost = self._token_cost()
        self.block = int(number(extra, "--block-size") or (16 if memory.gpu else 128))
        given = number(extra, "--kv-cache-memory-bytes")
        self.given_kv = demand.kv_space if given is None else int(given)
        if self.slots is None:
            self.unknown.append("the base's linears are packed, so that their shapes can't be told")
        if self.cost is None:
            self.unknown.append("the KV cache of this kind of model isn't computed here")

    def result(self) -> Capacity:
        """The sum, judged."""
        return self._on_gpu() if self.memory.gpu else self._on_host()

    def _on_gpu(self) -> Capacity:
        memory, share = (
            self.memory,
            number(self.demand.extra, "--gpu-memory-utilization") or SHARE,
        )
        work = self._work()
        budget = None if memory.total is None else int(memory.total * share)
        fixed = self.weights + work
        kv = self.given_kv
        if kv is None and budget is not None and self.slots is not None:
            kv = budget - fixed - self.slots
        problems, advice = [], []
        if budget is None:
            self.unknown.append("the GPU's memory can't be told")
        elif self.given_kv is None and memory.free is not None and memory.free < budget:
            problems.append(
                f"vLLM takes {share:.0%} of the GPU at once, {human_size(budget)}, and {human_size(memory.free)} are free"
            )
            smaller = math.floor(100 * memory.free / (memory.total or 1)) / 100
            advice.append(
                f"-- --gpu-memory-utilization {smaller:.2f}, or end what else runs on the GPU"
            )
        problems += self._too_short(kv)
        if self.given_kv is not None and self.slots is not None:
            budget = fixed + self.slots + self.given_kv
            if memory.free is not None and budget > memory.free:
                problems.append(
                    f"it takes {human_size(budget)}, and {human_size(memory.free)} are free"
                )
        host = self.cached + PROCESSES
        if memory.host_free is not None and host > memory.host_free:
            problems.append(
                f"the adapters that are kept loaded take {human_size(host)} of the host's memory with vLLM's processes, and"
                f" {human_size(memory.host_free)} are free"
            )
            keep = max(1, self._keepable(memory.host_free - PROCESSES))
            advice.append("fewer adapters" if self.demand.direct else f"--loaded {keep}")
        if problems:
            advice += self._savings(kv)
            advice.append(
                "-- --tensor-parallel-size 2, where there is another GPU (then this table says no more)"
            )
        needed = self._one_request() or 0
        room = None if budget is None else max(0, budget - fixed - needed)
        place = memory.device
        parts = (
            self._weights_part(place),
            self._slots_part(place),
            Part("work space", work, place, "estimated; vLLM measures it when it starts"),
            self._kv_part(kv, place, f"what is left of {share:.0%} of the GPU" if self.given_kv is None else "as given"),
            Part("together", budget, place, f"of {_size(memory.total)}, of which {_size(memory.free)} are free"),
            self._cached_part("host"),
            self._processes_part(),
        )  # fmt: skip
        return self._judged(parts, problems, advice, kv, room)

    def _on_host(self) -> Capacity:
        memory, kv = self.memory, self.given_kv
        problems, advice = [], []
        if kv is None:
            self.unknown.append("vLLM takes nearly all memory for the KV cache")
        problems += self._too_short(kv)
        if kv is not None and problems:
            needed = math.ceil((self._one_request() or 0) / GIB)
            advice.append(f"VLLM_CPU_KVCACHE_SPACE={needed} in the environment (GiB)")
        fixed = self.weights + self.cached + PROCESSES
        total = None if kv is None or self.slots is None else fixed + kv + self.slots
        if memory.free is None:
            self.unknown.append("the free memory can't be told")
        elif total is not None and total > memory.free:
            problems.append(
                f"it takes {human_size(total)} of memory, and {human_size(memory.free)} are free"
            )
            if kv is not None and kv > GIB:
                advice.append("VLLM_CPU_KVCACHE_SPACE=1 in the environment (GiB)")
        if problems:
            advice += self._savings(kv)
        room = None if memory.free is None or kv is None else max(0, memory.free - fixed - kv)
        parts = (
            self._weights_part("host"),
            self._slots_part("host"),
            self._cached_part("host"),
            self._kv_part(kv, "host", "VLLM_CPU_KVCACHE_SPACE"),
            self._processes_part(),
            Part("together", total, "host", f"{_size(memory.free)} are free"),
        )
        return self._judged(parts, problems, advice, kv, room)

    def _judged(
        self,
        parts: tuple[Part, ...],
        problems: list[str],
        advice: list[str],
        kv: int | None,
        room: int | None,
    ) -> Capacity:
        tokens = None
        if kv is not None and self.cost is not None:
            tokens = max(0, kv) // (self.block * self.cost.bytes) * self.block
        return Capacity(
            parts=parts,
            fits=False if problems else None if self.unknown else True,
            problems=tuple(problems),
            advice=tuple(dict.fromkeys(advice)),
            unknown=tuple(dict.fromkeys(self.unknown)),
            slot=self.slot,
            tokens=tokens,
            token_bytes=self.cost.bytes if self.cost else None,
            room=room,
            _width=self.width,
            _lora_itemsize=self.lora_itemsize,
        )

    # What it takes

    def _slot(self, width: Width | None) -> int | None:
        if width is None:
            return None
        return width.total * self.demand.max_lora_rank * self.lora_itemsize

    def _token_cost(self) -> TokenCost | None:
        stated = value(self.demand.extra, "--kv-cache-dtype") or "auto"
        if stated not in _CACHE_SIZES:
            return None
        return token_cost(self.base, _CACHE_SIZES[stated] or self.itemsize)

    def _one_request(self) -> int | None:
        """Bytes of the KV cache of one request that is as long as may be; vLLM doesn't start with less.

        It has them in whole blocks, and one block is its own.
        """
        if self.cost is None or self.length is None:
            return None
        return (math.ceil(self.length / self.block) + 1) * self.block * self.cost.bytes

    def _work(self) -> int:
        """An estimate of what a pass through the model needs beside: activations of a full batch, and logits in float32."""
        config = {**self.base.config, **self.base.text_config}
        hidden, inner, words = (
            int(config.get(key) or 0) for key in ("hidden_size", "intermediate_size", "vocab_size")
        )
        large = (self.memory.total or 0) >= 70 * GIB and "A100" not in self.memory.device
        tokens = number(self.demand.extra, "--max-num-batched-tokens") or (8192 if large else 2048)
        answers = number(self.demand.extra, "--max-num-seqs") or (1024 if large else 256)
        return int(
            tokens * (3 * inner + 2 * hidden) * self.itemsize + answers * words * 4 + GPU_RUNTIME
        )

    def _keepable(self, room: int) -> int:
        """How many adapters, the largest first, fit into `room`."""
        used = 0
        for place, parameters in enumerate(self.kept):
            used += parameters * self.lora_itemsize
            if used > room:
                return place
        return len(self.kept)

    # What is wrong, and what to do

    def _too_short(self, kv: int | None) -> list[str]:
        needed = self._one_request()
        if kv is None:
            return []
        if kv <= 0:
            return ["weights, slots and work space leave nothing for the KV cache"]
        if needed is not None and needed > kv and not (self.cost and self.cost.why):
            return [
                f"the KV cache has {human_size(kv)}, and one request of {self.length:,} tokens takes {human_size(needed)}"
            ]
        return []

    def _savings(self, kv: int | None) -> list[str]:
        """Changes that make it smaller, the most effective first."""
        found: list[tuple[int, str]] = []
        demand, slots = self.demand, self.slots or 0
        if self.itemsize == 4:
            found.append((self.weights // 2 + slots // 2, "--dtype bfloat16, half of everything"))
        targets = sorted(set().union(*(size.targets for size in self.sizes)))
        if targets and values(demand.extra, "--lora-target-modules") is None:
            narrow = self._slot(slot_width(self.base, targets))
            if narrow is not None and self.slot is not None and narrow < self.slot:
                words = f"-- --lora-target-modules {' '.join(targets)}, which is all that these adapters change"
                found.append(((self.slot - narrow) * demand.max_loras, words))
        if demand.max_loras > 2 and self.slot is not None and not demand.direct:
            words = "--batch 2, so that fewer adapters share a batch"
            found.append(((demand.max_loras - 2) * self.slot, words))
        needed = self._one_request()
        if needed is not None and kv is not None and self.cost is not None:
            if 0 < kv < needed:
                step = 1024 if kv >= 4096 * self.cost.bytes else self.block
                length = (kv // self.cost.bytes - self.block) // step * step
                if length > 0:
                    words = f"--max-model-len {length}, which cuts the longest prompt and answer"
                    found.append((needed - kv, words))
            if self.memory.gpu and values(demand.extra, "--kv-cache-dtype") is None:
                found.append((needed // 2, "-- --kv-cache-dtype fp8, half of the KV cache"))
        return [
            f"{words} (saves {human_size(saved)})" for saved, words in sorted(found, reverse=True)
        ]

    # The table

    def _weights_part(self, place: str) -> Part:
        values_ = sum(info.count for info in self.base.tensors.values())
        return Part("weights", self.weights, place, f"{values_:,} values in {self._dtype()}")

    def _slots_part(self, place: str) -> Part:
        demand, slot = self.demand, self.slot
        if slot is None or self.width is None:
            return Part("slots", None, place, "the base's linears are packed")
        about = f"; at most, because of {self.width.why}" if self.width.why else ""
        how = (
            f"{demand.max_loras} of {human_size(slot)}: rank {demand.max_lora_rank} in all {self.width.total:,}"
            f" inputs and outputs of its layers, whatever an adapter changes{about}"
        )
        return Part("slots", self.slots, place, how)

    def _cached_part(self, place: str) -> Part:
        how = f"{counted(len(self.kept), 'adapter')} at their own ranks" + (
            f", of {len(self.sizes)}" if len(self.kept) < len(self.sizes) else ""
        )
        return Part("adapters kept loaded", self.cached, place, how)

    def _kv_part(self, kv: int | None, place: str, how: str) -> Part:
        if self.cost is None:
            return Part("KV cache", kv, place, how)
        about = f", at most: {self.cost.why}" if self.cost.why else ""
        tokens = "" if kv is None else f": {max(0, kv) // self.cost.bytes:,} tokens"
        return Part(
            "KV cache", kv, place, f"{how}{tokens} of {human_size(self.cost.bytes)} each{about}"
        )

    def _processes_part(self) -> Part:
        return Part("processes", PROCESSES, "host", "vLLM's and ours by themselves, about")

    def _dtype(self) -> str:
        return "16 bits" if self.demand.dtype == "auto" else self.demand.dtype


def _size(found: int | None) -> str:
    return "an unknown size" if found is None else human_size(found)
