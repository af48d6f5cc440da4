"""The grammar of tensor names in adapter files, with all the dialects wrappers and old versions left behind.

`base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight` is the module `model.layers.0.self_attn.q_proj`
and the role `lora_A`. One canonical spelling per tensor is what content digests, merges and exports are built on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_PEFT_PREFIX = "base_model.model."
# Wrappers that put themselves into parameter names when an adapter is saved from inside them.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_ROLES = "lora_A|lora_B|lora_E|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|lora_ranknum|ia3_l"
_ROLE = re.compile(
    rf"(?P<module>.+)\.(?P<role>{_ROLES})(?P<adapter>\.(?!weight\Z|bias\Z)[^.]+)?(?P<leaf>\.weight|\.bias)?\Z"
)
_SAVED = "modules_to_save"


@dataclass(frozen=True)
class Key:
    """A tensor name taken apart. `role` is "full" for a whole trained weight or bias (`modules_to_save`, `bias`)."""

    module: str
    role: str
    leaf: str
    """`weight`, `bias`, or "" for a bare parameter."""

    @property
    def canonical(self) -> str:
        """The spelling PEFT itself writes today, less its prefix."""
        if self.role == "full":
            return f"{self.module}.{self.leaf}"
        bare = self.role in (
            "lora_embedding_A",
            "lora_embedding_B",
            "lora_E",
            "lora_ranknum",
            "ia3_l",
        )
        return (
            f"{self.module}.{self.role}"
            if bare
            else f"{self.module}.{self.role}.{self.leaf or 'weight'}"
        )

    @property
    def peft(self) -> str:
        """The name `PeftModel.from_pretrained` looks for."""
        return _PEFT_PREFIX + self.canonical


def parse_key(name: str) -> Key:
    """Takes any tensor name apart; a name that is no adapter part comes back with the role "full"."""
    plain = _WRAPPERS.sub("", name)
    plain = plain.removeprefix("module.") if plain.startswith("module." + _PEFT_PREFIX) else plain
    plain = plain.removeprefix(_PEFT_PREFIX)
    if match := _ROLE.match(plain):
        return Key(match["module"], match["role"], (match["leaf"] or "").lstrip("."))
    # Also where it was wrapped twice; but what is no factor as it is called doesn't become one.
    while (shorter := _without_saved(plain)) != plain and not _ROLE.match(shorter):
        plain = shorter
    module, _, leaf = plain.rpartition(".")
    return Key(module, "full", leaf)


def _without_saved(name: str) -> str:
    """The name of a saved weight in the base: `modules_to_save` and the adapter's name after it left out.

    A saved module may itself have layers: classifier.modules_to_save.default.dense.weight. By parts and not by a regular
    expression, which would go back and forth for minutes in a name made for that.
    """
    parts = name.split(".")
    if parts[-1] not in ("weight", "bias"):
        return name
    for place in range(len(parts) - 2, 0, -1):
        if not parts[place]:
            break
        if parts[place] == _SAVED and (place > 1 or parts[0]):
            del parts[place : min(place + 2, len(parts) - 1)]
    return ".".join(parts)
