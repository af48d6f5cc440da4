"""What tests ask of a spectrum."""

from __future__ import annotations

from dataclasses import replace

from adapterhub.lora.lowrank import Spectrum


def cut(found: Spectrum, rank: int) -> Spectrum:
    """The first `rank` directions."""
    return replace(found, b=found.b[:, :rank], a=found.a[:rank], values=found.values[:rank])


def kept_by(found: Spectrum) -> float:
    """Energy of the approximation."""
    return float((found.values**2).sum())
