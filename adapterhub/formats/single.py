"""An adapter in one safetensors file: its configuration lies beside it, or inside its header, as diffusers writes it.

diffusers puts the LoraConfig as JSON under `lora_adapter_metadata`; `save_lora_weights` of a pipeline prefixes its
fields and the tensors with the component's name (`transformer.r`, `text_encoder.lora_alpha`, ...).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from adapterhub.canonical import canonical_bytes, parse_object
from adapterhub.errors import FormatError, NotFoundError, UnsupportedError
from adapterhub.formats.peft import PICKLE_NAMES, WEIGHTS_NAME, convert_hint
from adapterhub.formats.peft_config import CONFIG_NAME
from adapterhub.formats.safetensors import TensorFile
from adapterhub.words import some

METADATA_KEY = "lora_adapter_metadata"
LONE_NAMES = frozenset({"adapter_model", "pytorch_lora_weights", "lora", "adapter", "adapters"})
"""Names that say nothing about an adapter; its folder's name says more."""

_COMPONENTS = ("unet", "transformer", "transformer_2", "prior", "controlnet",
               "text_encoder", "text_encoder_2", "text_encoder_3")  # fmt: skip
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_", "lora_transformer_")


def read_single(weights: Path) -> tuple[dict[str, Path | bytes], list[str]]:
    """The two files of the adapter in `weights`, and remarks.

    A configuration that lies beside is taken as it is; one from the header becomes canonical JSON. Raises NotFoundError
    where there is none, FormatError for a file that is no sound safetensors file, UnsupportedError for a pipeline's file
    with several components.
    """
    _require_safetensors(weights)
    with TensorFile(weights) as file:
        tensors, metadata = list(file.infos), file.metadata
    beside = weights.parent / CONFIG_NAME
    if weights.name == WEIGHTS_NAME and beside.is_file():
        return {WEIGHTS_NAME: weights, CONFIG_NAME: beside}, []
    _refuse_pipelines(weights, tensors)
    if METADATA_KEY in metadata:
        text = metadata[METADATA_KEY].encode("utf-8", "surrogatepass")  # no text is no JSON either
        found = parse_object(text, f"{METADATA_KEY} in {weights.name}")
        document, notes = _unprefixed(found, tensors)
        return {WEIGHTS_NAME: weights, CONFIG_NAME: canonical_bytes(document)}, notes
    if not beside.is_file():
        raise NotFoundError(
            f"{weights} has no configuration.",
            why=_why_none(tensors),
            hint=f"Put the {CONFIG_NAME} it was trained with beside it, then run the same command again.",
        )
    others = [path.name for path in sorted(weights.parent.glob("*.safetensors"))]
    if len(others) > 1:
        raise FormatError(
            f"The {CONFIG_NAME} beside {weights} could belong to another file.",
            why=f"That folder holds {some(others)}.",
            hint=f"Put {weights.name} and its {CONFIG_NAME} into a folder of their own, and add that.",
        )
    return {WEIGHTS_NAME: weights, CONFIG_NAME: beside}, []


def _require_safetensors(path: Path) -> None:
    if path.name in PICKLE_NAMES or path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        raise FormatError(
            f"{path} is a pickle by its name, which can run code when it is loaded.",
            why="adapterhub reads safetensors only.",
            hint=convert_hint(path.parent),
        )
    if path.suffix != ".safetensors":
        raise NotFoundError(
            f"{path} is no adapter.",
            why="A single file must be a .safetensors file.",
            hint="Give the folder that PEFT's save_pretrained wrote, or a .safetensors file.",
        )


def _refuse_pipelines(weights: Path, tensors: Iterable[str]) -> None:
    found = sorted({name.partition(".")[0] for name in tensors}.intersection(_COMPONENTS))
    if len(found) > 1:
        raise UnsupportedError(
            f"{weights} is a diffusion pipeline's file with adapters of several models: {', '.join(found)}.",
            why="An adapter belongs to one model here, with one rank and one scale.",
            hint="Save each by itself in diffusers: pipe."
            f"{found[0]}.save_lora_adapter(FOLDER), then add the file in each FOLDER.",
        )


def _unprefixed(
    document: Mapping[str, Any], tensors: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """The configuration of a pipeline's only component under its plain names."""
    component = next(
        iter({name.partition(".")[0] for name in tensors}.intersection(_COMPONENTS)), None
    )
    if component is None:
        return dict(document), []
    prefix = f"{component}."
    plain = {
        key.removeprefix(prefix): value for key, value in document.items() if key.startswith(prefix)
    }
    if not plain:
        return dict(document), []
    return plain, [f"its tensors are named for the {component} of a diffusion pipeline"]


def _why_none(tensors: Iterable[str]) -> str:
    missing = f"There is no {CONFIG_NAME} beside it, and no {METADATA_KEY} in its header."
    if any(name.startswith(_KOHYA) for name in tensors):
        missing += " By its names it is a file of kohya-ss, which says its scale in another way."
    return f"{missing} Without one its scale alpha/r is unknown."
