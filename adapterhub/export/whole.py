"""Whole trained tensors in an exported model: `modules_to_save`, biases, and embeddings that were saved when a vocabulary grew.

Each takes the place of the base's own. Where a base ties its head to its embedding, PEFT trains a *copy* of what
`modules_to_save` names, so the other side keeps the base's values; what PEFT merely saved beside a LoRA, or because the
vocabulary had grown, is still both sides at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from adapterhub.base import HEAD_NAME, BaseModel, Verdict, counterpart
from adapterhub.errors import IncompatibleError, UnsupportedError
from adapterhub.export.views import BaseView
from adapterhub.lora.adapter import Adapter
from adapterhub.lora.rows import Rows
from adapterhub.merge.recipe import Recipe
from adapterhub.merge.whole import all_whole, kept_from, whole_tensors
from adapterhub.words import some

_ORIGINAL = ".original_module."


@dataclass(frozen=True)
class Replaced:
    """Tensors of the model that whole ones take the place of."""

    names: Mapping[str, str] = field(default_factory=dict)
    """The name of the tensor written -> the whole tensor's name in the adapters."""
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By the name written."""
    copied: frozenset[str] = frozenset()
    """The names written that PEFT trained as copies, apart from what they were tied to."""
    vocabulary: int | None = None
    """Rows of the embedding, where it is not the base's number."""

    def sources(self, base: BaseModel) -> list[str]:
        """The base's tensors whose places are taken."""
        return [source_of(base, name) for name in self.names]

    def for_both_sides(self, base: BaseModel, untied: bool) -> Replaced:
        """With the head as well where it has, or is stored beside, the values of an embedding that is no copy."""
        whole = self.names.get(base.embedding or "")
        alone = HEAD_NAME not in self.names and base.embedding not in self.copied
        if not (base.tied and whole and alone and (untied or HEAD_NAME in base.tensors)):
            return self
        return replace(
            self,
            names={**self.names, HEAD_NAME: whole},
            shapes={**self.shapes, HEAD_NAME: self.shapes[str(base.embedding)]},
        )


def whole_shapes(adapters: Sequence[Adapter], recipe: Recipe) -> dict[str, tuple[int, ...]]:
    """The whole tensors of the result by their names in the adapters, and their shapes."""
    if recipe.saved_from is None:
        return {name: info.shape for name, info in all_whole(adapters).items()}
    kept = kept_from(adapters, recipe.saved_from, torch.device("cpu"))
    return {name: tensor.shape for name, tensor in kept.items()}


def beside_whole(
    adapter: Adapter, base: BaseModel, verdict: Verdict, whole: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Where the modules belong that fit the whole weight they were saved with, but not the base's: the vocabulary grew."""
    found = {}
    for name in adapter.modules.keys() - verdict.placement.keys():
        module = adapter.modules[name]
        across = base.stores_across(name, module)
        shape = (module.out_features, module.in_features)
        twin = counterpart(base, f"{name}.weight")
        if twin is not None and whole.get(f"{name}.weight") == (shape[::-1] if across else shape):
            found[name] = twin
    return found


@dataclass(frozen=True)
class Seen:
    """The base's values as the export writes them: through its view, and whole tensors in place of their own."""

    view: BaseView
    replaced: Replaced
    values: Callable[[str], Rows]
    """Opens a whole tensor of the result by its name in the adapters."""

    def __call__(self, name: str) -> Rows | None:
        """The values of the tensor written as `name`, in rows as they are stored; None where they are those stored."""
        if (whole := self.replaced.names.get(name)) is not None:
            return self.values(whole)
        return self.view.seen(source_of(self.view.model, name))

    def rows(self, name: str) -> Rows:
        """The same, read from the base where they are those stored."""
        rows = self(name)
        return self.view.rows(source_of(self.view.model, name)) if rows is None else rows


def changed_by(view: BaseView, taken: Replaced) -> Callable[[str], bool]:
    """Whether a tensor comes out with other values than the base stores, though no delta is added."""
    return lambda name: name in taken.names or view.changes(source_of(view.model, name))


def source_of(base: BaseModel, name: str) -> str:
    """The base's tensor that the tensor written as `name` is made of: a head that it lacks is its embedding."""
    return name if name in base.tensors else str(base.embedding)


def written_as(base: BaseModel, module: str, tensor: str) -> str:
    """The name of the tensor written for what the adapter calls `module`, found as `tensor`: a tied head is its own."""
    head = module.rpartition(".")[2] == HEAD_NAME.removesuffix(".weight")
    return HEAD_NAME if head and tensor == base.embedding else tensor


def replaced(
    base: BaseModel, whole: Mapping[str, tuple[int, ...]], adapters: Sequence[Adapter]
) -> Replaced:
    """Where in `base` the whole tensors belong, by name and shape.

    UnsupportedError for one that the base has no place for, IncompatibleError for one of another shape, unless it is
    an embedding or a head of another vocabulary, and both agree on it.
    """
    names: dict[str, str] = {}
    lone, misshapen = [], []
    for name, shape in whole.items():
        if _ORIGINAL in name and name.replace(_ORIGINAL, ".") in whole:
            continue  # what the module was before it was trained: PEFT saves it beside a vocabulary that grew
        twin = counterpart(base, name)
        if twin is None:
            lone.append(name)
            continue
        written = written_as(base, name.removesuffix(".weight"), twin)
        there = base.tensors[twin].shape
        if names.get(written, name) != name:
            raise IncompatibleError(
                f"{' and '.join(adapter.label for adapter in adapters)} name the same weight differently.",
                why=f"{names[written]} and {name} are both the base's {written}.",
                hint="Train them through the same class of transformers, or take one's: --saved-from NAME",
            )
        if shape != there and not (_of_words(base, written) and shape[1:] == there[1:]):
            misshapen.append(f"{name} is {list(shape)}, the base's is {list(there)}")
        names[written] = name
    who = " and ".join(adapter.label for adapter in adapters)
    if lone:
        raise UnsupportedError(
            f"{who} can't be exported: {base.label} has no {some(lone)}.",
            why="A trained part that is new to the base, such as a classifier's head, needs another architecture than "
            f"{base.architecture or 'the base'} has.",
            hint=f"Load it with PEFT: adapterhub checkout {adapters[0].label} DIR",
        )
    if misshapen:
        raise IncompatibleError(
            f"{who} doesn't fit the base {base.label}.",
            why=f"{some(misshapen)}.",
            hint="Name the base it was trained on: --base FOLDER_OR_REPO",
        )
    copied = _copied(names, adapters)
    before = names.get(base.embedding or "", "").removesuffix(".weight") + f"{_ORIGINAL}weight"
    if base.tied and base.embedding in copied and HEAD_NAME not in names and before in whole:
        names[HEAD_NAME] = before
    if base.tied and not copied & names.keys() and _one_matrix(names, base, adapters):
        del names[HEAD_NAME]
    shared = base.tied and base.embedding is not None and HEAD_NAME in names.keys() - copied
    if shared and base.embedding not in names:  # the one matrix of both sides, saved as the head's
        names[str(base.embedding)] = names.pop(HEAD_NAME)
    shapes = {written: whole[name] for written, name in names.items()}
    return Replaced(names, shapes, copied, _vocabulary(base, shapes, copied, who))


def _one_matrix(names: Mapping[str, str], base: BaseModel, adapters: Sequence[Adapter]) -> bool:
    """Whether every adapter saved one matrix twice, as embedding and as head: then they are still tied."""
    both = [names[name] for name in (base.embedding, HEAD_NAME) if name and name in names]
    if len(both) < 2:
        return False
    for adapter in adapters:
        stored = whole_tensors(adapter)
        pair = [stored[name].name for name in both if name in stored]
        if len(pair) == 1 or (pair and adapter.file.raw(pair[0]) != adapter.file.raw(pair[1])):
            return False
    return True


def _copied(names: Mapping[str, str], adapters: Sequence[Adapter]) -> frozenset[str]:
    """Those that `modules_to_save` names, unless PEFT was told to keep what is tied tied."""
    saved = {
        name
        for adapter in adapters
        if not adapter.facts.document.get("ensure_weight_tying")
        for name in adapter.facts.config.modules_to_save
    }
    return frozenset(
        written for written, name in names.items() if any(_is_in(name, one) for one in saved)
    )


def _is_in(name: str, saved: str) -> bool:
    """Whether a tensor is of a module whose name ends with `saved`, which is all that PEFT asks for."""
    parts = name.split(".")[:-1]
    return any(".".join(parts[: end + 1]).endswith(saved) for end in range(len(parts)))


def _of_words(base: BaseModel, written: str) -> bool:
    """Whether a tensor has a row for every word of the vocabulary."""
    return written in (base.embedding, HEAD_NAME)


def _vocabulary(
    base: BaseModel, shapes: Mapping[str, tuple[int, ...]], copied: frozenset[str], who: str
) -> int | None:
    """The new number of rows. IncompatibleError where embedding and head would have different ones."""
    if base.embedding is None:
        return None
    before = base.tensors[base.embedding].shape[0]
    sizes = {name: shapes.get(name, (before,))[0] for name in (base.embedding, HEAD_NAME)}
    if base.tied and HEAD_NAME not in shapes and base.embedding not in copied:
        del sizes[HEAD_NAME]  # it follows the embedding
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise IncompatibleError(
            f"{who} has another vocabulary than {base.label} on one side only.",
            why=f"Rows: {told}.",
            hint="Save both when training: save_embedding_layers=True",
        )
    after = sizes[base.embedding]
    return after if after != before else None
