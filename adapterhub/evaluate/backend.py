"""What an evaluation asks of whoever computes: one model after another, scored and asked by the rows' tokens.

`adapterhub.evaluate.local` computes here with transformers, `adapterhub.evaluate.served` asks a server.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from adapterhub.data.masking import Encoded
from adapterhub.evaluate.models import Answer
from adapterhub.evaluate.scoring import Score
from adapterhub.evaluate.subjects import Subject
from adapterhub.evaluate.task import Asking


class Speaker(Protocol):
    """One model. Nothing need be loaded before it is asked for what isn't known yet."""

    def score(
        self,
        rows: Sequence[Encoded],
        *,
        known: Mapping[int, Score],
        on_scores: Callable[[Mapping[int, Score]], None],
        on_rows: Callable[[int], None],
    ) -> list[Score] | None:
        """As `score_rows`; None where the backend tells no likelihoods."""
        ...

    def answers(
        self,
        asking: Asking,
        max_new_tokens: int,
        *,
        known: Container[int],
        on_rows: Callable[[int], None],
    ) -> Iterator[dict[int, Answer]]:
        """Greedy answers to every question, some at a time, by place; those `known` may be left out."""
        ...

    def answer(self, prompt: str, max_new_tokens: int) -> str:
        """One greedy answer."""
        ...


class Backend(Protocol):
    """Where models are computed."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the numbers depend on beside weights and rows: precision, device, versions. Attested with them."""
        ...

    def recognised(self, subject: Subject) -> Mapping[str, Any]:
        """What else its weights are known by, where neither the store nor a folder says which they are."""
        ...

    def speaker(self, subject: Subject) -> AbstractContextManager[Speaker]:
        """The model, while the context lasts."""
        ...
