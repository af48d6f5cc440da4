"""Differences of losses as people read them: as those of the perplexity."""

from __future__ import annotations

import math


def growth(nats: float) -> float:
    """By which share the perplexity grows when the loss grows by so many nats a token; infinite where that overflows."""
    return math.expm1(nats) if nats < 700 else math.inf


def loss_in_words(verdict: str | None, difference: float, low: float, high: float) -> str:
    """A difference of losses as that of the perplexity: `better, -13.5% (-15 to -12.1)`."""
    changes = [100 * growth(one) for one in (difference, low, high)]
    return "{}, {:+.3g}% ({:+.3g} to {:+.3g})".format(verdict, *changes)
