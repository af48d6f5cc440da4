"""Which layers of a model vLLM 0.32 makes adaptable, and how many values a slot has in them: read from the base's headers.

A slot is room for one adapter in every adaptable layer, at `--max-lora-rank`, whatever the adapters in it change
(`LoRAModelManager._create_lora_modules` and the `create_lora_weights` of vllm/lora/layers). For a linear of `in` inputs and
`out` outputs it holds A (rank, in) and B (out, rank): rank * (in + out) values. Query, key and value that vLLM packs into one
layer keep their own A each, and so do gate and up; a layer of experts has each of its experts'. This is for one GPU:
`--fully-sharded-loras` changes nothing there, and on several the widths are cut in ways that aren't computed here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from adapterhub.base import EMBEDDING_SUFFIXES, HEAD_NAME, BaseModel
from adapterhub.formats.safetensors import FLOATS, TensorInfo

BOTH_ENDS = frozenset({
    "ApertusForCausalLM", "DeciLMForCausalLM", "Ernie4_5ForCausalLM", "Exaone4ForCausalLM", "ExaoneForCausalLM",
    "ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM", "FalconH1ForCausalLM", "GraniteForCausalLM", "GraniteMoeForCausalLM",
    "GraniteMoeHybridForCausalLM", "GraniteMoeSWAForCausalLM", "GraniteMoeSharedForCausalLM", "GraniteSWAForCausalLM",
    "HyperCLOVAXForCausalLM", "IQuestCoderForCausalLM", "InternLM3ForCausalLM", "JambaForCausalLM", "K2HorizonForCausalLM",
    "LLaMAForCausalLM", "Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "Llama4ForCausalLM", "LlamaForCausalLM",
    "MiniCPM3ForCausalLM", "MiniCPMForCausalLM", "MixtralForCausalLM", "NemotronForCausalLM", "NemotronHForCausalLM",
    "NemotronHPuzzleForCausalLM", "Param2MoEForCausalLM", "Phi3ForCausalLM", "PhiMoEForCausalLM", "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM", "SolarForCausalLM", "TeleChat2ForCausalLM",
    "TeleChat3ForCausalLM", "TeleFLMForCausalLM",
})  # fmt: skip
"""Architectures whose input embedding and head are adaptable too, and so are part of every slot."""
INPUT_END = frozenset({"Cohere2ForCausalLM", "CohereForCausalLM"})
"""Those whose input embedding alone is."""
NO_END = frozenset({
    "AXK1ForCausalLM", "AfmoeForCausalLM", "BailingMoeForCausalLM", "BailingMoeV2ForCausalLM", "ChatGLMForConditionalGeneration",
    "ChatGLMModel", "DeepseekForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "Ernie4_5_MoeForCausalLM",
    "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma4ForCausalLM", "GemmaForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM", "GptOssForCausalLM", "HYV3ForCausalLM", "InternLM2ForCausalLM", "LagunaForCausalLM",
    "LongcatFlashForCausalLM", "LongcatFlashNgramForCausalLM", "MiMoForCausalLM", "MiniMaxM2ForCausalLM",
    "Ministral3ForCausalLM", "MistralForCausalLM", "MistralLarge3ForCausalLM", "MuseGlimmerForCausalLM",
    "OPTForCausalLM", "OlmoHybridForCausalLM", "OlmoeForCausalLM", "PanguEmbeddedForCausalLM", "PanguProMoEV2ForCausalLM",
    "PanguUltraMoEForCausalLM", "Plamo3ForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM", "Qwen3NextForCausalLM",
    "Rnj1ForCausalLM", "SarvamMLAForCausalLM", "SarvamMoEForCausalLM",
})  # fmt: skip
"""Those of which neither is: vLLM refuses an adapter that changes one."""

NOT_ADAPTABLE = frozenset({
    "BailingMoeV2_5ForCausalLM", "BailingMoeV3ForCausalLM", "BloomForCausalLM", "Cohere2MoeForCausalLM", "DbrxForCausalLM",
    "FalconForCausalLM", "FalconMambaForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM", "Gemma3nForCausalLM",
    "HCXVisionV2ForCausalLM", "HrmTextForCausalLM", "IQuestLoopCoderForCausalLM", "MambaForCausalLM", "Mamba2ForCausalLM",
    "MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM", "OrionForCausalLM", "StableLmForCausalLM", "Step1ForCausalLM",
    "Step3TextForCausalLM", "Step3p5ForCausalLM", "Zamba2ForCausalLM",
})  # fmt: skip
"""Architectures that vLLM serves, and on which it takes no adapter at all."""

_PACKED = (("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("gate_up_proj", ("gate_proj", "up_proj")))
"""Layers of vLLM that are several of the base's. Any of them among `--lora-target-modules` brings all."""
_POSITIONS = ("wpe.weight", "embed_positions.weight", "position_embeddings.weight")


@dataclass(frozen=True)
class Width:
    """How many values a slot has for each unit of rank. Where not `exact`, at most so many; `why` says why."""

    linears: int
    ends: int
    """Of the input embedding and the head."""
    why: str = ""

    @property
    def total(self) -> int:
        return self.linears + self.ends

    @property
    def exact(self) -> bool:
        return not self.why


def adaptable_ends(base: BaseModel) -> tuple[bool, bool] | None:
    """Whether vLLM makes the input embedding and the head adaptable; None for an architecture not known here."""
    name = base.architecture
    if name in BOTH_ENDS:
        return True, True
    if name in INPUT_END:
        return True, False
    return (False, False) if name in NO_END else None


def slot_width(base: BaseModel, only: Collection[str] | None = None) -> Width | None:
    """The width of a slot on `base`; None where its linears are stored packed, so that headers don't tell their shapes.

    Args:
        only: `--lora-target-modules`, the last parts of the layers that are made adaptable; by default all are.
    """
    linears, doubts = 0, []
    for name, info in _matrices(base):
        if info.dtype not in FLOATS:
            return None
        module = name.removesuffix(".weight")
        if only is not None and not chosen(module, only):
            continue
        *experts, rows, columns = info.shape
        if experts:
            doubts.append("experts that are stored as one tensor")
        linears += (experts[0] if experts else 1) * (rows + columns)
    if base.text_config:
        doubts.append("layers beside the language model's, which may not be adaptable")
    if "kv_lora_rank" in {**base.config, **base.text_config}:
        doubts.append("attention with projected keys and values")
    if only is not None and any(".experts." in name for name in base.tensors):
        doubts.append("experts, of which --lora-target-modules takes all or none")
    ends, known = _ends(base, only)
    if not known:
        doubts.append(f"the architecture {base.architecture}, which isn't known here")
    return Width(linears, ends, " and ".join(dict.fromkeys(doubts)))


def _matrices(base: BaseModel) -> Iterator[tuple[str, TensorInfo]]:
    """The linears, whole stacks of experts among them."""
    for name, info in base.tensors.items():
        if name.endswith((*EMBEDDING_SUFFIXES, *_POSITIONS)) or _is_head(name):
            continue
        linear = name.endswith(".weight") and len(info.shape) == 2
        stack = ".experts." in name and len(info.shape) == 3
        packed = name.endswith((".qweight", ".weight_packed", "_blocks"))
        if linear or stack or packed:
            yield name, info


def _ends(base: BaseModel, only: Collection[str] | None) -> tuple[int, bool]:
    """(values of input embedding and head for a unit of rank, whether the architecture is known)."""
    shape = base.tensors[base.embedding].shape if base.embedding else None
    ends = adaptable_ends(base)
    known = ends is not None
    if only is not None:
        ends, known = ("embed_tokens" in only, "lm_head" in only), True
    if shape is None:
        return 0, known
    return sum(shape) * sum(ends or (True, True)), known


def chosen(module: str, only: Collection[str]) -> bool:
    """Whether `--lora-target-modules` makes the base's linear `module` adaptable."""
    last = module.rpartition(".")[2]
    if last in only or module in only:
        return True
    return any(
        last in parts and (packed in only or any(part in only for part in parts))
        for packed, parts in _PACKED
    )


def _is_head(name: str) -> bool:
    return name == HEAD_NAME or name.endswith(f".{HEAD_NAME}")
