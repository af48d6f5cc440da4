"""A tiny chat model: ChatML template, a byte-level tokenizer whose control tokens are real ones, data it can learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
COLOURS = ("red", "green", "blue", "white", "black", "amber", "olive", "coral")


def chat_tokenizer(
    template: str | None = CHATML,
    *,
    control: Sequence[str] = (),
    bos: str = "<|im_start|>",
    eos: str = "<|im_end|>",
) -> Any:
    """One token a byte, and `<|endoftext|>` 0, `<|im_start|>` 1, `<|im_end|>` 2 (which ends and pads).

    `control` are further control tokens, after the bytes; `bos` and `eos` may be among them.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*specials, *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True) for token in control])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=bos,
        eos_token=eos,
        pad_token=eos,
        unk_token="<|endoftext|>",
        model_max_length=1024,
    )
    tokenizer.chat_template = template
    return tokenizer


def chat_base(folder: Path, *, seed: int = 0, tied: bool = True) -> Path:
    """A LlamaForCausalLM (hidden 64, 2 layers, 259 tokens) with that tokenizer, saved to `folder`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.08,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


def chat_rows(count: int = 40) -> list[dict[str, str]]:
    """Alpaca rows with different questions and a few different answers, so that a tiny model learns them quickly."""
    return [
        {
            "instruction": f"Paint number {i}: which colour?",
            "output": f"The colour is {COLOURS[i % len(COLOURS)]}.",
        }
        for i in range(count)
    ]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """`rows` as a .json file."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path
