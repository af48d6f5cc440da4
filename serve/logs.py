"""Reads vLLM's log: its last word while it starts, and what went wrong when it ended."""

from __future__ import annotations

import re
from pathlib import Path

from adapterhub.tail import shown_line

_TAIL_BYTES = 64 * 1024
_MOST_ERRORS = 3
_MOST_LINES = 4
_MOST_CHARACTERS = 400

# "(EngineCore pid=9931) ERROR 11-22 03:49:28 [core.py:1750] "
_PREFIX = re.compile(
    r"^(?:\([^)]*pid=\d+\) )?(?:(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) +[\d-]+ [\d:.]+ \[[^\]]*\] ?)?"
)
_ERROR = re.compile(r"^(?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Exit)\b: ?|^vllm[\w ]*: error: ")
_POINTS_ELSEWHERE = re.compile(
    r"(?:see|check) (?:the )?(?:root cause|stack trace)|failed core proc|Call to \w+ method failed",
    re.IGNORECASE,
)
_CONTINUES = re.compile(r"^\s{2,}(?!File |\^)\S")

_HINTS = (
    (
        r"KV cache is needed|larger than the available KV cache|No available memory for the cache blocks",
        "Give it a shorter context (--max-model-len 4096), or more memory (on a CPU, in GiB: VLLM_CPU_KVCACHE_SPACE=8).",
    ),
    (r"max_model_len \(\d+\) is greater than", "Choose a smaller --max-model-len."),
    (
        r"out of memory|OutOfMemoryError|Free memory on device|Cannot allocate memory",
        "Make room, or ask for less: --max-model-len 4096, or -- --gpu-memory-utilization 0.7",
    ),
    (
        r"unrecognized arguments|vllm.*: error:",
        "What stands after -- goes to vLLM, which lists its flags with: vllm serve --help=all",
    ),
    (
        r"tokenizer",
        "Put the tokenizer's files beside the base's weights, or name a folder: -- --tokenizer FOLDER",
    ),
    (
        r"torchvision|torchaudio|torchcodec",
        "These don't work beside a CPU build of torch and aren't needed: pip uninstall torchvision torchaudio torchcodec",
    ),
    (
        r"does not support LoRA|LoRA is not (?:yet )?supported",
        "vLLM can't serve adapters on this architecture.",
    ),
)


def last_line(log: Path) -> str:
    """The newest line, without vLLM's prefix."""
    lines = [line for line in map(_bare, _tail(log)) if line.strip(" █▄▀")]
    return lines[-1].strip() if lines else ""


def last_errors(log: Path) -> list[str]:
    """The last few different errors, oldest first; where none can be told, the last lines."""
    lines = [_bare(line) for line in _tail(log)]
    found: list[str] = []
    for number, line in enumerate(lines):
        if not _ERROR.match(line):
            continue
        text = [line]
        for following in lines[number + 1 : number + _MOST_LINES]:
            if not _CONTINUES.match(following):
                break
            text.append(following.strip())
        found.append(" ".join(text)[:_MOST_CHARACTERS])
    found = list(dict.fromkeys(found))
    telling = [text for text in found if not _POINTS_ELSEWHERE.search(text)] or found
    return telling[-_MOST_ERRORS:] or [line for line in lines if line.strip()][-_MOST_LINES:]


def hint_for(errors: list[str]) -> str:
    """What to do about them, where it is known."""
    text = "\n".join(errors)
    return next((hint for pattern, hint in _HINTS if re.search(pattern, text)), "")


def _bare(line: str) -> str:
    return line[match.end() :] if (match := _PREFIX.match(line)) else line


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    return [shown_line(line) for line in text.splitlines()]
