"""Two trainings that should differ in one thing: QLoRA holds the base in 4 bits, LoRA as it is. What each cost.

Everything is read from what the trainer attested. That may have been written by anybody: what isn't there is unknown, and
unknown on both sides is no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adapterhub.errors import IncompatibleError, UsageError
from adapterhub.tolerant import finite
from adapterhub.words import short, shown

if TYPE_CHECKING:
    from adapterhub.store import Resolved, Store

METHODS = ("qlora", "lora")
_SAME = (
    "base.fingerprint",
    "base.revision",
    "data.train_digest",
    "data.held_out_digest",
    "data.max_length",
    "template",
    "mask",
    "seed",
    "hardware.processes",
)
"""What is recorded by itself, beside the recipe. A revision and a fingerprint are both told: a person knows the one."""
_FREE = (
    "name",
    "method",
    "base",
    "preset",
    "template",
    "start_from",
    "save_every",
    "tensorboard",
    "data.path",
    "data.format",
    "data.replay.path",
    "eval.samples",
    "eval.sample_tokens",
)
"""Keys of a recipe that don't change the weights by themselves: what they point at is compared by its digest."""
_TOLD = ("hardware.device", "hardware.machine", "versions", "steps", "kept.step")
"""What may differ between trainings of one recipe; it is told, not refused."""
_DEEPEST = 8
"""Tables within tables; what lies deeper is compared as a whole."""


@dataclass(frozen=True)
class Training:
    """One adapter and what the trainer said about it."""

    adapter: Resolved
    body: Mapping[str, Any]

    @property
    def method(self) -> str | None:
        """qlora or lora; None where it isn't said."""
        found = self.get("recipe.method")
        return found if found in METHODS else None

    @property
    def cost(self) -> dict[str, float | None]:
        """The seconds it took, and the most memory it held in bytes; None where that wasn't recorded."""
        return {key: finite(self.body.get(key)) for key in ("seconds", "peak_memory")}

    def get(self, path: str) -> Any:
        """The value at a dotted path; None where there is none."""
        found: Any = self.body
        for key in path.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
        return found


@dataclass(frozen=True)
class Twins:
    """The QLoRA and the LoRA training, and how they differ beside that."""

    qlora: Training
    lora: Training
    differences: tuple[str, ...]
    """What a training of one recipe has in common and these have not, in words."""
    remarks: tuple[str, ...]
    """What may differ, and does."""

    @property
    def both(self) -> dict[str, Training]:
        """By their method."""
        return {"qlora": self.qlora, "lora": self.lora}


def find_twins(store: Store, names: Sequence[str], *, allow_mismatch: bool = False) -> Twins:
    """The two trainings, told apart by their method, in whichever order they are named.

    Raises:
        UsageError: not two adapters, or not one of each method.
        IncompatibleError: one wasn't made by the trainer, or they differ in more than the method and that isn't allowed.
    """
    if len(names) == 1:
        (one,) = (_training(store, name) for name in names)
        raise UsageError(
            "A pair is two adapters: one trained with QLoRA, one with LoRA.",
            why=f"{one.adapter.label} is the only one that was named.",
            hint=_how_to_train_its_twin(one),
        )
    if len(names) != 2:
        raise UsageError(
            f"A pair is two adapters; {len(names)} were named.",
            hint="adapterhub eval QLORA LORA --pair --data FILE",
        )
    first, second = (_training(store, name) for name in names)
    found = {one.method: one for one in (first, second)}
    if first.adapter.digest == second.adapter.digest:
        raise UsageError(
            "Both names are of one adapter.",
            why=f"{names[0]} and {names[1]} are @{short(first.adapter.digest)}.",
            hint=_how_to_train_its_twin(first),
        )
    if set(found) != set(METHODS):
        raise UsageError(
            "A pair is one adapter trained with QLoRA and one with LoRA.",
            why=" ".join(f"{one.adapter.label}: {_method(one)}." for one in (first, second)),
            hint=_how_to_train_its_twin(first),
        )
    qlora, lora = found["qlora"], found["lora"]
    differences = tuple(_differences(qlora, lora))
    if differences and not allow_mismatch:
        raise IncompatibleError(
            f"{qlora.adapter.label} and {lora.adapter.label} differ in more than how the base was held.",
            why="\n  ".join(differences),
            hint=f"{_how_to_train_its_twin(qlora)}\n  or compare them as they are: --allow-mismatch",
        )
    return Twins(qlora, lora, differences, tuple(_remarks(qlora, lora)))


def recipe_rows(twins: Twins) -> dict[str, Any]:
    """How to hold out the same rows as the trainings: held_out, split_seed, limit and max_length as `evaluate` takes
    them, where the QLoRA training recorded them as numbers."""
    of = twins.qlora
    told = {
        "held_out": of.get("data.held_out"),
        "split_seed": of.get("data.split_seed"),
        "limit": of.get("recipe.data.limit"),
        "max_length": of.get("data.max_length"),
    }
    kinds: dict[str, type] = {"held_out": float}
    return {
        key: kinds.get(key, int)(value)
        for key, value in told.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    }


def _training(store: Store, name: str) -> Training:
    adapter = store.resolve(name)
    for item in store.attestations(adapter.digest):
        if item.type == "provenance" and item.body.get("event") == "trained":
            return Training(adapter, item.body)
    raise IncompatibleError(
        f"{adapter.label} wasn't trained here: nothing is known of its recipe.",
        why="Whether two trainings differ in their method alone is told from what the trainer attests.",
        hint=f"adapterhub eval {name} base --data FILE  compares it with the base",
    )


def _method(one: Training) -> str:
    return f"method {shown(one.get('recipe.method'))}"


def _how_to_train_its_twin(one: Training) -> str:
    other = "lora" if one.method == "qlora" else "qlora"
    name = one.get("recipe.name")
    path = name if isinstance(name, str) else one.adapter.label
    return (
        f"Train its twin: adapterhub train RECIPE.yaml --set method={other} --name {path}-{other}"
    )


def _differences(a: Training, b: Training) -> Iterator[str]:
    for path in _SAME:
        yield from _beside(path, a, a.get(path), b, b.get(path))
    if (mine := _starts(a)) != (theirs := _starts(b)):
        yield from _beside("start_from", a, mine, b, theirs)
    mine_, theirs_ = (dict(_flat(one.get("recipe"))) for one in (a, b))
    for path in sorted({*mine_, *theirs_} - set(_FREE)):
        yield from _beside(f"recipe {path}", a, mine_.get(path), b, theirs_.get(path))


def _remarks(a: Training, b: Training) -> Iterator[str]:
    for path in _TOLD:
        mine, theirs = dict(_flat(a.get(path), path)), dict(_flat(b.get(path), path))
        for key in sorted({*mine, *theirs}):
            yield from _beside(key, a, mine.get(key), b, theirs.get(key))


def _beside(what: str, a: Training, mine: Any, b: Training, theirs: Any) -> Iterator[str]:
    if mine != theirs:
        yield f"{what}: {_method_of(a)} {_said(mine)}, {_method_of(b)} {_said(theirs)}"


def _method_of(one: Training) -> str:
    return str(one.method)


def _said(value: Any) -> str:
    if isinstance(value, str) and value.startswith("sha256:"):
        return short(value)
    return "unknown" if value is None else shown(value)


def _starts(one: Training) -> list[Any]:
    """The digests of what was trained on."""
    parents = one.get("parents")
    return [
        parent.get("digest")
        for parent in (parents if isinstance(parents, list) else [])
        if isinstance(parent, Mapping)
    ]


def _flat(table: Any, prefix: str = "", *, deep: int = _DEEPEST) -> Iterator[tuple[str, Any]]:
    """The leaves of nested tables by their dotted paths; a list is a leaf."""
    if not isinstance(table, Mapping) or not deep:
        yield prefix, table
        return
    for key, value in table.items():
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key), deep=deep - 1)
