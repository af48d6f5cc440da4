"""Pieces of text join to the whole, and none is half a character, whatever the tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from adapterhub.evaluate.pieces import Pieces
from tests.support.chat import chat_tokenizer

TEXTS = (
    "plain words, and more of them",
    "naïve café: 5 € für 日本語 🎉🏳️‍🌈",
    " begins with a blank\nand has lines\n\n  with blanks",
    "",
)


def said(tokenizer: Any, tokens: list[int], at_once: int = 1) -> list[str]:
    heard: list[str] = []
    pieces = Pieces(tokenizer, heard.append)
    pieces.put(torch.tensor([[9, 9, 9]]))
    for start in range(0, len(tokens), at_once):
        pieces.put(torch.tensor(tokens[start : start + at_once]))
    pieces.end()
    assert pieces.text == "".join(heard)
    assert pieces.tokens == tokens
    return heard


def blanks_before_words() -> Any:
    """As Llama 2 has it: a word's own blank is in its token, and the first one of a text is not shown."""
    words = ["▁be", "gins", "▁with", "▁a", "▁blank", "\n", "▁and", "▁has", "▁lines"]
    names = ["<unk>", "</s>", *words, *(f"<0x{byte:02X}>" for byte in range(256))]
    inner = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_a_character_of_several_tokens_comes_whole(text: str, at_once: int) -> None:
    tokenizer = chat_tokenizer()
    heard = said(tokenizer, tokenizer(text)["input_ids"], at_once)
    assert "".join(heard) == text
    assert not any("\ufffd" in piece for piece in heard)
    if at_once == 1 and text.isascii():
        assert heard == list(text)


def test_bytes_that_are_no_character_are_told_as_such_in_the_end() -> None:
    tokenizer = chat_tokenizer()
    tokens = tokenizer("a€")["input_ids"][:-1] + tokenizer("b")["input_ids"]
    assert "".join(said(tokenizer, tokens)) == tokenizer.decode(tokens) == "a\ufffdb"
    assert "".join(said(tokenizer, tokens[:-1])) == tokenizer.decode(tokens[:-1]) == "a\ufffd"


def test_a_blank_before_the_first_word_of_a_later_line_is_not_lost() -> None:
    tokenizer = blanks_before_words()
    tokens = tokenizer.convert_tokens_to_ids(
        ["▁be", "gins", "\n", "▁and", "▁has", "<0xE2>", "<0x82>", "<0xAC>", "▁lines", "</s>"]
    )
    heard = said(tokenizer, tokens)
    assert "".join(heard) == tokenizer.decode(tokens, skip_special_tokens=True)
    assert heard == ["be", "gins", "\n", " and", " has", "€", " lines"]


def test_control_tokens_are_not_told() -> None:
    tokenizer = chat_tokenizer()
    tokens = [*tokenizer("yes")["input_ids"], tokenizer.eos_token_id]
    assert said(tokenizer, tokens) == ["y", "e", "s"]
