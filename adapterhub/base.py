"""What a base model *is*: a repository, a revision, and the fingerprint of its weights. Does this adapter fit it?

A repository's name is a label, and two models of one shape differ only in their weights. The fingerprint is computed
from names, shapes and a fixed sample of the values of every tensor, so it depends neither on how the weights are cut
into files nor on an exact upcast, and it costs milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from adapterhub.canonical import canonical_bytes, digest_of, read_object
from adapterhub.errors import FormatError, NotFoundError
from adapterhub.formats.peft import AdapterFacts
from adapterhub.formats.peft_config import looks_like_repo
from adapterhub.formats.safetensors import FLOATS, TORCH_NAMES, TensorFile, TensorInfo
from adapterhub.fsio import is_folder, make_directory, typed_path, write_file
from adapterhub.manifest import BaseClaim, Count, is_commit, is_safe_relative_path, is_unicode
from adapterhub.words import some

SAMPLES = 64
"""Values sampled from each tensor, evenly spread from its first to its last."""

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
EMBEDDING_SUFFIXES = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "tokens_embed.weight",
    ".embeddings.weight",
)
HEAD_NAME = "lm_head.weight"
_CONFIG_ASIDE = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
# transformers.pytorch_utils.Conv1D: where it is used, and what those modules are called.
_CONV1D_MODELS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
_CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})

Comparison = Literal["equal", "different", "unknown"]
_SNAPSHOT = re.compile(r"models--(?P<repo>.+)/snapshots/(?P<revision>[0-9a-f]{40})/?\Z")


@dataclass(frozen=True)
class BaseModel:
    """A base model on this machine. `tensors` says where each weight lies; nothing is loaded."""

    path: Path
    repo: str | None
    revision: str | None
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def label(self) -> str:
        """How people call it: the repository where it is known, else the folder's name."""
        return self.repo or self.path.name

    @cached_property
    def shards(self) -> tuple[Path, ...]:
        """The weight files, in order of their names."""
        return tuple(sorted({info.path for info in self.tensors.values()}))

    @cached_property
    def config_digest(self) -> str:
        """Of config.json, but for what no number depends on: two models of the same weights may compute differently."""
        told = {key: value for key, value in self.config.items() if key not in _CONFIG_ASIDE}
        return digest_of(canonical_bytes(told))

    @cached_property
    def embedding(self) -> str | None:
        """The name of the input embedding's weight."""
        return next(
            (name for name in sorted(self.tensors) if name.endswith(EMBEDDING_SUFFIXES)), None
        )

    @property
    def main_dtype(self) -> str:
        """The dtype of most of its values, in torch's word; integers, as of packed weights, in the file's own."""
        sizes: dict[str, int] = {}
        for info in self.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.count
        most = max(sizes, key=lambda dtype: sizes[dtype])
        return TORCH_NAMES.get(most, most)

    @property
    def architecture(self) -> str | None:
        """The class that transformers builds it as, where the configuration names one."""
        named = self.config.get("architectures")
        first = named[0] if isinstance(named, list) and named else None
        return first if isinstance(first, str) else None

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's part of the configuration of a model that is more; empty where there is none."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else {}

    @cached_property
    def tied(self) -> bool:
        """Whether the head shares the input embedding's weight."""
        stated = self.config.get("tie_word_embeddings", self.text_config.get("tie_word_embeddings"))
        if stated is not None:
            return bool(stated)
        return not any(name.endswith(f".{HEAD_NAME}") or name == HEAD_NAME for name in self.tensors)

    @cached_property
    def prefixes(self) -> tuple[str, ...]:
        """The first parts of the tensors' names: what the outer model may have put before a module's name."""
        return tuple(sorted({name.partition(".")[0] for name in self.tensors}))

    @cached_property
    def fingerprint(self) -> str:
        """`sha256:` over name, shape and sampled values (as float32) of every tensor, tied duplicates skipped."""
        rows = []
        files = {path: TensorFile(path) for path in self.shards}
        try:
            samples = {name: _sample(files[info.path], info) for name, info in self.tensors.items()}
        finally:
            for file in files.values():
                file.close()
        for name, info in sorted(self.tensors.items()):
            if name == HEAD_NAME and self._repeats_embedding(samples):
                continue
            rows.append([name, list(info.shape), samples[name]])
        return digest_of(canonical_bytes({"fingerprint": 1, "samples": SAMPLES, "tensors": rows}))

    def _repeats_embedding(self, samples: Mapping[str, str]) -> bool:
        twin = self.embedding
        if twin is None:
            return False
        return (
            samples[twin] == samples[HEAD_NAME]
            and self.tensors[twin].shape == self.tensors[HEAD_NAME].shape
        )

    def is_conv1d(self, module: str) -> bool:
        """Whether transformers builds `module` as Conv1D, whose weight is stored (in, out).

        Told by the architecture, since a square weight doesn't show it.
        """
        kind = self.config.get("model_type")
        if not isinstance(kind, str) or kind not in _CONV1D_MODELS:
            return False
        return module.rpartition(".")[2] in _CONV1D_MODULES

    def stores_across(self, name: str, module: Shaped) -> bool:
        """Whether the weight of the adapter's module `name` is stored (in, out): an embedding, or a Conv1D."""
        return module.embedding or self.is_conv1d(name)

    @property
    def claim(self) -> BaseClaim:
        """What an adapter trained on this base should say."""
        return BaseClaim(self.repo, self.revision)


class Shaped(Protocol):
    """What of a module decides where it fits."""

    @property
    def out_features(self) -> int: ...

    @property
    def in_features(self) -> int: ...

    @property
    def embedding(self) -> bool: ...


@dataclass(frozen=True)
class Placed:
    """Where modules belong in a base, and which don't: not there at all, or of another shape (in words)."""

    placement: Mapping[str, str]
    transposed: frozenset[str]
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    total: int


@dataclass(frozen=True)
class Verdict:
    """Does an adapter fit a base? `reasons` are sentences; with `ok` they are remarks, without it the refusal."""

    ok: bool
    reasons: tuple[str, ...]
    modules_found: int
    modules_total: int
    fingerprint: Comparison
    placement: Mapping[str, str]
    """For every module found: the base tensor its delta is added to."""
    transposed: frozenset[str]
    """The modules whose weight the base stores as (in, out): embeddings, and Conv1D as in GPT-2."""


def read_base(folder: Path, *, repo: str | None = None, revision: str | None = None) -> BaseModel:
    """The model in `folder`. NotFoundError or FormatError where it is no safetensors model."""
    folder = folder.resolve()
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise NotFoundError(
            f"{folder} is no model folder.",
            why="There is no config.json in it.",
            hint="Name the folder that save_pretrained wrote, or a repository: --base org/name",
        )
    config = read_object(config_path, f"{folder.name}/config.json")
    if match := _SNAPSHOT.search(folder.as_posix()):
        repo = repo or match["repo"].replace("--", "/", 1)
        revision = revision or match["revision"]
    return BaseModel(
        folder, repo, revision if is_commit(revision) else None, config, _tensors(folder)
    )


def fits(
    facts: AdapterFacts,
    base: BaseModel,
    *,
    claim: BaseClaim | None = None,
    known_fingerprint: str | None = None,
) -> Verdict:
    """Whether the adapter's modules are in `base` with the right shapes, and whether the claims agree.

    Args:
        facts: the adapter's modules and configuration.
        base: the model at hand.
        claim: the adapter's claimed base; the configuration's claim when left out.
        known_fingerprint: of the base it was trained on or checked against before, if any.
    """
    placed = place(facts.modules, base)
    return judge(
        placed, base, claim=claim or facts.config.base, known_fingerprint=known_fingerprint
    )


def place(modules: Mapping[str, Shaped], base: BaseModel) -> Placed:
    """Where in `base` each module belongs. Depends on names and shapes only, so adapters that share those share it."""
    placement: dict[str, str] = {}
    transposed: set[str] = set()
    missing, misshapen = [], []
    for name, module in modules.items():
        tensor = find_weight(base, name)
        if tensor is None:
            missing.append(name)
            continue
        shape = (module.out_features, module.in_features)
        across = base.stores_across(name, module)
        if base.tensors[tensor].shape != (shape[::-1] if across else shape):
            found = list(base.tensors[tensor].shape)
            misshapen.append(f"{name}: the adapter is for {list(shape)}, the base has {found}")
            continue
        placement[name] = tensor
        if across:
            transposed.add(name)
    return Placed(placement, frozenset(transposed), tuple(missing), tuple(misshapen), len(modules))


def judge(
    placed: Placed, base: BaseModel, *, claim: BaseClaim, known_fingerprint: str | None
) -> Verdict:
    """The verdict on an adapter whose modules are `placed`; arguments as for `fits`."""
    comparison: Comparison = "unknown"
    problems, remarks = [], []
    if known_fingerprint is not None:
        comparison = "equal" if known_fingerprint == base.fingerprint else "different"
    if comparison == "different":
        problems.append(
            "the fingerprint of the weights differs: the adapter belongs to "
            f"{(known_fingerprint or '')[:19]}…, {base.label} is {base.fingerprint[:19]}…"
        )
    elif comparison == "unknown":
        problems += claims_differ(claim, base.claim)
        if not problems and (claim.repo is None or base.repo is None):
            remarks.append(
                "its base can't be told by name; only module names and shapes were checked"
            )
    if placed.missing:
        problems.append(
            f"{len(placed.missing)} of {placed.total} modules are not in {base.label}: {some(placed.missing)}"
        )
    if placed.misshapen:
        problems.append(
            f"{len(placed.misshapen)} modules have other shapes: {some(placed.misshapen)}"
        )
    return Verdict(
        ok=not problems,
        reasons=tuple(problems + remarks),
        modules_found=len(placed.placement),
        modules_total=placed.total,
        fingerprint=comparison,
        placement=placed.placement,
        transposed=placed.transposed,
    )


def claims_differ(one: BaseClaim, other: BaseClaim) -> list[str]:
    """What two claims are *known* to disagree about: repository or revision. Unknown never disagrees."""
    if not _comparable(one.repo, other.repo):
        return []
    if _label(one.repo) != _label(other.repo):
        return [f"the repository differs: {one.repo} and {other.repo}"]
    if one.revision and other.revision and one.revision != other.revision:
        return [
            f"the revision of {one.repo} differs: {one.revision[:12]} and {other.revision[:12]}"
        ]
    return []


def find_weight(base: BaseModel, module: str) -> str | None:
    """The tensor of `base` that the adapter's module stands for, allowing for the outer model's prefix."""
    candidates = [
        module,
        module.partition(".")[2],
        *(f"{prefix}.{module}" for prefix in base.prefixes),
    ]
    for candidate in candidates:
        if candidate and f"{candidate}.weight" in base.tensors:
            return f"{candidate}.weight"
    if module == HEAD_NAME.removesuffix(".weight") and base.tied:
        return base.embedding
    return None


def counterpart(base: BaseModel, saved: str) -> str | None:
    """The tensor of `base` that a whole trained tensor takes the place of; None where there is none."""
    module, _, leaf = saved.rpartition(".")
    weight = find_weight(base, module)
    name = None if weight is None else f"{weight.removesuffix('.weight')}.{leaf}"
    return name if name in base.tensors else None


def _comparable(one: str | None, other: str | None) -> bool:
    """Bare names (`gpt2`) are aliases on the Hub, so they are compared among themselves only."""
    return one is not None and other is not None and ("/" in one) == ("/" in other)


def _label(repo: str | None) -> str:
    return (repo or "").lower()  # the Hub resolves repository names without regard to case


def _tensors(folder: Path) -> dict[str, TensorInfo]:
    index_path, single = folder / INDEX_NAME, folder / SINGLE_NAME
    weight_map = None
    shards = [SINGLE_NAME]
    if not single.is_file() and index_path.is_file():  # in transformers' order
        weight_map = read_object(index_path, INDEX_NAME).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(shard, str) for shard in weight_map.values()
        ):
            raise FormatError(f"{folder.name}/{INDEX_NAME} has no weight_map.")
        shards = sorted(set(weight_map.values()))
        if not all(is_safe_relative_path(shard) and "/" not in shard for shard in shards):
            raise FormatError(f"{folder.name}/{INDEX_NAME} points outside its folder.")
    elif not single.is_file():
        raise NotFoundError(
            f"{folder} has no safetensors weights.",
            why=f"Neither {SINGLE_NAME} nor {INDEX_NAME} is there.",
            hint="Save the model with save_pretrained(..., safe_serialization=True).",
        )
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        if not (folder / shard).is_file():
            raise NotFoundError(
                f"The shard {shard} of {folder} is missing.", hint="Fetch the model again."
            )
        with TensorFile(folder / shard) as file:
            tensors.update(file.infos)
    if weight_map is not None and set(weight_map) != set(tensors):
        wrong = sorted(set(weight_map) ^ set(tensors))
        raise FormatError(
            f"The index of {folder.name} and its shards disagree.", why=f"About: {some(wrong)}."
        )
    return tensors


def _sample(file: TensorFile, info: TensorInfo) -> str:
    if info.count == 0:
        return ""
    import numpy as np

    indices = np.linspace(0, info.count - 1, min(SAMPLES, info.count)).astype(np.int64)
    values = file.take(info.name, indices)
    if info.dtype in FLOATS:
        values = values.astype(np.float32) + np.float32(0)  # -0 and 0 are the same weight
    return hashlib.sha256(
        np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes()
    ).hexdigest()


class _Record(msgspec.Struct):
    path: str
    fingerprint: str
    repo: str | None = None
    revision: str | None = None
    parameters: Count = 0
    architecture: str | None = None


def _record(path: Path) -> dict[str, Any]:
    record = read_object(path, str(path))
    try:
        known = msgspec.convert(record, _Record)
        if not Path(known.path).is_absolute():
            raise ValueError("Its path leads from nowhere")
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{path} is no record of a base.",
            why=f"{error}. It must have a path and a fingerprint, and may have a repository and a revision.",
            hint="Remove that file, and add the base again: adapterhub base add FOLDER",
        ) from error
    return {**msgspec.to_builtins(known), **record}


class BaseRegistry:
    """Where bases lie on *this* machine: one small JSON file for each, outside the store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def records(self) -> list[dict[str, Any]]:
        """What `base ls` shows: repo, revision, path, fingerprint, parameters. FormatError for a file that is no record."""
        return [_record(path) for path in sorted(self.folder.glob("*.json"))]

    def remember(self, base: BaseModel) -> dict[str, Any]:
        """Records a base; the same folder again replaces its record. FormatError for a path that is no UTF-8."""
        if not is_unicode(str(base.path)):
            raise FormatError(
                f"The base {base.path} can't be remembered.",
                why="Its path is no UTF-8, and a record is.",
                hint="Give its folder another name, then add it again.",
            )
        before = next((known for known in self.records() if known["path"] == str(base.path)), None)
        same = before is not None and before["fingerprint"] == base.fingerprint
        record = {
            "repo": base.repo or (before["repo"] if before and same else None),
            "revision": base.revision or (before["revision"] if before and same else None),
            "path": str(base.path),
            "fingerprint": base.fingerprint,
            "parameters": sum(info.count for info in base.tensors.values()),
            "architecture": base.architecture,
        }
        make_directory(self.folder)
        key = hashlib.sha256(str(base.path).encode()).hexdigest()[:16]
        write_file(self.folder / f"{key}.json", json.dumps(record, indent=2).encode(), self.folder)
        return record

    def open(self, text: str, *, repo: str | None = None, revision: str | None = None) -> BaseModel:
        """The base `text` means: a folder, a repository remembered here, or one in the Hugging Face cache."""
        folder = typed_path(text)
        if is_folder(folder):
            known = next((r for r in self.records() if r["path"] == str(folder.resolve())), None)
            if known:
                repo, revision = repo or known["repo"], revision or known["revision"]
            return read_base(folder, repo=repo, revision=revision)
        if not looks_like_repo(text):
            raise NotFoundError(
                f"There is no base model at {text}.", hint="adapterhub base add FOLDER_OR_REPO"
            )
        for record in self.records():
            same = (record["repo"] or "").lower() == text.lower()
            if (
                same
                and (revision is None or record["revision"] in (None, revision))
                and is_folder(record["path"])
            ):
                return read_base(
                    Path(record["path"]), repo=record["repo"], revision=record["revision"]
                )
        return self._from_hub_cache(text, revision)

    def _from_hub_cache(self, repo: str, revision: str | None) -> BaseModel:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            if revision is not None and not is_safe_relative_path(revision):
                raise FileNotFoundError(revision)  # to the cache it is part of a path
            folder = snapshot_download(repo, revision=revision, local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError, FileNotFoundError):
            at = f" at revision {revision[:12]}" if revision else ""
            raise NotFoundError(
                f"The base model {repo}{at} is not on this machine.",
                why="It is neither in `adapterhub base ls` nor in the Hugging Face cache.",
                hint=f"hf download {repo}    or, if you have it in a folder:  adapterhub base add FOLDER --repo {repo}",
            ) from None
        return read_base(Path(folder), repo=repo)
