"""Run by path: makes a vLLM in this process and prints what it has allocated, as JSON. FOLDER MAX_LORAS RANK [TARGET...]"""

from __future__ import annotations

import json
import sys
from typing import Any


def main(folder: str, max_loras: str, rank: str, *targets: str) -> None:
    from vllm import LLM

    engine: Any = LLM(
        folder, dtype="float32", enable_lora=True, max_loras=int(max_loras), max_lora_rank=int(rank),
        max_model_len=256, max_num_seqs=8, enforce_eager=True, skip_tokenizer_init=True,
        lora_target_modules=list(targets) or None,
    )  # fmt: skip
    inner = engine.llm_engine
    (weights,) = engine.collective_rpc(_weights)
    (slots,) = engine.collective_rpc(_slots)
    cache = inner.vllm_config.cache_config
    found = {"weights": weights, "slots": slots, "tokens": cache.kv_cache_size_tokens}
    sys.stdout.write(f"\n{json.dumps(found)}\n")


def _model(worker: Any) -> Any:
    return worker.model_runner.get_model()


def _weights(worker: Any) -> int:
    """Bytes of all parameters, each storage once; for linears that the CPU kernels have packed, of what was packed."""
    from vllm.model_executor.layers.linear import LinearBase

    model = _model(worker)
    found: dict[int, int] = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes()
        for parameter in model.parameters()
        if parameter.numel()
    }
    linears: list[Any] = [module for module in model.modules() if isinstance(module, LinearBase)]
    packed = [
        module.input_size * module.output_size * module.weight.element_size()
        for module in linears
        if not module.weight.numel()
    ]
    return sum(found.values()) + int(sum(packed))


def _slots(worker: Any) -> int:
    """Bytes of everything that is stacked by slots."""
    from vllm.lora.layers import BaseLayerWithLoRA

    total = 0
    for module in _model(worker).modules():
        if isinstance(module, BaseLayerWithLoRA):
            for name in ("lora_a_stacked", "lora_b_stacked"):
                stacked = getattr(module, name, ())
                tensors = stacked if isinstance(stacked, tuple) else (stacked,)
                total += sum(tensor.nbytes for tensor in tensors)
    return total


if __name__ == "__main__":
    main(*sys.argv[1:])
