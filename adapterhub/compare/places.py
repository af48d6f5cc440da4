"""Where in a model a module is: its layer, and attention or MLP. And how to say that of many modules in a few words.

Module names have no standard; what isn't recognised is called by its own name.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from adapterhub.words import some

Part = Literal["attention", "MLP", "other"]

# In the order in which a forward pass meets them, which is also the order of columns.
_ATTENTION = (
    "q_proj", "k_proj", "v_proj", "qkv_proj", "query", "key", "value", "query_key_value", "Wqkv", "c_attn", "q_a_proj",
    "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "q_lin", "k_lin", "v_lin", "wq", "wk", "wv", "to_q", "to_k", "to_v",
    "o_proj", "out_proj", "out_lin", "wo",
)  # fmt: skip
_MLP = (
    "gate_proj", "up_proj", "gate_up_proj", "w1", "w3", "fc1", "c_fc", "lin1", "dense_h_to_4h", "wi", "wi_0", "wi_1",
    "down_proj", "w2", "fc2", "lin2", "dense_4h_to_h",
)  # fmt: skip
_ORDER = {name: place for place, name in enumerate((*_ATTENTION, *_MLP))}
_PARTS: tuple[Part, ...] = ("attention", "MLP", "other")
_IN_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_IN_MLP = re.compile(r"mlp|ffn|feed_?forward|expert|moe|intermediate", re.IGNORECASE)
_MOST_DIGITS = 6
_MOST_RANGES = 4


@dataclass(frozen=True)
class Place:
    """`stack` is what comes before the layer's number (`model.layers`), `inner` what comes behind it, less other numbers.

    A module outside of any stack of layers has no `layer`, and its whole name is `inner`.
    """

    stack: str
    layer: int | None
    inner: str

    @property
    def column(self) -> str:
        """The last part of the name: `q_proj`."""
        return self.inner.rpartition(".")[2]

    @cached_property
    def part(self) -> Part:
        """By the path if that says it, else by the column."""
        if _IN_ATTENTION.search(self.inner):
            return "attention"
        if _IN_MLP.search(self.inner):
            return "MLP"
        if self.column in _ORDER:
            return "attention" if self.column in _ATTENTION else "MLP"
        return "other"


def place_of(module: str) -> Place:
    """`model.layers.3.mlp.experts.7.up_proj` is in layer 3 of `model.layers`, as `mlp.experts.up_proj`."""
    parts = module.split(".")
    for index, part in enumerate(parts[:-1]):
        if index and _is_number(part):
            inner = ".".join(part for part in parts[index + 1 :] if not _is_number(part))
            return Place(".".join(parts[:index]), int(part), inner or parts[-1])
    return Place("", None, module)


def columns_of(places: Iterable[Place]) -> dict[str, str]:
    """Inner name -> a short name of its own, in the order of columns: attention, MLP, others."""
    inner = sorted(
        {(_PARTS.index(p.part), _ORDER.get(p.column, len(_ORDER)), p.inner) for p in places}
    )
    names = [name for _, _, name in inner]
    return {name: _shortest(name, names) for name in names}


def stack_names(stacks: Collection[str]) -> dict[str, str]:
    """Stack -> what tells it from the others: `encoder` of `model.encoder.layers`; empty where there is only one."""
    names: dict[str, str] = {}
    for stack in sorted(stacks):
        parts = stack.split(".")
        own = [part for part in parts if any(part not in other.split(".") for other in stacks)]
        names[stack] = ".".join(own) if own else stack
    return dict.fromkeys(names, "") if len(names) == 1 else names


def in_words(places: Collection[Place], among: Collection[Place]) -> str:
    """`attention and the MLPs of layers 20-28`, out of all the places `among` which they were found.

    A part (attention, MLP) of a layer is named where at least half of its modules are meant; what is left over is named
    by its column.
    """
    stacks = stack_names({place.stack for place in among if place.layer is not None})
    said: dict[tuple[str, str], list[str]] = {}
    for stack in sorted({place.stack for place in places if place.layer is not None}):
        mine = [place for place in places if place.layer is not None and place.stack == stack]
        theirs = [place for place in among if place.layer is not None and place.stack == stack]
        for what, layers in _by_part(mine, theirs):
            where = _layers(layers, sorted({p.layer for p in theirs if p.layer is not None}))
            said.setdefault((where, stacks[stack]), []).append(what)
    phrases = [
        f"{_and(whats)} of {where}" + (f" of {stack}" if stack else "")
        for (where, stack), whats in said.items()
    ]
    outside = sorted({place.inner for place in places if place.layer is None})
    return _and([*phrases, *([some(outside)] if outside else [])])


def _by_part(mine: list[Place], theirs: list[Place]) -> list[tuple[str, list[int]]]:
    """(what, layers): whole parts first, then columns."""
    there = Counter((place.part, place.layer) for place in theirs)
    here: dict[tuple[Part, int], list[Place]] = defaultdict(list)
    for place in mine:
        here[place.part, place.layer or 0].append(place)
    whole: dict[Part, list[int]] = defaultdict(list)
    left: dict[str, set[int]] = defaultdict(set)
    for (part, layer), meant in sorted(here.items(), key=lambda item: item[0][1]):
        if part != "other" and 2 * len(meant) >= there[part, layer] > 1:
            whole[part].append(layer)
        else:
            for place in meant:
                left[place.column].add(layer)
    named: dict[Part, str] = {"attention": "attention", "MLP": "the MLPs"}
    return [
        *((words, whole[part]) for part, words in named.items() if part in whole),
        *((column, sorted(layers)) for column, layers in left.items()),
    ]


def _layers(layers: Sequence[int], all_layers: Sequence[int]) -> str:
    if len(layers) == len(all_layers) > 1:
        return "all layers"
    ranges: list[tuple[int, int]] = []
    for layer in layers:
        if ranges and layer == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], layer)
        else:
            ranges.append((layer, layer))
    if len(ranges) > _MOST_RANGES:
        return f"{len(layers)} of the layers {layers[0]}-{layers[-1]}"
    named = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ("layer " if len(layers) == 1 else "layers ") + _and(named)


def _and(words: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(words[:-1]), *words[-1:]) if part)


def _shortest(name: str, names: Sequence[str]) -> str:
    """As many of the last parts of `name` as tell it from all the others."""
    parts = name.split(".")
    for count in range(1, len(parts)):
        tail = parts[-count:]
        if sum(other.split(".")[-count:] == tail for other in names) == 1:
            return ".".join(tail)
    return name


def _is_number(part: str) -> bool:
    return part.isascii() and part.isdecimal() and len(part) <= _MOST_DIGITS
