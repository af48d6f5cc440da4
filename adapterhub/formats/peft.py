"""A PEFT folder, judged: which modules it changes and how, what else it holds, and what is wrong with it.

Nothing is loaded that could run code, nothing is dropped: a tensor that isn't part of a low-rank pair is named under
`saved`, `biases`, `magnitudes` or `other`, and it is for each operation to honour it or to refuse it by name.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.errors import FormatError, NotFoundError, UnsupportedError
from adapterhub.formats.keys import Key, parse_key
from adapterhub.formats.peft_config import CONFIG_NAME, DORA, PeftConfig, read_config
from adapterhub.formats.safetensors import FLOATS, TORCH_NAMES, TensorFile, TensorInfo
from adapterhub.manifest import LoraFacts
from adapterhub.words import natural, some

WEIGHTS_NAME = "adapter_model.safetensors"
NO_BASE = "it doesn't say which base it belongs to"
"""A remark that is pointless once the base is known otherwise."""
PICKLE_NAMES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")

_WHOLE_MODELS = ("model", "consolidated", "diffusion_pytorch_model")
_PAIRS = {"lora_A": "lora_B", "lora_embedding_A": "lora_embedding_B"}
_A_OF = {b: a for a, b in _PAIRS.items()}


@dataclass(frozen=True)
class LoraModule:
    """One low-rank pair: delta = scaling * B @ A, with A (rank, in_features) and B (out_features, rank)."""

    name: str
    rank: int
    in_features: int
    out_features: int
    scaling: float
    a: TensorInfo
    b: TensorInfo
    transposed: bool
    """Whether the configuration says that the base stores the weight as (in, out). PEFT saves one flag for all modules,
    the last one's, so for a given base `fits` decides."""
    embedding: bool

    @property
    def parameters(self) -> int:
        return self.rank * (self.in_features + self.out_features)


@dataclass(frozen=True)
class AdapterFacts:
    """Everything the tensors and the configuration say, without their values."""

    kind: str
    config: PeftConfig
    document: Mapping[str, Any]
    modules: Mapping[str, LoraModule]
    saved: tuple[str, ...]
    """Whole weights trained beside the factors (`modules_to_save`), by canonical name."""
    biases: tuple[str, ...]
    magnitudes: tuple[str, ...]
    other: tuple[str, ...]
    """Tensors of a convolution, an AdaLoRA triple, or of no kind known here."""
    standard_names: bool
    """Whether every tensor has the name PEFT looks for."""
    parameters: int
    dtype: str
    notes: tuple[str, ...] = ()

    @property
    def targets(self) -> list[str]:
        """The last parts of the changed modules' names: `q_proj`, `v_proj`, ..."""
        return sorted({name.rpartition(".")[2] for name in self.modules})

    def lora(self) -> LoraFacts | None:
        """The manifest's `lora` block; None for kinds that are no pair of factors."""
        if self.config.peft_type not in ("LORA", "ADALORA"):
            return None
        ranks = [module.rank for module in self.modules.values()]
        config = self.config
        return LoraFacts(
            rank=config.rank if config.peft_type == "LORA" else max(ranks, default=config.rank),
            alpha=config.alpha,
            targets=self.targets or list(config.target_modules),
            modules=len(self.modules),
            parameters=self.parameters,
            dtype=self.dtype,
            rank_pattern=dict(config.rank_pattern),
            alpha_pattern=dict(config.alpha_pattern),
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
            bias=config.bias,
            modules_to_save=list(config.modules_to_save),
        )

    def beyond_lora(self, *, dora: bool = False, whole: bool = False) -> list[str]:
        """In words, all that a sum of low-rank deltas would drop; empty for a plain LoRA.

        Who honours DoRA magnitudes says `dora`; who honours whole weights and biases says `whole`.
        """
        found = [] if self.kind in ("lora", "dora") else [f"the kind {self.kind.upper()}"]
        found += [words for words in self.config.variants if not (dora and words == DORA)]
        embeddings = [module.name for module in self.modules.values() if module.embedding]
        for names, what in (
            (embeddings if dora and self.kind == "dora" else (), "DoRA on an embedding"),
            (() if self.kind == "dora" else self.magnitudes, "magnitude vectors without use_dora"),
            (() if whole else self.saved, "whole trained weights (modules_to_save)"),
            (() if whole else self.biases, "trained biases"),
            (self.other, "tensors that are no low-rank pair"),
        ):
            if names:
                found.append(f"{what}: {some(names)}")
        return found


def require_plain(
    facts: AdapterFacts, who: str, operation: str, *, dora: bool = False, whole: bool = False
) -> None:
    """Raises UnsupportedError naming everything in the adapter `who` that `operation` would lose (see `beyond_lora`)."""
    beyond = facts.beyond_lora(dora=dora, whole=whole)
    if beyond or not facts.modules:
        raise UnsupportedError(
            f"{who} can't be {operation}: it is more than a plain LoRA.",
            why="It has "
            + "; ".join(beyond or ["no low-rank pairs"])
            + ". Dropping that would change the model silently.",
            hint=f"It stays in the store as it is: adapterhub show {who}",
        )


def convert_hint(folder: Path) -> str:
    """The command that makes a pickled adapter one that can be added."""
    named = folder.resolve() if folder.name in ("", "..") else folder
    return f"adapterhub convert {quote(str(folder))} -o {quote(f'{named}-safetensors')}"


@dataclass(frozen=True)
class PeftFolder:
    """Where the two files of a PEFT adapter lie."""

    config: Path
    weights: Path


def find_peft(folder: Path) -> PeftFolder:
    """The adapter in `folder`. A pickle is refused; nothing is unpickled."""
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    if not config.is_file():
        raise NotFoundError(
            f"{folder} holds no adapter.",
            why=_why_none(folder),
            hint=_nearby_hint(folder) or "Give the folder that PEFT's save_pretrained wrote.",
        )
    if not weights.is_file():
        pickle = next((name for name in PICKLE_NAMES if (folder / name).is_file()), None)
        if pickle:
            raise FormatError(
                f"{folder.name}/{pickle} is a pickle, which can run code when it is loaded.",
                why="adapterhub reads safetensors only.",
                hint=convert_hint(folder),
            )
        raise NotFoundError(
            f"{folder} has an {CONFIG_NAME} but no {WEIGHTS_NAME}.",
            why="The configuration alone is no adapter.",
            hint=_nearby_hint(folder) or "Was the download finished?",
        )
    return PeftFolder(config, weights)


def read_facts(config_path: Path, weights: TensorFile) -> AdapterFacts:
    """Judges an adapter by its configuration and tensor table. FormatError where they contradict each other."""
    config, document = read_config(config_path)
    keys: dict[str, TensorInfo] = {}
    roles: dict[tuple[str, str], TensorInfo] = {}
    parts = _Parts()
    standard = True
    for name, info in weights.infos.items():
        key = parse_key(name)
        standard &= key.peft == name
        if (other := keys.get(key.canonical)) is not None:
            if key.role == "full" and _alike(weights, info, other):
                parts.twice.append(key.canonical)
                continue
            raise FormatError(
                f"Two tensors are both {key.canonical}.",
                why=f"{other.name!r} and {name!r}.",
            )
        keys[key.canonical] = info
        _sort_in(key, info, roles, parts, config)
    _set_aside_odd_shapes(roles, parts)
    modules = {}
    for (module, role), info in sorted(roles.items()):
        if role in _PAIRS:
            pair = roles.get((module, _PAIRS[role]))
            if pair is None:
                raise FormatError(
                    f"The module {module} has {role} but no {_PAIRS[role]}.",
                    why="Half of a pair is no adapter.",
                )
            modules[module] = _module(module, info, pair, config, role == "lora_embedding_A")
        elif (module, _A_OF[role]) not in roles:
            raise FormatError(
                f"The module {module} has {role} but no {_A_OF[role]}.",
                why="Half of a pair is no adapter.",
            )
    if not keys:
        raise FormatError("The adapter has no tensors at all.")
    if config.peft_type == "LORA" and not modules and not parts.other:
        raise FormatError("The configuration says LORA, but no tensor is a lora_A or lora_B.")
    kind = "dora" if config.use_dora and config.peft_type == "LORA" else config.peft_type.lower()
    return AdapterFacts(
        kind=kind,
        config=config,
        document=document,
        modules=modules,
        saved=tuple(parts.saved),
        biases=tuple(parts.biases),
        magnitudes=tuple(parts.magnitudes),
        other=tuple(parts.other),
        standard_names=standard,
        parameters=sum(info.count for info in weights.infos.values()),
        dtype=_dtype(
            [module.a for module in modules.values()] + [module.b for module in modules.values()]
            or list(keys.values())
        ),
        notes=tuple(_notes(config, modules, parts)),
    )


def scan_values(facts: AdapterFacts, weights: TensorFile) -> tuple[str, list[str]]:
    """Reads every value once: the content digest, and notes. FormatError for NaN and infinity.

    The content digest is of the tensors alone under their canonical names, so the same adapter in another key layout
    or with another README has the same content.
    """
    rows = []
    silent: dict[str, set[str]] = {}
    once: set[str] = set()
    for name, info in weights.infos.items():
        key = parse_key(name)
        if key.canonical in once:
            continue
        once.add(key.canonical)
        finite, any_value = weights.scan(name)
        if not finite:
            raise FormatError(
                f"The tensor {name} holds NaN or infinity.",
                why="Such an adapter poisons whatever it is merged into, and everybody on a shared server.",
                hint="Take an earlier checkpoint of that training.",
            )
        if not any_value and key.module in facts.modules and key.role in {*_PAIRS, *_A_OF}:
            silent.setdefault(key.module, set()).add(key.role)
        hashed = hashlib.sha256(weights.raw(name)).hexdigest()
        rows.append([key.canonical, info.dtype, list(info.shape), hashed])
    notes = []
    roles = " or ".join(sorted({role for found in silent.values() for role in found}))
    if silent and len(silent) == len(facts.modules):
        notes.append(
            f"every {roles} is zero: this adapter changes nothing (it was never trained, or its gradients were lost)"
        )
    elif silent:
        notes.append(
            f"{roles} is zero in {len(silent)} of {len(facts.modules)} modules: those change nothing"
        )
    return digest_of(canonical_bytes({"tensors": sorted(rows)})), notes


@dataclass
class _Parts:
    saved: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    """Whole weights that PEFT saved under two names: it does so where `modules_to_save` names a head of new words."""
    biases: list[str] = field(default_factory=list)
    magnitudes: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)


def _sort_in(
    key: Key,
    info: TensorInfo,
    roles: dict[tuple[str, str], TensorInfo],
    parts: _Parts,
    config: PeftConfig,
) -> None:
    plain_pair = key.role in _PAIRS or key.role in _A_OF
    if config.peft_type == "LORA" and plain_pair and key.leaf != "bias":
        roles[key.module, key.role] = info
    elif key.role == "lora_magnitude_vector":
        parts.magnitudes.append(key.canonical)
    elif key.role == "full" and key.leaf == "bias" and not _is_saved(key.module, config):
        parts.biases.append(key.canonical)
    elif key.role == "full" and config.peft_type in ("LORA", "ADALORA"):
        parts.saved.append(key.canonical)
    else:
        parts.other.append(key.canonical)


def _alike(weights: TensorFile, one: TensorInfo, other: TensorInfo) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and weights.raw(one.name) == weights.raw(other.name)
    )


def _set_aside_odd_shapes(roles: dict[tuple[str, str], TensorInfo], parts: _Parts) -> None:
    """A pair of which either factor is no matrix is no low-rank pair (convolutions, grouped layouts): both are `other`."""
    odd = {module for (module, _), info in roles.items() if len(info.shape) != 2}
    for module, role in [key for key in roles if key[0] in odd]:
        parts.other.append(parse_key(roles.pop((module, role)).name).canonical)


def _is_saved(module: str, config: PeftConfig) -> bool:
    return any(module == name or module.endswith("." + name) for name in config.modules_to_save)


def _module(
    name: str, a: TensorInfo, b: TensorInfo, config: PeftConfig, embedding: bool
) -> LoraModule:
    if a.dtype not in FLOATS or b.dtype not in FLOATS:
        raise FormatError(
            f"The factors of {name} are {a.dtype} and {b.dtype}, which are not floating point."
        )
    rank, in_features = a.shape
    out_features, b_rank = b.shape
    if rank != b_rank:
        raise FormatError(
            f"The factors of {name} don't fit each other.", why=f"A is {a.shape}, B is {b.shape}."
        )
    expected = config.module_rank(name)
    if rank != expected:
        raise FormatError(
            f"The configuration contradicts the tensors of {name}.",
            why=f"The configuration says rank {expected}, the tensors have rank {rank}.",
            hint="With a wrong rank the scale alpha/r is wrong too. Restore the adapter_config.json it was trained with.",
        )
    return LoraModule(
        name=name,
        rank=rank,
        in_features=in_features,
        out_features=out_features,
        scaling=config.module_scaling(name, rank),
        a=a,
        b=b,
        transposed=embedding or config.fan_in_fan_out,
        embedding=embedding,
    )


def _notes(config: PeftConfig, modules: Mapping[str, LoraModule], parts: _Parts) -> list[str]:
    notes = []
    if modules and all(module.scaling == 0 for module in modules.values()):
        notes.append("alpha is 0: this adapter changes nothing")
    last_parts = {name.rpartition(".")[2] for name in modules}
    missing = [
        target
        for target in config.target_modules
        if target.replace("_", "").isalnum() and target not in last_parts and modules
    ]
    if missing:
        notes.append(f"the configuration targets {some(missing)}, but no tensor belongs to them")
    if parts.twice:
        notes.append(f"it holds {some(parts.twice)} twice, with equal values")
    if parts.saved and not config.modules_to_save:
        notes.append(
            f"it holds whole weights ({some(parts.saved)}) although modules_to_save names none"
        )
    if config.claimed_base and config.base.repo is None:
        notes.append(
            f"its base is given as a path ({config.claimed_base}), which says nothing on another machine"
        )
    elif config.base.repo is None:
        notes.append(NO_BASE)
    return notes


def _dtype(infos: list[TensorInfo]) -> str:
    found = Counter(info.dtype for info in infos)
    return (
        "mixed" if len(found) > 1 else TORCH_NAMES.get(next(iter(found)), next(iter(found)).lower())
    )


def _why_none(folder: Path) -> str:
    if folder.is_dir():
        return f"There is no {CONFIG_NAME} in it."
    return "It is no folder." if folder.exists() else "There is no such folder."


def _nearby_hint(folder: Path) -> str:
    """How to add what lies in the folder all the same: a weights file of another name, or adapters below."""
    found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    lone = [path for path in found if not path.name.startswith(_WHOLE_MODELS)]
    if any(path.name == WEIGHTS_NAME for path in lone):
        return f"Put the {CONFIG_NAME} it was trained with beside {WEIGHTS_NAME}."
    if len(lone) == 1:
        return f"Give its weights by themselves: adapterhub add {quote(str(lone[0]))}"
    nested = sorted(folder.glob(f"*/{CONFIG_NAME}"), key=lambda path: natural(str(path)))
    if len(nested) > 1:
        return (
            f"There are {len(nested)} below it: adapterhub add {quote(str(folder))} --recursive"
            f"   or the last alone: adapterhub add {quote(str(nested[-1].parent))}"
        )
    return f"There is one below it: adapterhub add {quote(str(nested[0].parent))}" if nested else ""
