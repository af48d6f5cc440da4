"""Will it fit? What a training needs in memory, part by part, before anything is loaded, and what to change if it won't.

The parts that are counted are exact (weights, adapters, optimizer states). What autograd keeps is a formula that holds for
Llama-like models (`footprint`). What the libraries and the allocator take beyond that was measured, once, and the constants
below say what it was; docs/doctor.md has the table of predicted and measured peaks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from adapterhub.words import human_size

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.trainer.footprint import Footprint
    from adapterhub.trainer.model import Device
    from adapterhub.trainer.recipe import Recipe

LIBRARIES = 600 * 10**6
"""Resident before any model: torch, transformers, peft, trl, datasets and bitsandbytes, on Linux without a GPU."""
SCIKIT_LEARN = 40 * 10**6
"""The same of scikit-learn, which transformers imports wherever it is installed; the extra `harness` brings it."""
CUDA_CONTEXT = 600 * 10**6
"""What the driver's context and cuBLAS' workspaces usually take on a GPU. Not measured here."""
CUDA_SLACK = 0.1
"""Share of what comes and goes that torch's caching allocator usually holds besides. Not measured here."""
HEAP_SLACK = 0.75
"""glibc's heap, which can't give an aligned block that was freed to the next request of its size, was measured to grow by this
share of what all layers keep together, whether they keep it at once or one after the other."""
HEAP_LARGEST = 32 * 2**20
"""Blocks from this size on never lie in glibc's heap."""
NO_HEAP = "MALLOC_MMAP_THRESHOLD_"
"""With this environment variable set to 131072 that is nothing; clearing fresh pages then took 40% more CPU time."""
_SCORING_COPIES = 3
"""Of its logits in float32, while a batch of held-out rows is scored."""


@dataclass(frozen=True)
class Part:
    """One part of the memory, with what it is in words."""

    name: str
    bytes: int
    words: str


@dataclass(frozen=True)
class Saving:
    """A change of the recipe (keys and values; empty where it is none), and the bytes it saves by itself."""

    words: str
    bytes: int
    change: Mapping[str, Any]


@dataclass(frozen=True)
class MemoryPlan:
    """What a training needs at its peak, and what there is. `available` is None where that can't be told."""

    parts: tuple[Part, ...]
    available: int | None
    savings: tuple[Saving, ...]
    """What would make it smaller, the most effective first; empty where it fits."""

    @property
    def total(self) -> int:
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether there is enough, as far as that can be told."""
        return self.available is None or self.total <= self.available

    @property
    def advice(self) -> list[str]:
        """The savings as people read them."""
        return [f"{saving.words} (saves {human_size(saving.bytes)})" for saving in self.savings]

    @property
    def record(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return {
            "total": self.total,
            "available": self.available,
            "fits": self.fits,
            "parts": [asdict(part) for part in self.parts],
            "savings": [
                {**asdict(saving), "change": dict(saving.change)} for saving in self.savings
            ],
        }


def for_people(record: Mapping[str, Any]) -> dict[str, Any]:
    """A plan's record with sizes as people read them: one line a part, then the sum and what is free."""
    lines = {
        part["name"]: f"{human_size(part['bytes'])}, {part['words']}"
        for part in record["parts"]
        if part["bytes"]
    }
    free = record["available"]
    return {
        **lines,
        "together": human_size(record["total"]),
        "free here": None if free is None else human_size(free),
    }


def plan_memory(
    recipe: Recipe,
    base: BaseModel,
    *,
    max_length: int,
    device: Device,
    model: Any = None,
    trained_share: float = 1.0,
    available: int | None = None,
) -> MemoryPlan:
    """The memory that training `recipe` on `base` needs.

    Args:
        max_length: tokens of a sequence, where the recipe says `auto`.
        model: the adapted model without memory (`model.meta_model`), where there is one already.
        trained_share: how many of the tokens are trained on.
        available: bytes there are; by default what is free on `device` now.

    Raises what building the model's skeleton raises: an unknown architecture, a target that is not there.
    """
    from adapterhub.trainer.free_memory import available_memory

    free = available_memory(device) if available is None else available
    parts = _parts(recipe, base, model, max_length, device, trained_share)
    total = sum(part.bytes for part in parts)
    if free is None or total <= free:
        return MemoryPlan(parts, free, ())
    savings = []
    for words, change in _changes(recipe, device, max_length):
        smaller = _changed(recipe, change)
        length = change.get("max_length", max_length)
        same_adapter = not {"rank", "target_modules"} & set(change)
        kept = model if same_adapter else None
        needed = _parts(smaller, base, kept, length, device, trained_share)
        savings.append(Saving(words, total - sum(part.bytes for part in needed), change))
    heap = (
        sum(part.bytes for part in parts if part.name == "allocator") if device.kind == "cpu" else 0
    )
    if heap:
        words = f"{NO_HEAP}=131072 in the environment, which takes more time"
        savings.append(Saving(words, heap, {}))
    useful = [saving for saving in savings if saving.bytes > 0.01 * total]
    return MemoryPlan(parts, free, tuple(sorted(useful, key=lambda saving: -saving.bytes)))


def _parts(
    recipe: Recipe,
    base: BaseModel,
    model: Any,
    max_length: int,
    device: Device,
    trained_share: float,
) -> tuple[Part, ...]:
    from adapterhub.trainer.footprint import FLOAT, Footprint, adamw_bytes
    from adapterhub.trainer.loop import checkpoints_activations, optimizer_of
    from adapterhub.trainer.model import meta_model

    found = Footprint(model if model is not None else meta_model(recipe, base), recipe, device)
    quantised, whole = found.weights
    trained = sum(found.trainable)
    optimizer = optimizer_of(recipe, device)
    eight_bit = "8bit" in optimizer
    states = sum(adamw_bytes(count, eight_bit=eight_bit) for count in found.trainable)
    if recipe.kind == "adalora":
        states += 3 * FLOAT * trained  # how much each value matters, and two running means of it
    tokens = recipe.batch_size * max_length * (2 if recipe.objective == "dpo" else 1)
    checkpoints = checkpoints_activations(recipe, device)
    kept, every_layer = _activations(found, tokens, checkpoints=checkpoints)
    loss = _loss(found, tokens, trained_share)
    backward = _backward(found, tokens)
    peak = kept + max(loss, backward)
    scoring = max(0, _scoring(found, trained_share) - peak)
    weights = "NF4 with double quantisation" if quantised else device.dtype
    return (
        Part("base", quantised + whole, f"its weights in {weights}" + (
            f"; {human_size(whole)} of it not quantised: embeddings, norms, head" if quantised else "")),
        Part("adapter", FLOAT * trained, "in float32"),
        Part("gradients", FLOAT * trained, "of the adapter"),
        Part("optimizer", states, f"the states of {optimizer}" + (
            ", which may move to the host" if optimizer.startswith("paged") else "")),
        Part("activations", kept, f"of {tokens} tokens, " + (
            "recomputed but for the layers' inputs" if checkpoints else "kept for the backward pass")),
        Part("loss", loss, "the logits of trained positions, a chunk at a time"),
        Part("backward", max(0, backward - loss), "gradients of one layer" + (
            " and its weights unpacked" if quantised else "") + ", beyond the loss, which is over by then"),
        Part("scoring", scoring, "held-out rows, beyond what a step of training takes"),
        _allocator(device, every_layer, peak),
        _libraries(device),
    )  # fmt: skip


def _activations(found: Footprint, tokens: int, *, checkpoints: bool) -> tuple[int, int]:
    """(bytes that autograd keeps at its peak, what all layers keep together as if nothing were recomputed)."""
    from adapterhub.trainer.footprint import FLOAT

    on_gpu = found.device.kind == "cuda"
    layers = [
        tokens
        * layer.kept(
            found.itemsize,
            mask=0 if not found.recipe.dropout else 1 if on_gpu else FLOAT,
            # PEFT casts an adapter's input to float32, and autocast casts it back; not so on 4-bit layers on a GPU.
            shared_inputs=found.itemsize == FLOAT or (on_gpu and found.recipe.method == "qlora"),
            rows_apart=found.recipe.objective == "sft",
        )
        for layer in found.layers
    ]
    every_layer = sum(layers)
    inputs = len(layers) * tokens * int(found.config.hidden_size) * found.itemsize
    return (inputs + max(layers, default=0) if checkpoints else every_layer), every_layer


def _loss(found: Footprint, tokens: int, trained_share: float) -> int:
    """The head's chunk of logits in float32, twice while they are normalised, and a row a position: hidden state and gradient."""
    from adapterhub.trainer.head import CHUNK_BYTES

    positions = round(tokens * trained_share)
    logits = 4 * positions * int(found.config.vocab_size)
    rows = 2 * positions * int(found.config.hidden_size) * found.itemsize
    if (
        found.recipe.objective == "dpo"
    ):  # trl's own loss: all logits, their softmax and its gradient
        return 3 * 4 * tokens * int(found.config.vocab_size)
    return 2 * min(CHUNK_BYTES, logits) + rows


def _backward(found: Footprint, tokens: int) -> int:
    """Gradients of the widest layer's parts, and in 4 bits its largest weight unpacked to the dtype it computes in."""
    working = max((layer.working(found.itemsize) for layer in found.layers), default=0)
    return tokens * working + found.largest_quantised * found.itemsize


def _scoring(found: Footprint, trained_share: float) -> int:
    """The logits of a batch of held-out rows, all trained positions at once."""
    from adapterhub.evaluate.scoring import BATCH_TOKENS

    recipe = found.recipe
    if recipe.data.held_out == 0 or recipe.eval.rows == 0:
        return 0
    logits = 4 * round(BATCH_TOKENS * trained_share) * int(found.config.vocab_size)
    return _SCORING_COPIES * logits


def _allocator(device: Device, every_layer: int, peak: int) -> Part:
    if device.kind == "cuda":
        return Part(
            "allocator", round(CUDA_SLACK * peak), "what torch's cache usually holds besides"
        )
    if os.environ.get(NO_HEAP):
        return Part("allocator", 0, f"nothing, with {NO_HEAP} set")
    return Part(
        "allocator", round(HEAP_SLACK * every_layer), "holes in the heap, measured with glibc"
    )


def _libraries(device: Device) -> Part:
    if device.kind == "cuda":
        return Part("libraries", CUDA_CONTEXT, "the driver's context and cuBLAS")
    if find_spec("sklearn"):
        return Part(
            "libraries",
            LIBRARIES + SCIKIT_LEARN,
            "torch, transformers with scikit-learn, peft, trl",
        )
    return Part("libraries", LIBRARIES, "torch, transformers, peft, trl")


# What to change


def _changes(recipe: Recipe, device: Device, max_length: int) -> list[tuple[str, dict[str, Any]]]:
    """Changes that make a training smaller, each by itself, in the words of the recipe."""
    from adapterhub.trainer.loop import checkpoints_activations, optimizer_of

    found: list[tuple[str, dict[str, Any]]] = []
    if recipe.method == "lora":
        found.append(("method: qlora, the base in 4 bits", {"method": "qlora"}))
    if not checkpoints_activations(recipe, device):
        change: dict[str, Any] = {"gradient_checkpointing": True}
        found.append(("gradient_checkpointing: true, a third more time a step", change))
    if recipe.batch_size > 1:
        accumulation = recipe.gradient_accumulation * recipe.batch_size
        found.append(
            (
                f"batch_size: 1 with gradient_accumulation: {accumulation}, the same step in smaller pieces",
                {"batch_size": 1, "gradient_accumulation": accumulation},
            )
        )
    if max_length > 256:
        found.append(
            (
                f"max_length: {max_length // 2}, which cuts longer rows",
                {"max_length": max_length // 2},
            )
        )
    if "8bit" not in optimizer_of(recipe, device):
        found.append(("optimizer: adamw_8bit", {"optimizer": "adamw_8bit"}))
    if recipe.kind != "ia3" and recipe.rank > 4:
        found.append((f"rank: {recipe.rank // 2}", {"rank": recipe.rank // 2}))
    if recipe.target_modules == "all-linear":
        found.append(("target_modules: qkvo, attention alone", {"target_modules": "qkvo"}))
    if recipe.eval.rows != 0 and recipe.data.held_out:
        found.append(("eval: {rows: 0}, which leaves overfitting unseen", {"eval": {"rows": 0}}))
    return found


def _changed(recipe: Recipe, change: Mapping[str, Any]) -> Recipe:
    import msgspec

    values = {
        key: msgspec.structs.replace(getattr(recipe, key), **value)
        if isinstance(value, dict)
        else value
        for key, value in change.items()
    }
    return msgspec.structs.replace(recipe, **values)
