"""`adapter_config.json` as people have written it since PEFT's first version: read with bounds, judged by name.

The file itself is stored as it is, so no field is ever lost; what is read here is what the algebra needs to know, and
the variants that change what the tensors mean and must therefore be refused by name where they can't be honoured.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from adapterhub.canonical import read_object
from adapterhub.errors import FormatError
from adapterhub.formats.patterns import PatternClock, Patterns
from adapterhub.manifest import BaseClaim, is_commit, is_unicode

CONFIG_NAME = "adapter_config.json"
MAX_TEXT = 4096

_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?\Z")
# Fields that change what the factors mean. Each maps a *set* value to the words a refusal uses.
_VARIANTS: Mapping[str, str] = {
    "use_qalora": "QALoRA (grouped input)",
    "use_bdlora": "BD-LoRA (block-diagonal factors)",
    "alora_invocation_tokens": "aLoRA (active only after its invocation tokens)",
    "layer_replication": "layer replication (the base's layers are rearranged)",
    "target_parameters": "target_parameters (LoRA on bare parameters, as in fused experts)",
    "trainable_token_indices": "trainable tokens (rows of the embedding are replaced)",
    "arrow_config": "Arrow routing",
    "enable_lora": "the `enable_lora` layout of PEFT before 0.3 (grouped, three-dimensional factors)",
    "velora_config": "VeLoRA",
    "lora_bias": "lora_bias (a trained bias beside B)",
}
DORA = "DoRA (a trained magnitude per output)"
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")


@dataclass(frozen=True)
class PeftConfig:
    """The fields of a PEFT configuration that say what the tensors mean."""

    peft_type: str
    rank: int
    alpha: float
    base: BaseClaim
    claimed_base: str
    """`base_model_name_or_path` as written, for people to read."""
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    fan_in_fan_out: bool = False
    bias: str = "none"
    modules_to_save: tuple[str, ...] = ()
    target_modules: tuple[str, ...] = ()
    """Empty where targets are given as a regular expression or a preset."""
    variants: tuple[str, ...] = ()
    """What makes this more than plain LoRA, in words."""

    def module_rank(self, module: str) -> int:
        """The rank PEFT gives `module`."""
        key = self._patterns[0].first(module)
        return self.rank if key is None else self.rank_pattern[key]

    def module_scaling(self, module: str, rank: int) -> float:
        """alpha/r, or alpha/sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732)."""
        key = self._patterns[1].first(module)
        alpha = self.alpha if key is None else self.alpha_pattern[key]
        return float(alpha / (math.sqrt(rank) if self.use_rslora else rank))

    @cached_property
    def _patterns(self) -> tuple[Patterns, Patterns]:
        """Of ranks and of alphas; together they have one clock's time."""
        clock = PatternClock()
        return Patterns(self.rank_pattern, clock), Patterns(self.alpha_pattern, clock)


def read_config(path: Path) -> tuple[PeftConfig, dict[str, Any]]:
    """The configuration at `path` and the JSON it came from. FormatError where it is no PEFT configuration."""
    document = read_object(path, CONFIG_NAME)
    return parse_config(document), document


def parse_config(document: Mapping[str, Any]) -> PeftConfig:
    """Reads a configuration of any PEFT version; null means "left out", as PEFT itself takes it."""
    kind = document.get("peft_type")
    if not isinstance(kind, str):
        raise FormatError(
            "adapter_config.json is not a PEFT configuration.",
            why="It has no peft_type."
            + (
                " It looks like an MLX configuration."
                if "lora_layers" in document or "lora_parameters" in document
                else ""
            ),
            hint="Add a folder written by PEFT's save_pretrained.",
        )
    reader = _Reader(document)
    low_rank = kind.upper() in ("LORA", "ADALORA")
    claimed = document.get("base_model_name_or_path")
    claimed = claimed if isinstance(claimed, str) else ""
    if len(claimed) > MAX_TEXT or not is_unicode(claimed):
        raise FormatError(
            "adapter_config.json: base_model_name_or_path can't be used.",
            why=f"It is too long (over {MAX_TEXT} characters), or it is no Unicode text.",
        )
    revision = document.get("revision")
    repo = claimed if looks_like_repo(claimed) else None
    use_dora = reader.flag("use_dora")
    return PeftConfig(
        peft_type=kind.upper(),
        rank=reader.rank() if low_rank else 0,
        alpha=reader.number("lora_alpha", 8.0) if low_rank else 0.0,
        base=BaseClaim(repo, revision if repo and is_commit(revision) else None),
        claimed_base=claimed,
        # AdaLoRA keeps masks here, which are no ranks.
        rank_pattern=reader.table("rank_pattern", int) if kind.upper() == "LORA" else {},
        alpha_pattern=reader.table("alpha_pattern", float) if low_rank else {},
        use_rslora=reader.flag("use_rslora"),
        use_dora=use_dora,
        fan_in_fan_out=reader.flag("fan_in_fan_out"),
        bias=reader.text("bias", "none"),
        modules_to_save=reader.names("modules_to_save"),
        target_modules=reader.names("target_modules"),
        variants=_variants(document, use_dora),
    )


def looks_like_repo(text: str) -> bool:
    """Whether `text` is a Hub id (`org/name`, or an old bare name like `gpt2`) rather than a path or nothing."""
    return (
        bool(_HUB_ID.match(text))
        and text not in ("None", "null")
        and "--" not in text
        and ".." not in text
    )


def _variants(document: Mapping[str, Any], use_dora: bool) -> tuple[str, ...]:
    found = [DORA] if use_dora else []
    found += [words for key, words in _VARIANTS.items() if document.get(key)]
    init = document.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        found.append(
            f"{init} initialisation (its factors fit a changed base; save it converted to plain LoRA)"
        )
    return tuple(found)


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False


class _Reader:
    """Typed access to a configuration, with errors that name the field and both sides."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document

    def _wrong(self, key: str, wanted: str) -> FormatError:
        shown = json.dumps(self._document.get(key), default=str)[:80]
        return FormatError(f"adapter_config.json: {key} must be {wanted}.", why=f"It is {shown}.")

    def rank(self) -> int:
        value = self._document.get("r", 8)
        if type(value) is not int or not 1 <= value <= 65536:
            raise self._wrong("r", "a whole number from 1 to 65536")
        return value

    def number(self, key: str, default: float) -> float:
        value = self._document.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not _is_finite(value):
            raise self._wrong(key, "a finite number")
        number: float = value
        return number

    def flag(self, key: str) -> bool:
        value = self._document.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return bool(value)

    def text(self, key: str, default: str) -> str:
        value = self._document.get(key)
        if value is not None and not isinstance(value, str):
            raise self._wrong(key, "a text")
        return value or default

    def names(self, key: str) -> tuple[str, ...]:
        value = self._document.get(key)
        if value is None or isinstance(value, str):
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "a list of module names")
        return tuple(sorted(value))

    def table(self, key: str, kind: type[int] | type[float]) -> dict[str, Any]:
        value = self._document.get(key)
        if value is None:
            return {}
        allowed = int if kind is int else (int, float)
        if not isinstance(value, dict) or not all(
            isinstance(item, allowed)
            and not isinstance(item, bool)
            and _is_finite(item)
            and (kind is float or item > 0)
            for item in value.values()
        ):
            raise self._wrong(key, "a table of module patterns to numbers")
        return dict(value)
