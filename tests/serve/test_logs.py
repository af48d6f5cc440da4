"""vLLM's log in, a sentence out. The lines are vLLM 0.32's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.serve.logs import hint_for, last_errors, last_line

TRACEBACK = """\
(Worker pid=11367) ERROR 11-22 03:49:28 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=11367) ERROR 11-22 03:49:28 [multiproc_executor.py:1063]   File "lora/peft_helper.py", line 202, in validate_legal
(Worker pid=11367) ERROR 11-22 03:49:28 [multiproc_executor.py:1063]     raise ValueError(f"{' '.join(error_msg)}")
(Worker pid=11367) ERROR 11-22 03:49:28 [multiproc_executor.py:1063] ValueError: LoRA rank 16 is greater than max_lora_rank 8.
(Worker pid=11367) ERROR 11-22 03:49:28 [multiproc_executor.py:1063]
(EngineCore pid=11248) ERROR 11-22 03:49:28 [core.py:1750] RuntimeError: Worker failed with error 'LoRA rank 16 is \
greater than max_lora_rank 8.', please check the stack trace above for the root cause
Traceback (most recent call last):
  File "models/serving.py", line 131, in init_static_loras
    raise ValueError(load_result.error.message)
ValueError: Call to add_lora method failed: Worker failed with error 'LoRA rank 16 is greater than max_lora_rank 8.'
/usr/lib/resource_tracker.py:254: UserWarning: resource_tracker: There appear to be 1 leaked semaphore objects
"""
ARGUMENTS = """\
usage: vllm [-h] [-v]
            {chat,complete,serve,launch,bench}
            ...
vllm: error: unrecognized arguments: --sed 1
"""
LENGTH = """\
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (999) is greater than the derived max_model_len (max_position_embeddings=256.0)
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""
MEMORY = """\
(EngineCore pid=1) ERROR 11-22 03:49:28 [core.py:1] ValueError: To serve at least one request with the models's max seq \
len (8192), (1.5 GiB KV cache is needed, which is larger than the available KV cache memory (1.0 GiB).
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


@pytest.mark.parametrize(
    ("text", "errors", "hint"),
    [
        (TRACEBACK, ["ValueError: LoRA rank 16 is greater than max_lora_rank 8."], ""),
        (ARGUMENTS, ["vllm: error: unrecognized arguments: --sed 1"], "vllm serve --help=all"),
        (LENGTH, None, "--max-model-len"),
        (MEMORY, None, "VLLM_CPU_KVCACHE_SPACE"),
        ("Segmentation fault (core dumped)\n", ["Segmentation fault (core dumped)"], ""),
    ],
)
def test_the_cause_is_found_among_the_echoes(
    tmp_path: Path, text: str, errors: list[str] | None, hint: str
) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(text)
    found = last_errors(log)
    if errors is not None:
        assert found == errors
    assert len(found) == 1
    assert hint in hint_for(found)
    assert bool(hint) == bool(hint_for(found))


def test_the_last_line_comes_without_its_prefix_and_without_the_logo(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(
        "(APIServer pid=9715) INFO 11-22 03:45:06 [model.py:733] Resolved architecture: LlamaForCausalLM\n"
        "(APIServer pid=9715) INFO 11-22 03:45:06 [api_utils.py:347]   ▀▀  ▀▀▀▀▀ ▀▀▀▀▀ ▀     ▀\n"
        "(APIServer pid=9715) INFO 11-22 03:45:06 [api_utils.py:347] \n"
    )
    assert last_line(log) == "Resolved architecture: LlamaForCausalLM"
    log.write_text("Loading shards:   0%\rLoading shards: 100%\r\n\n")
    assert last_line(log) in ("Loading shards: 100%", "")
    log.write_text("")
    assert last_line(log) == ""
