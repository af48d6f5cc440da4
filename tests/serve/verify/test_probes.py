"""What is asked: the same in every run, within the server's limit, and never a token that means more than a word."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from adapterhub.errors import IncompatibleError
from adapterhub.serve.verify.probes import LONG, LONG_ANSWER, make_probes, served_dtype


@pytest.mark.parametrize("limit", [None, 12, 64, 100_000])
def test_prompts_are_plain_words_and_fit_with_what_is_asked_for(
    tiny_llama: Path, limit: int | None
) -> None:
    probes = make_probes(tiny_llama, limit)
    assert probes.limit == min(limit or 128, 128)  # the model's own
    random = Random(1)
    fresh = [probes.fresh(random) for _ in range(200)]
    assert len(set(fresh)) == 200
    assert all(0 < len(prompt) < probes.limit for prompt in probes.fixed)
    assert all(len(prompt) + probes.answer + 1 <= probes.limit for prompt in fresh)
    assert not probes.long or len(probes.long) + LONG_ANSWER + 1 <= min(probes.limit, LONG + 9)
    special, vocabulary = {0, 1, 2, 3}, 99
    drawn = {token for prompt in (*probes.fixed, probes.long, *fresh) for token in prompt}
    assert max(drawn) < vocabulary
    assert not special & set(probes.known)
    assert make_probes(tiny_llama, limit) == probes


def test_texts_of_ones_own_take_the_place_of_the_built_in(tiny_llama: Path) -> None:
    probes = make_probes(tiny_llama, None, ["".join(map(chr, range(97, 127)))])
    assert probes.fixed[:2] == (tuple(range(69, 77)), tuple(range(69, 97)))
    assert len(probes.fixed) == 6


def test_too_little_room_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(IncompatibleError, match="takes 8 tokens at most"):
        make_probes(tiny_llama, 8)


@pytest.mark.parametrize(
    ("asked", "config", "computed"),
    [
        ("float32", {"dtype": "bfloat16"}, "float32"),
        ("auto", {"dtype": "bfloat16"}, "bfloat16"),
        ("auto", {"torch_dtype": "float16"}, "float16"),
        ("auto", {"dtype": "float32"}, "bfloat16"),
        ("auto", {"text_config": {"dtype": "float16"}}, "float16"),
        ("auto", {}, "bfloat16"),
    ],
)
def test_auto_is_what_vllm_makes_of_it(
    tmp_path: Path, asked: str, config: dict[str, object], computed: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert served_dtype(asked, tmp_path) == computed
