"""A stored adapter opened for arithmetic: its modules, and their factors as float32 arrays when they are wanted.

numpy only, so that comparing adapters needs no torch. The bytes are hashed again on opening: what is computed with is
what was added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapterhub.errors import IncompatibleError
from adapterhub.formats.peft import AdapterFacts, LoraModule, require_plain
from adapterhub.formats.safetensors import TensorFile
from adapterhub.store import Resolved, Store
from adapterhub.words import some

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """delta = b @ a, with b (out, rank) carrying the scale and a (rank, in)."""

    b: Array
    a: Array

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.b.shape[0], self.a.shape[1]

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


@dataclass(frozen=True)
class Adapter:
    """An open adapter. `facts.modules` says what there is; `factors` reads one module."""

    resolved: Resolved
    facts: AdapterFacts
    file: TensorFile

    @property
    def label(self) -> str:
        return self.resolved.label

    @property
    def modules(self) -> Mapping[str, LoraModule]:
        return self.facts.modules

    def factors(self, name: str) -> Factors:
        """The factors of module `name`, widened to float32, the scale alpha/r multiplied into B."""
        module = self.modules[name]
        b = self.file.array(module.b.name)  # (out, rank)
        a = self.file.array(module.a.name)  # (rank, in)
        scale = np.float32(module.scaling)
        return Factors(
            np.multiply(b, scale, dtype=np.float32),
            a.astype(np.float32, copy=not a.flags.writeable),
        )


@contextmanager
def opened(
    store: Store, parents: Sequence[Resolved], operation: str, *, plain: bool = True
) -> Iterator[list[Adapter]]:
    """The parents, verified and open while the block runs.

    Raises UnsupportedError, naming what `operation` ("merged", "exported", ...) can't honour, and IncompatibleError
    where two of them change a module of one name in different shapes. With plain=False an adapter may be more than its
    low-rank pairs, as long as it has any: what else it is (`facts.beyond_lora`) is then the caller's to tell.
    """
    with ExitStack() as stack:
        adapters = []
        for resolved in parents:
            facts = store.facts(resolved)
            if plain or not facts.modules:
                require_plain(facts, resolved.label, operation)
            adapters.append(
                Adapter(resolved, facts, stack.enter_context(store.tensors(resolved, verify=True)))
            )
        _require_same_shapes(adapters)
        _require_same_spelling(adapters)
        yield adapters


def all_modules(adapters: Sequence[Adapter]) -> list[str]:
    """The modules that any of the adapters changes, in order of their names."""
    return sorted({name for adapter in adapters for name in adapter.modules})


def _require_same_shapes(adapters: Sequence[Adapter]) -> None:
    first: dict[str, tuple[Adapter, LoraModule]] = {}
    problems = []
    for adapter in adapters:
        for name, module in adapter.modules.items():
            owner, other = first.setdefault(name, (adapter, module))
            mine = (module.out_features, module.in_features, module.embedding)
            theirs = (other.out_features, other.in_features, other.embedding)
            if mine != theirs:
                problems.append(
                    f"{name}: {owner.label} has {list(theirs[:2])}, {adapter.label} has {list(mine[:2])}"
                )
    if problems:
        raise IncompatibleError(
            f"{adapters[0].label} and the others are not for the same model.",
            why=f"Modules of one name differ in shape: {some(problems)}.",
        )


def _require_same_spelling(adapters: Sequence[Adapter]) -> None:
    """Refuses `layers.0.q_proj` in one and `model.layers.0.q_proj` in another: one module, of which PEFT would use one."""
    owners: dict[str, Adapter] = {}
    for adapter in adapters:
        owners |= dict.fromkeys(adapter.modules, adapter)
    for name, owner in owners.items():
        inner = name.partition(".")[2]
        if inner in owners and owners[inner] is not owner and name not in owners[inner].modules:
            raise IncompatibleError(
                f"{owner.label} and {owners[inner].label} name the same module differently.",
                why=f"{name} in one, {inner} in the other: they were trained on differently wrapped models.",
                hint="Save one of them again from the model class of the other.",
            )
