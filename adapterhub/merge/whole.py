"""Whole trained tensors in a merge (`modules_to_save`, biases), each standing for its difference from the base's.

Where every step is a sum whose weights add up to 1 the base drops out of Σ wᵢ(Wᵢ - W₀) + W₀, and the values themselves
are summed. Names are those of the base's own parameters: what PEFT calls `q_proj.base_layer.bias` in an adapter that
changes q_proj, and `q_proj.bias` in one that doesn't, is one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from adapterhub.errors import FormatError, IncompatibleError, UnsupportedError, UsageError
from adapterhub.formats.keys import parse_key
from adapterhub.formats.safetensors import FLOATS, TensorInfo
from adapterhub.lora.adapter import Adapter, all_modules
from adapterhub.lora.rows import Rows, blocks
from adapterhub.merge.engine import Engine
from adapterhub.merge.methods.combining import WeightedSum
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.stages import Stage, SumStage, delta_of
from adapterhub.merge.weights import BaseWeights, Difference, StoredRows
from adapterhub.words import some

_ADDS_UP = 1e-9
_BASE_LAYER = ".base_layer"


@dataclass(frozen=True)
class WholeTensor:
    """A whole tensor of the result."""

    shape: tuple[int, ...]
    values: Callable[[Stage], Rows]
    """From the merged stage to the values written."""


def whole_tensors(adapter: Adapter) -> dict[str, TensorInfo]:
    """The whole trained tensors of an adapter, by name. UnsupportedError for one that can't be merged."""
    wanted = {*adapter.facts.saved, *adapter.facts.biases}
    found: dict[str, TensorInfo] = {}
    seen: set[str] = set()
    for key, info in adapter.file.infos.items() if wanted else ():
        parsed = parse_key(key)
        if parsed.canonical not in wanted or parsed.canonical in seen:
            continue
        seen.add(parsed.canonical)
        name = f"{parsed.module.removesuffix(_BASE_LAYER)}.{parsed.leaf}"
        wrong = (
            f"is {info.dtype}" if info.dtype not in FLOATS
            else "is empty" if info.count == 0
            else "is there twice" if name in found
            else None
        )  # fmt: skip
        if wrong is not None:
            raise UnsupportedError(
                f"{adapter.label} can't be merged: its {name} {wrong}.",
                why="Whole weights must be floating-point values, one tensor of a name.",
            )
        found[name] = info
    return dict(sorted(found.items()))


def all_whole(adapters: Sequence[Adapter]) -> dict[str, TensorInfo]:
    """The whole tensors of all adapters. IncompatibleError where two of one name differ in shape."""
    found: dict[str, tuple[Adapter, TensorInfo]] = {}
    problems = []
    for adapter in adapters:
        for name, info in whole_tensors(adapter).items():
            owner, other = found.setdefault(name, (adapter, info))
            if other.shape != info.shape:
                problems.append(
                    f"{name}: {owner.label} has {list(other.shape)}, {adapter.label} has {list(info.shape)}"
                )
    if problems:
        raise IncompatibleError(
            f"The whole weights of {' and '.join(a.label for a in adapters)} differ in shape.",
            why=f"{some(problems)}.",
            hint=f"Keep those of one of them: --saved-from {adapters[0].label}",
        )
    return {name: info for name, (_, info) in sorted(found.items())}


def whole_reader(
    adapter: Adapter, name: str, info: TensorInfo, base: BaseWeights | None, device: torch.device
) -> Callable[[], Rows]:
    """What opens an adapter's whole tensor: as its difference from the base's, or as it is where the base has none.

    IncompatibleError where the base's has another shape.
    """

    def values() -> Rows:
        return StoredRows(adapter.file, info, device)

    twin = base.counterpart(name) if base is not None else None
    if base is None or twin is None:
        return values
    if base.model.tensors[twin].shape != info.shape:
        raise IncompatibleError(
            f"{adapter.label}'s {name} doesn't fit the base {base.model.label}.",
            why=f"It is {list(info.shape)}, the base's is {list(base.model.tensors[twin].shape)}.",
            hint=f"Keep one adapter's as it is: --saved-from {adapter.label}",
        )
    return lambda: Difference(values(), base.rows(twin))


def adds_up(recipe: Recipe, stages: Mapping[str, Stage], names: Sequence[str]) -> bool:
    """Whether the weights of `names` are known and add up to 1 in every step, over inputs that all have them."""
    if not names:
        return True
    if not _static_sum(recipe):
        return False

    def whole(stage: Stage, name: str) -> bool:
        if not isinstance(stage, SumStage):
            return name in stage.shapes
        weights = stage.coefficients(name)
        return abs(sum(weights) - 1) <= _ADDS_UP and all(
            whole(part, name)
            for part, weight in zip(stage.inputs, weights, strict=True)
            if weight != 0
        )

    result = Engine(recipe, stages).result()
    return all(whole(result, name) for name in names)


def _static_sum(recipe: Recipe) -> bool:
    """Whether every step is a sum with weights known beforehand."""
    return all(
        step.spec.family == "sum" and "gram" not in step.spec.requires and step.rank is None
        for step in recipe.steps
    )


def require_one_form(
    recipe: Recipe, adapters: Sequence[Adapter], stages: Mapping[str, Stage], names: Sequence[str]
) -> None:
    """UnsupportedError where a method would have to see a low-rank pair and a whole weight of one module as one delta.

    A sum takes them apart; any method does where the whole weight is the base's, which PEFT saves beside a LoRA on an
    embedding.
    """
    changed = {*all_modules(adapters)}
    both = [name for name in names if name.removesuffix(".weight") in changed]
    if _static_sum(recipe) or not both:
        return
    for adapter in adapters:
        stage = stages[adapter.resolved.digest]
        for name in both:
            difference = stage.open(name)
            if difference is not None and any(bool(tile.any()) for _, tile in blocks(difference)):
                raise UnsupportedError(
                    f"{recipe.method} can't merge {name}.",
                    why=f"It has a low-rank pair, and in {adapter.label} its whole weight was trained too; "
                    "the method would have to see both as one.",
                    hint=f"Merge by a sum: --method linear   or: --saved-from {adapter.label}",
                )


def cannot_sum(names: Sequence[str], why: str, *, base: bool) -> UsageError:
    """The refusal where whole weights are neither a sum of values nor differences; `base` says whether one would help."""
    by_base = "Name the base: --base FOLDER_OR_REPO   or take" if base else "Take"
    return UsageError(
        f"The whole weights ({some(list(names))}) can't be merged by their values.",
        why="That takes a sum whose weights add up to 1, over adapters that all have them. " + why,
        hint=f"{by_base} them from one adapter: --saved-from NAME",
    )


def as_they_are(whole: Mapping[str, TensorInfo]) -> dict[str, WholeTensor]:
    """Sums of values."""
    return {name: WholeTensor(info.shape, _opens(name)) for name, info in whole.items()}


def kept_from(
    adapters: Sequence[Adapter], digest: str, device: torch.device
) -> dict[str, WholeTensor]:
    """The whole tensors of the one adapter `digest`. FormatError where it is none of them."""
    keeper = next((a for a in adapters if a.resolved.digest == digest), None)
    if keeper is None:
        raise FormatError(
            "The recipe takes whole weights from an adapter that it doesn't merge.",
            why=f"saved_from is {digest}.",
        )

    def values(info: TensorInfo) -> Callable[[Stage], Rows]:
        return lambda _: StoredRows(keeper.file, info, device)

    return {
        name: WholeTensor(info.shape, values(info)) for name, info in whole_tensors(keeper).items()
    }


def on_base(whole: Mapping[str, TensorInfo], base: BaseWeights) -> dict[str, WholeTensor]:
    """The base's values with the merged differences; sums of values where the base has none."""
    found = {}
    for name, info in whole.items():
        twin = base.counterpart(name)
        values = _opens(name) if twin is None else _added(base, twin, name)
        found[name] = WholeTensor(info.shape, values)
    return found


def written_as(name: str, modules: Mapping[str, object]) -> str:
    """The name in an adapter that has low-rank pairs of `modules`: there PEFT has the base's own layer inside its own."""
    module, _, leaf = name.rpartition(".")
    return f"{module}{_BASE_LAYER}.{leaf}" if module in modules else name


def _opens(name: str) -> Callable[[Stage], Rows]:
    return lambda stage: delta_of(stage, name)


def _added(base: BaseWeights, twin: str, name: str) -> Callable[[Stage], Rows]:
    merged = _opens(name)
    return lambda stage: WeightedSum([base.rows(twin), merged(stage)], [1.0, 1.0])
