"""An evaluation in words: its numbers beside the base's, each part by itself, and beside other adapters.

The attestation may have been written by anybody, so whatever isn't as expected is told as any document is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub.cli.output import clean
from adapterhub.evaluated import PERPLEXITY, difference, difference_in_words, pair_in_words
from adapterhub.tolerant import inner, mapping
from adapterhub.tui.facts import Fact, Names, said, tell
from adapterhub.words import human_count

Body = dict[str, Any]


def evaluated(body: Body, names: Names) -> Iterator[Fact]:
    """The facts; takes out of `body` what it has said."""
    result = take(body, "result")
    if (perplexity := result.pop("perplexity", None)) is not None:
        base = result.pop("base_perplexity", None)
        told = said(perplexity) + (f" (base {said(base)})" if base is not None else "")
        yield Fact("perplexity", told, "strong")
        body.pop("metric", None)
    if against := _loss(take(result, "versus_base")):
        yield Fact("against base", against, "strong")
    settings = take(body, "settings")
    if (suite := body.pop("suite", None)) is not None:
        yield Fact("suite", said(suite))
    if isinstance(rows := result.pop("rows", None), int):
        tokens = result.pop("tokens", None)
        split = said(settings.pop("split", "")).replace("_", "-")
        counted = f", {human_count(tokens)} tokens" if isinstance(tokens, int) else ""
        about = take(body, "data")
        digest = about.pop("rows_digest", None)
        about.pop("digest", None)  # of all rows, of which these are a part
        body |= {"data": {key: value for key, value in about.items() if value}}
        data = f", data {said(digest)}" if isinstance(digest, str) else ""
        yield Fact("on", f"{rows} {split} rows{counted}{data}")
    for name, measure in take(result, "measures").items():
        yield Fact(clean(name), _measured(measure))
    for name, part in take(result, "parts").items():
        yield Fact(f"· {clean(name)}", _part(part))
    for digest, rival in take(result, "versus").items():
        beside = _loss(mapping(mapping(rival).get("loss")))
        if beside:
            yield Fact("beside", f"{said(digest, names)}: {beside}")
    yield from tell(result, names)
    answered = take(body, "said")
    for key in ("prompt", "answer"):
        if key in answered:
            yield Fact(key, clean(answered.pop(key), keep_newlines=True))
    yield from tell(answered, names)
    body |= {"settings": settings}


def paired(body: Body, names: Names) -> Iterator[Fact]:
    """What was found about two trainings of one recipe."""
    yield Fact("QLoRA, LoRA", clean(pair_in_words(body)), "strong")
    for key in ("word", "versus", "other", "as", "margin", "rows", "cost"):
        body.pop(key, None)


def take(body: Body, key: str) -> Body:
    """Takes the table at `key` out of `body`; an empty one where there is none."""
    return dict(body.pop(key)) if isinstance(body.get(key), Mapping) else {}


def _part(part: object) -> str:
    """`perplexity 77 (worse, +36.6% (+6.32 to +87.9)), passed 0.17`."""
    known = dict(mapping(part))
    told = []
    if (perplexity := known.get("perplexity")) is not None:
        against = _loss(inner(known, "versus_base"))
        told.append(f"perplexity {said(perplexity)}" + (f" ({against})" if against else ""))
    told += [f"{clean(name)} {_measured(one)}" for name, one in take(known, "measures").items()]
    return ", ".join(told) or said(part)


def _measured(measure: object) -> str:
    """`0.5 (better, +0.1 (+0.02 to +0.18))`."""
    known = mapping(measure)
    told = said(known.get("value", measure))
    versus = difference(known.get("versus_base"))
    return told if versus is None else f"{told} ({difference_in_words('', versus)})"


def _loss(versus: object) -> str:
    """A difference of losses, in nats a token, as that of the perplexity: `better, -13.5% (-15 to -12.1)`."""
    found = difference(versus)
    return "" if found is None else difference_in_words(PERPLEXITY, found)
