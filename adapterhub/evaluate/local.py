"""Evaluating here, with transformers: one model in memory, adapters attached to it in turn, loaded when first needed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.data.masking import Encoded
from adapterhub.evaluate import models
from adapterhub.evaluate.generate import answers
from adapterhub.evaluate.scoring import Score, score_rows
from adapterhub.evaluate.subjects import Subject
from adapterhub.evaluate.task import Asking

if TYPE_CHECKING:
    from adapterhub.base import BaseModel
    from adapterhub.store import Store


class Local:
    """One model at a time: the base with its adapters, or a folder of a whole model."""

    def __init__(
        self,
        store: Store,
        base: BaseModel | None,
        tokenizer: Any,
        stop_ids: frozenset[int],
        dtype: str,
        batch_tokens: int,
    ) -> None:
        """`dtype`: to compute in; `batch_tokens`: in one forward pass, padding included."""
        self._store = store
        self._base = base
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self._dtype = dtype
        self.batch_tokens = batch_tokens
        self._held: tuple[Path, Any] | None = None

    @property
    def identity(self) -> Mapping[str, Any]:
        """Precision, device and the libraries' versions."""
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return {"dtype": self._dtype, "device": device, "versions": library_versions()}

    def recognised(self, subject: Subject) -> Mapping[str, Any]:
        """Nothing more: the store and the files say which weights these are."""
        return {}

    @contextmanager
    def speaker(self, subject: Subject) -> Iterator[_Local]:
        """The model, attached or loaded once something is asked of it."""
        with ExitStack() as stack:
            yield _Local(self, lambda: self._model(subject, stack))

    @contextmanager
    def model(self, subject: Subject) -> Iterator[Any]:
        """The model itself, for those who ask it in their own way."""
        with ExitStack() as stack:
            yield self._model(subject, stack)

    def _model(self, subject: Subject, stack: ExitStack) -> Any:
        if subject.folder is not None:
            return self._load(subject.folder)
        assert self._base is not None, "an adapter, and the base, need a base"
        model = self._load(self._base.path)
        folder = self._store.view(subject.adapter.digest) if subject.adapter else None
        return stack.enter_context(models.attached(model, folder))

    def _load(self, folder: Path) -> Any:
        if self._held is None or self._held[0] != folder:
            self._held = None
            gc.collect()  # a model's modules refer to each other; two models may not fit at once
            self._held = folder, models.load_model(folder, self._dtype)
        return self._held[1]


class _Local:
    """What is asked of one of them."""

    def __init__(self, of: Local, load: Callable[[], Any]) -> None:
        self._of = of
        self._load = load
        self._loaded: Any = None

    @property
    def _model(self) -> Any:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def score(
        self,
        rows: Sequence[Encoded],
        *,
        known: Mapping[int, Score],
        on_scores: Callable[[Mapping[int, Score]], None],
        on_rows: Callable[[int], None],
    ) -> list[Score]:
        if all(place in known for place in range(len(rows))):
            on_rows(len(rows))
            return [known[place] for place in range(len(rows))]
        return score_rows(
            self._model,
            rows,
            batch_tokens=self._of.batch_tokens,
            known=known,
            on_scores=on_scores,
            on_rows=on_rows,
        )

    def answers(
        self,
        asking: Asking,
        max_new_tokens: int,
        *,
        known: Container[int],
        on_rows: Callable[[int], None],
    ) -> Iterator[dict[int, models.Answer]]:
        questions = asking.questions
        if all(place in known for place, question in enumerate(questions) if question):
            on_rows(len(questions))
            return iter(())
        return answers(
            self._model,
            self._of.tokenizer,
            questions,
            self._of.stop_ids,
            max_new_tokens,
            known=known,
            on_rows=on_rows,
        )

    def answer(self, prompt: str, max_new_tokens: int) -> str:
        of = self._of
        return models.answer(self._model, of.tokenizer, prompt, of.stop_ids, max_new_tokens)


def library_versions() -> dict[str, str]:
    """Of what computes."""
    import torch

    return {"torch": torch.__version__, **{p: version(p) for p in ("transformers", "peft")}}
