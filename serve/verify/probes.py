"""What the server is asked: token ids, so that base, adapters and transformers read the same, tokenizer or not.

The fixed prompts and the long one depend on the base alone. Asked again on the same server, the long one comes from
the prefix cache; that is how a cache that holds another version's work is found. Prompts of the mixed rounds are new.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from adapterhub.errors import AdapterHubError, IncompatibleError
from adapterhub.evaluate.models import load_tokenizer, quiet_libraries
from adapterhub.export.logits import PROMPTS

Tokens = tuple[int, ...]

ANSWER = 24
"""Tokens of an answer in the mixed rounds: long enough that other requests begin and end beside it."""
LONG_ANSWER = 8
LONG = 160
"""Tokens of the long prompt: a full block of the CPU's prefix cache (128), ten of a GPU's (16)."""
_CUTS = (8, 28)
"""Where the texts are cut off, in tokens: what comes next there is asked."""
_RANDOM = (5, 12, 24, 40)
_FRESH = 56
"""Tokens of a new prompt at most."""
_SHORTEST = 12
_SEED = 0x5EED


@dataclass(frozen=True)
class Probes:
    """Prompts that fit into `limit` tokens together with what is asked for."""

    fixed: tuple[Tokens, ...]
    long: Tokens
    answer: int
    limit: int
    known: Sequence[int]
    """The ids that random prompts are made of."""

    def fresh(self, random: Random) -> Tokens:
        """A prompt nobody has asked before: random ids, half of the time after a piece of a fixed prompt."""
        room = self.limit - self.answer - 1
        head: Tokens = ()
        if random.random() < 0.5:
            text = random.choice(self.fixed)
            head = text[: random.randint(1, len(text))]
        tail = random.choices(self.known, k=random.randint(3, 24))
        return (*head, *tail)[-min(room, _FRESH) :]


def make_probes(base: Path, limit: int | None, texts: Sequence[str] | None = None) -> Probes:
    """The prompts for the model in the folder `base`; `limit` is the server's longest prompt and answer together.

    Raises IncompatibleError where the server takes too few tokens to tell anything.
    """
    config = _config(base)
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    limits = [one for one in (limit, longest) if isinstance(one, int)]
    limit = min([*limits, LONG + LONG_ANSWER + 1])
    if limit < _SHORTEST:
        raise IncompatibleError(
            f"The server takes {limit} tokens at most, too few to verify anything.",
            hint="Give it more with --max-model-len.",
        )
    known, said = _words(
        base, int(config.get("vocab_size") or 100), PROMPTS if texts is None else texts
    )
    random = Random(_SEED)
    drawn = [tuple(random.choices(known, k=length)) for length in _RANDOM]
    cut = [text[:length] for text in said for length in _CUTS if length <= len(text)]
    fixed = [prompt[: limit - 1] for prompt in (*cut, *drawn)]
    return Probes(
        fixed=tuple(dict.fromkeys(fixed)),
        long=tuple(random.choices(known, k=limit - LONG_ANSWER - 1))
        if limit > 2 * LONG_ANSWER
        else (),
        answer=min(ANSWER, limit // 3),
        limit=limit,
        known=known,
    )


def served_dtype(dtype: str, base: Path) -> str:
    """What `dtype` is to vLLM, where "auto" means the base's own, and 16 bits for a float32 one."""
    if dtype != "auto":
        return dtype
    config = _config(base)
    own = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    return own if own in ("float16", "bfloat16") else "bfloat16"


def _config(base: Path) -> dict[str, Any]:
    """The language model's part of config.json."""
    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def _words(base: Path, vocabulary: int, texts: Sequence[str]) -> tuple[list[int], list[Tokens]]:
    """The ids that are plain words, and `texts` in tokens; all ids and no texts where there is no tokenizer.

    Special tokens are left out: those of images and sounds mean more than a token to a server.
    """
    try:
        with quiet_libraries():
            tokenizer = load_tokenizer(base)
    except AdapterHubError:
        return list(range(vocabulary)), []
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    known = [token for token in range(min(vocabulary, len(tokenizer))) if token not in special]
    rows = [tuple(int(token) for token in tokenizer(text)["input_ids"]) for text in texts]
    # Of a folder without a tokenizer transformers may make one that knows no word.
    said = [row for row in rows if len(row) > 1 and max(row) < vocabulary]
    return (known, said) if len(known) > 1 else (list(range(vocabulary)), said)
