"""What all screens share: the store, what may be done to it, what is remembered, and threads to ask in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import Any, ParamSpec, TypeVar

from adapterhub.fsio import write_file
from adapterhub.store import Store

Question = ParamSpec("Question")
Answer = TypeVar("Answer")

FILE = "tui.json"
"""In the store's home."""


class Memory:
    """Small things that outlive the screen: the theme, saved filters. Lost where the home can't be, or mustn't be, written."""

    def __init__(self, path: Path, *, readonly: bool = False) -> None:
        self._path, self._readonly = path, readonly
        self._lock = Lock()

    def get(self, key: str, default: Any) -> Any:
        """What was kept under `key`; `default` where nothing was, or something of another kind."""
        value = self._read().get(key, default)
        return value if isinstance(value, type(default)) else default

    def set(self, key: str, value: Any) -> None:
        """Keeps a value that JSON can say. Blocks; nothing is said where it can't be written."""
        if self._readonly:
            return
        with self._lock, suppress(OSError):
            if self._path.parent.is_dir():
                document = {**self._read(), key: value}
                data = json.dumps(document, indent=2, ensure_ascii=False).encode()
                write_file(self._path, data, self._path.parent)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Hub:
    """The store that is looked at, and how."""

    store: Store
    memory: Memory
    readonly: bool = False
    """Nothing is changed, whatever key is pressed."""

    @classmethod
    def of(cls, store: Store, *, readonly: bool = False) -> Hub:
        return cls(store, Memory(store.home / FILE, readonly=readonly), readonly)


async def in_thread(
    question: Callable[Question, Answer], *args: Question.args, **kwargs: Question.kwargs
) -> Answer:
    """The answer of `question(...)`, asked in a thread of its own.

    Not one of asyncio's: leaving waits for those, and a store on a dead network disk may never answer.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Answer] = loop.create_future()

    def deliver(result: Answer | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits any more
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(error)

    def run() -> None:
        result, failure = None, None
        try:
            result = question(*args, **kwargs)
        except BaseException as error:  # noqa: BLE001 - whoever asked gets it
            failure = RuntimeError("stopped") if isinstance(error, StopIteration) else error
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(deliver, result, failure)

    Thread(target=run, daemon=True, name=getattr(question, "__name__", "question")).start()
    return await future
