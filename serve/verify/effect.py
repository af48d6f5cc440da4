"""How far apart the log-probabilities of two answers are, how far apart they may be, and whether an adapter does anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.formats.peft import find_peft, read_facts, scan_values
from adapterhub.formats.safetensors import TensorFile
from adapterhub.serve.verify.asking import Seen


@dataclass(frozen=True)
class Difference:
    """Of log-probabilities of the same tokens, in nats."""

    worst: float
    mean: float
    rms: float

    def __str__(self) -> str:
        """As faults quote it."""
        return f"{self.worst:.2g} at a token, {self.rms:.2g} rms"

    def or_more(self, other: Difference) -> Difference:
        """The larger of each."""
        return Difference(
            max(self.worst, other.worst), max(self.mean, other.mean), max(self.rms, other.rms)
        )

    def document(self) -> dict[str, float]:
        """As data."""
        return {"worst": self.worst, "mean": self.mean, "rms": self.rms}


NOTHING = Difference(0.0, 0.0, 0.0)


def difference(one: Sequence[Seen], other: Sequence[Seen]) -> Difference:
    """Position by position, over the tokens that either shows; of nothing it is zero.

    A token that only one shows is, to the other, at most as likely as the last one it shows: it counts by how much it
    is above that.
    """
    gaps = [gap for a, b in zip(one, other, strict=True) for gap in _gaps(a, b)]
    if not gaps:
        return NOTHING
    count = len(gaps)
    return Difference(max(gaps), sum(gaps) / count, (sum(gap * gap for gap in gaps) / count) ** 0.5)


def _gaps(one: Seen, other: Seen) -> list[float]:
    least_one, least_other = min(one.values()), min(other.values())
    both = [abs(value - other[token]) for token, value in one.items() if token in other]
    only = [max(0.0, value - least_other) for token, value in one.items() if token not in other]
    return (
        both
        + only
        + [max(0.0, value - least_one) for token, value in other.items() if token not in one]
    )


@dataclass(frozen=True)
class Tolerance:
    """What arithmetic alone may change.

    token: in one token's log-probability, between two batches of one server.
    request: root mean square over the tokens seen in one answer, likewise. It sees smaller effects than one token can.
    reference: root mean square over the tokens seen after all prompts, between the server and transformers.
    most: the noise from which on nothing can be told; a server that repeats itself worse than this is at fault.
    """

    token: float
    request: float
    reference: float
    most: float

    def __str__(self) -> str:
        """As faults quote it."""
        return f"{self.token:.2g} at a token and {self.request:.2g} rms are allowed"

    def wrong(self, found: Difference) -> bool:
        """Whether arithmetic can't explain what one request differs by."""
        return found.worst > self.token or found.rms > self.request

    def widened(self, noise: Difference) -> Tolerance:
        """The same for a server whose own batches were seen to differ by `noise`."""
        return replace(
            self,
            token=max(self.token, 2 * noise.worst),
            request=max(self.request, 2 * noise.rms),
        )


TOLERANCES: Mapping[str, Tolerance] = {
    "float32": Tolerance(token=1e-3, request=1e-3, reference=1e-3, most=0.02),
    "float16": Tolerance(token=0.1, request=0.03, reference=0.02, most=0.4),
    "bfloat16": Tolerance(token=0.5, request=0.15, reference=0.1, most=1.5),
}
"""By dtype. Measured on vLLM 0.32 with SmolLM2-135M in bfloat16: 0.23 at a token, 0.064 in an answer, 0.097 beside transformers
(there the plain base's own distance counts); in float32 on a tiny Llama less than a tenth of what is allowed."""

TELLING = 0.5
"""Share of the prompts on which two names must differ by more than noise on both sides, to be told apart in a few rounds."""


def telling(one: Sequence[Seen], other: Sequence[Seen], tolerance: Tolerance) -> float:
    """The share of prompts on which it would be seen if one answered for the other, whatever the noise."""
    twice = tolerance.widened(Difference(tolerance.token, 0.0, tolerance.request))
    gaps = [difference([a], [b]) for a, b in zip(one, other, strict=True)]
    return sum(map(twice.wrong, gaps)) / len(gaps)


def nearest(
    said: Sequence[Seen], own: Sequence[Seen], others: Mapping[str, Sequence[Seen]]
) -> tuple[str, Difference] | None:
    """Whose `said` looks like, if it looks like another's far more than like its `own`."""
    if not others:
        return None
    found = {name: difference(said, other) for name, other in others.items()}
    name = min(found, key=lambda one: found[one].mean)
    return (name, found[name]) if found[name].mean < difference(said, own).mean / 2 else None


def changes_nothing(folder: Path) -> bool:
    """Whether the adapter in `folder` is none by its own numbers: every factor of one side zero, or alpha 0."""
    parts = find_peft(folder)
    with TensorFile(parts.weights) as weights:
        facts = read_facts(parts.config, weights)
        notes = scan_values(facts, weights)[1]
    zero = any("this adapter changes nothing" in note for note in notes)
    return zero or all(module.scaling == 0 for module in facts.modules.values())
