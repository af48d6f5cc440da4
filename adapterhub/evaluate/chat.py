"""A talk with adapters on one base, without a server: what was said so far, and who says the next thing.

One model is in memory; an adapter is attached to it while it is asked, so the base, and every adapter that fits it,
can be asked the same question.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.base import HEAD_NAME, BaseModel, read_base
from adapterhub.data import Message, stop_token_ids
from adapterhub.data.templates import read_template, with_template
from adapterhub.errors import UnsupportedError, UsageError
from adapterhub.evaluate import models
from adapterhub.evaluate.subjects import BASE, Subject, find_subject, shared_base_of
from adapterhub.fitting import examine
from adapterhub.formats.peft import WEIGHTS_NAME
from adapterhub.formats.safetensors import TensorFile
from adapterhub.free_memory import free_on_host
from adapterhub.words import human_size, some

if TYPE_CHECKING:
    from adapterhub.store import Resolved, Store

AUTO = "auto"
"""A dtype that suits the machine and the base."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_PREFIX = "base_model.model."
_MISSING = "missing adapter keys"
_KNOWN_WARNINGS = ("tie_word_embeddings=True", "fan_in_fan_out is set to")
"""What peft says of every such adapter, whether or not anything is wrong."""


@dataclass(frozen=True)
class Settings:
    """How to talk. `system` is said first; `template` is used in place of the base's own."""

    system: str | None = None
    max_tokens: int = 256
    temperature: float = 0.0
    seed: int | None = None
    dtype: str = AUTO
    template: Path | None = None
    allow_mismatch: bool = False


@dataclass(frozen=True)
class Said:
    """One answer: whose, and how long it took. `base` is what the answering model is, or stands on."""

    subject: Subject
    answer: models.Answer
    seconds: float
    base: str

    def row(self) -> dict[str, Any]:
        """As data."""
        return {
            "answer": self.answer.text,
            "tokens": len(self.answer.tokens),
            "seconds": round(self.seconds, 3),
            "ended": self.answer.ended,
            "adapter": self.subject.name if self.subject.adapter else None,
            "digest": self.subject.digest,
            "base": self.base,
        }


class Talk:
    """A conversation. Made without loading anything, so that what can't work is told at once; then `load`, then `ask`.

    Args:
        names: adapters, the word `base`, or one folder of a whole model; the first answers unless another is chosen.
        base: folder or repository; by default the first adapter's own.
        remark: called with what a person should know.

    Raises UsageError, NotFoundError, IncompatibleError, and UnsupportedError where the weights can't fit in memory.
    """

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        *,
        base: str | None,
        settings: Settings,
        remark: Callable[[str], None],
    ) -> None:
        self._store, self._settings, self._remark = store, settings, remark
        self.subjects = [find_subject(store, name) for name in names]
        self.base = _base_of(store, self.subjects, base, settings.allow_mismatch)
        models.require_libraries()
        self._dtype = _dtype(self.base, settings.dtype)
        _require_room(self.base, self._dtype)
        tokenizer = models.load_tokenizer(self.base.path)
        if settings.template is not None:
            tokenizer = with_template(tokenizer, read_template(settings.template))
        self._tokenizer = tokenizer
        self._stop_ids = stop_token_ids(tokenizer, self.base.path)
        if settings.system is not None and not tokenizer.chat_template:
            raise self._no_system("Name one with --template FILE, or leave out --system.")
        for subject in self.subjects:
            self._look_at(subject)
        self._model: Any = None
        self._limit = math.inf
        self._attached = ExitStack()
        self._ready: tuple[Subject, Any] | None = None
        self.reset()

    @property
    def converses(self) -> bool:
        """Whether there is a chat template; without one, texts are continued, each by itself."""
        return bool(self._tokenizer.chat_template)

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return self._dtype

    @property
    def size(self) -> int:
        """Bytes that the weights take once they are loaded."""
        return weights_size(self.base, self._dtype)

    def load(self) -> None:
        """Loads the weights, which takes its time."""
        self._model = models.load_model(self.base.path, self._dtype)
        text = self._model.config.get_text_config()
        self._limit = getattr(text, "max_position_embeddings", None) or math.inf

    def close(self) -> None:
        """Takes the adapter off again, and gives back its lease."""
        self._ready = None
        self._attached.close()

    def reset(self) -> None:
        """Forgets what was said, but for the system's part."""
        system = self._settings.system
        self._said = [] if system is None else [Message("system", system)]
        self._asked: list[Message] = []

    def find(self, name: str) -> Subject:
        """Another adapter for the same base, or the word `base`. Raises as the constructor does."""
        subject = find_subject(self._store, name)
        if subject.kind == "model" or self.subjects[0].kind == "model":
            raise UsageError(
                "Adapters can only be changed on a base, and this is a whole model.",
                hint=f"adapterhub chat {name}",
            )
        if subject.adapter:
            self._store.require_fit(
                subject.adapter, self.base, allow_mismatch=self._settings.allow_mismatch
            )
            self._look_at(subject)
        return subject

    def the_base(self) -> Subject:
        """What stands for the base alone. UsageError where a whole model is talked to."""
        if self.subjects[0].kind == "model":
            raise UsageError(
                f"The base can't be asked: {self.subjects[0].name} is a whole model.",
                why="What it was made from is not in it any more.",
                hint="Name an adapter in its place.",
            )
        return Subject(BASE, "base")

    def ask(
        self,
        subject: Subject,
        question: str,
        *,
        heard: Callable[[str], None] = lambda _: None,
        halted: Callable[[], bool] = lambda: False,
    ) -> Said:
        """The answer to `question` after all that was said, which it then is a part of (unless none came)."""
        if not question.strip():
            raise UsageError("The question is empty.")
        before = self._said if self.converses else []
        self._asked = [*before, Message("user", question)]
        said = self.ask_again(subject, heard=heard, halted=halted)
        if said.answer.tokens:
            self._said = [*self._asked, Message("assistant", said.answer.text)]
        return said

    def ask_again(
        self,
        subject: Subject,
        *,
        heard: Callable[[str], None] = lambda _: None,
        halted: Callable[[], bool] = lambda: False,
    ) -> Said:
        """The answer of `subject` to the last question, as if it had been asked instead; it isn't remembered."""
        if not self._asked:
            raise UsageError("Nothing has been asked yet.")
        return self.reply(
            subject,
            self._asked,
            max_tokens=self._settings.max_tokens,
            temperature=self._settings.temperature,
            heard=heard,
            halted=halted,
        )

    def reply(
        self,
        subject: Subject,
        turns: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        heard: Callable[[str], None] = lambda _: None,
        halted: Callable[[], bool] = lambda: False,
    ) -> Said:
        """The answer of `subject` to a conversation that somebody else keeps."""
        if not self.converses and any(turn.role == "system" for turn in turns):
            raise self._no_system("Leave it out.")
        asked = models.prompt_tokens(self._tokenizer, turns)
        room = self._limit - len(asked)
        if room < 1:
            raise UsageError(
                f"This is too long: {len(asked)} tokens, and {self.base.label} reads {self._limit}"
                " together with its answer.",
                hint="Begin anew, or say less.",
            )
        model = self._with(subject)
        began = time.monotonic()
        answer = models.stream_answer(
            model,
            self._tokenizer,
            asked,
            self._stop_ids,
            int(min(max_tokens, room)),
            temperature=temperature,
            seed=self._settings.seed,
            heard=heard,
            halted=halted,
        )
        return Said(subject, answer, time.monotonic() - began, self.base.label)

    def _no_system(self, hint: str) -> UsageError:
        return UsageError(
            f"{self.base.label} has no chat template, so nothing can be said as the system.",
            hint=hint,
        )

    def _with(self, subject: Subject) -> Any:
        """The model with this adapter on it, and no other. It stays on until another is asked."""
        if self._ready and self._ready[0].digest == subject.digest:
            return self._ready[1]
        self.close()
        if self._model is None:
            self.load()
        model = self._attach(subject.adapter) if subject.adapter else self._model
        self._ready = (subject, model)
        return model

    def _attach(self, adapter: Resolved) -> Any:
        """The model with `adapter` on it, under a lease, until `close`. UnsupportedError where peft can't do it."""
        held = self._store.leases.held("chat", [adapter.digest], f"on {self.base.path}")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self._attached.enter_context(held)
                view = self._store.view(adapter.digest)
                model = self._attached.enter_context(models.attached(self._model, view))
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise self._unattachable(adapter, str(error).partition("\n")[0]) from error
        # the rest is libraries talking to their own authors (deprecations)
        told = (one for one in caught if issubclass(one.category, UserWarning))
        said = list(dict.fromkeys(str(one.message) for one in told))
        if any(_MISSING in text for text in said):
            self._on_missing(adapter, _unused(model, view / WEIGHTS_NAME))
        for text in said:
            if not any(known in text for known in (_MISSING, *_KNOWN_WARNINGS)):
                self._remark(f"peft, about {adapter.label}: {text}")
        return model

    def _on_missing(self, adapter: Resolved, unused: list[str]) -> None:
        """The model asks for tensors that the adapter hasn't got. That is harmless unless those it has got found no place."""
        if not unused:
            self._remark(f"{adapter.label}: its configuration names modules it has no weights for")
            return
        why = f"It looks for other names than the adapter has: {some(unused)}."
        if not self._settings.allow_mismatch:
            raise self._unattachable(adapter, why)
        self._remark(f"{adapter.label} is not attached as a whole. {why}")

    def _unattachable(self, adapter: Resolved, why: str) -> UnsupportedError:
        self.close()
        self._model = None  # a part of the adapter may be left on it: it is loaded anew
        return UnsupportedError(
            f"peft can't attach {adapter.label}.",
            why=why,
            hint=f"adapterhub show {adapter.label} --modules",
        )

    def _look_at(self, subject: Subject) -> None:
        """Says what is to be known about an adapter that fits or was allowed, and records the latter."""
        if subject.adapter is None:
            return
        template = self._tokenizer.chat_template
        found = examine(self._store, subject.adapter, self.base, template=template)
        if found.unsound:
            raise UnsupportedError(
                f"{subject.name} can't be used.",
                why="; ".join(found.unsound),
                hint=f"adapterhub fsck --read-data; adapterhub show {subject.name}",
            )
        for text in (*found.misfits, *found.remarks):
            self._remark(f"{subject.name}: {text}")
        if found.template == "different":
            self._remark("--template FILE names the chat template to ask in")
        if found.misfits:
            body = {
                "event": "chat",
                "base": self.base.fingerprint,
                "allowed_mismatch": list(found.misfits),
            }
            self._store.attest(subject.adapter.digest, "note", body)


def _unused(model: Any, weights: Path) -> list[str]:
    """Tensors in the file that the model with the adapter on it has no parameter for."""
    from peft import get_peft_model_state_dict

    placed = get_peft_model_state_dict(model, save_embedding_layers=False)
    known = {name.removeprefix(_PREFIX) for name in placed}
    with TensorFile(weights) as file:
        return [name for name in file.infos if name.removeprefix(_PREFIX) not in known]


def _base_of(
    store: Store, subjects: Sequence[Subject], explicit: str | None, allow_mismatch: bool
) -> BaseModel:
    """The base of the adapters; a whole model is its own, and is talked to alone."""
    if not any(subject.kind == "model" for subject in subjects):
        found = shared_base_of(store, subjects, explicit, allow_mismatch=allow_mismatch)
        assert found is not None, "there are no model folders among them"
        return found
    folder = subjects[0].folder
    if folder is None or len(subjects) > 1 or explicit is not None:
        raise UsageError(
            "A whole model is talked to by itself, without adapters or --base.",
            hint=f"adapterhub chat {next(s.name for s in subjects if s.kind == 'model')}",
        )
    return replace(read_base(folder), repo=None)


def _dtype(base: BaseModel, wanted: str) -> str:
    """What to compute in. AUTO: on a GPU what the base is stored in; on a CPU, where 16 bits are slower than 32 and `eval`
    computes in 32, float32 as long as its weights take no more than half of what is free.
    """
    import torch

    if wanted in models.DTYPES:
        return wanted
    if wanted != AUTO:
        raise UsageError(
            f"'{wanted}' is not a dtype to compute in.",
            hint=f"Use one of: {', '.join((AUTO, *models.DTYPES))}.",
        )
    if base.main_dtype not in models.DTYPES:
        return "float32"
    free = free_on_host()
    small = free is None or 2 * weights_size(base, "float32") <= free
    return "float32" if small and not torch.cuda.is_available() else base.main_dtype


def weights_size(base: BaseModel, dtype: str) -> int:
    """Bytes of its weights; a head that repeats the embedding is loaded once."""
    twice = base.tensors.get(HEAD_NAME) if base.tied and base.embedding else None
    count = sum(info.count for info in base.tensors.values()) - (twice.count if twice else 0)
    return count * _BYTES[dtype]


def _require_room(base: BaseModel, dtype: str) -> None:
    """UnsupportedError where the weights alone are more than what is free. They are read by the host, GPU or not."""
    import torch

    need = weights_size(base, dtype)
    places = [("", free_on_host())]
    if torch.cuda.is_available():
        places.append((" on the GPU", torch.cuda.mem_get_info()[0]))
    for where, free in places:
        if free is not None and need > free:
            smaller = dtype == "float32"
            raise UnsupportedError(
                f"{base.label} doesn't fit in memory.",
                why=f"Its weights take {human_size(need)} in {dtype}, and {human_size(free)} are free{where}.",
                hint="--dtype bfloat16 takes half of that."
                if smaller
                else "Close other programs, or ask it through a server: adapterhub serve",
            )
