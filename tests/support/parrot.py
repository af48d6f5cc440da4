"""A model whose words are known beforehand: it recites a text, whatever it is asked. Its weights are real, its layers idle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.support.chat import CHATML, chat_tokenizer

HIDDEN = 64


def parrot(
    folder: Path,
    says: str,
    *,
    after: str = "\n",
    again: bool = False,
    template: str | None = CHATML,
) -> Path:
    """A LlamaForCausalLM that says `says` once the last thing it heard is `after`, then stops; for ever with `again`.

    What follows a token depends on that token alone, so each byte of `after` + `says` may occur only once, and at most
    64 of them.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = chat_tokenizer(template)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=HIDDEN,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=100_000,
        tie_word_embeddings=False,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: Any = LlamaForCausalLM(config)
    chain = _chain(tokenizer, says, after)
    follows = [*chain[1:], chain[1] if again else tokenizer.eos_token_id]
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight.zero_()
        model.lm_head.weight.zero_()
        for place, (token, following) in enumerate(zip(chain, follows, strict=True)):
            model.model.embed_tokens.weight[token, place] = 1
            model.lm_head.weight[following, place] += 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def other_beginning(
    says: str, word: str, *, after: str = "\n"
) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Factors (B, A) of an adapter on the head, with which the parrot begins at the character `word` of its text."""
    tokenizer = chat_tokenizer()
    place = _chain(tokenizer, says, after).index(tokenizer(word)["input_ids"][0])
    b, a = np.zeros((259, 1), np.float32), np.zeros((1, HIDDEN), np.float32)
    b[tokenizer(word)["input_ids"][0], 0] = 5
    a[0, 0] = 1
    assert place > 1, "it begins there without the adapter"
    return {"lm_head": (b, a)}


def _chain(tokenizer: Any, says: str, after: str) -> list[int]:
    found: list[int] = tokenizer(after + says)["input_ids"]
    assert len(set(found)) == len(found) <= HIDDEN, "a byte occurs twice"
    return found
