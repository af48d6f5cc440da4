"""A talk in a process of its own: it can be ended at any moment, and with it goes the memory it took.

The process reads orders as JSON lines and answers with JSON lines. It ends when whoever started it does, for then its
stdin ends. One question is answered at a time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Event, Lock, Thread
from typing import IO, Any

from adapterhub.data import Message
from adapterhub.errors import AdapterHubError, ExternalToolError
from adapterhub.store import Store

Heard = Callable[[str], None]

_LEAVING_SECONDS = 2.0


@dataclass(frozen=True)
class Prepared:
    """What is known before the weights are loaded. `free`: bytes of memory, where that can be told."""

    base: str
    dtype: str
    bytes: int
    free: int | None
    converses: bool
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Spoken:
    """One answer. `ended` is stop, length or halted."""

    text: str
    tokens: int
    seconds: float
    ended: str


class ChatProcess:
    """The process, for one user at a time but for `halt` and `close`, which anybody may call."""

    def __init__(self, store: Store, names: Sequence[str], base: str | None = None) -> None:
        self._leases = store.leases
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                __name__,
                json.dumps([str(store.home), list(names), base]),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            start_new_session=True,  # Ctrl-C in the terminal is for whoever shows the answers
        )
        self._writing = Lock()

    @property
    def alive(self) -> bool:
        """Whether it can still be asked."""
        return self._process.poll() is None

    def prepare(self) -> Prepared:
        """What it found of the adapters and the base. To be called first; raises as `Talk` does."""
        found = self._next(lambda _: None)
        return Prepared(**{**found, "remarks": tuple(found["remarks"])})

    def load(self) -> None:
        """Loads the weights, which takes its time."""
        self._order({"load": True})
        self._next(lambda _: None)

    def ask(
        self,
        name: str,
        turns: Sequence[tuple[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        heard: Heard,
    ) -> Spoken:
        """The answer of `name` (an adapter, or the word `base`) to turns of (role, content)."""
        self._order(
            {
                "ask": name,
                "turns": list(turns),
                "max_tokens": max_tokens,
                "temperature": temperature,
            }
        )
        return Spoken(**self._next(heard))

    def halt(self) -> None:
        """Ends the answer that is being written after its next token."""
        with suppress(ExternalToolError):
            self._order({"halt": True})

    def close(self) -> None:
        """Ends the process, and with it all that it holds. It has a moment to give its leases back."""
        self._process.terminate()
        try:
            self._process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._leases.forget(self._process.pid)
        for stream in (self._process.stdin, self._process.stdout, self._said):
            with suppress(OSError, ValueError):
                assert stream is not None
                stream.close()

    def _order(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            with self._writing:
                self._process.stdin.write(json.dumps(order).encode() + b"\n")
                self._process.stdin.flush()
        except (OSError, ValueError):
            raise self._ended() from None

    def _next(self, heard: Heard) -> dict[str, Any]:
        """What comes of an order; pieces of an answer are told on the way."""
        assert self._process.stdout is not None
        while True:
            try:
                line = self._process.stdout.readline()
            except ValueError:  # closed meanwhile
                line = b""
            if not line:
                raise self._ended()
            found: dict[str, Any] = json.loads(line)
            if "piece" in found:
                heard(found["piece"])
            elif "error" in found:
                raise AdapterHubError(**found["error"])
            else:
                return found

    def _ended(self) -> ExternalToolError:
        code = self._process.poll()
        memory = "Memory may have run out, if nobody ended it. " if code == -9 else ""
        try:
            self._said.seek(0)
            said = self._said.read().decode("utf-8", "replace").strip().splitlines()
        except ValueError:  # closed meanwhile
            said = []
        return ExternalToolError(
            "The process that answers has ended.",
            why=memory + (said[-1] if said else ""),
            hint="Ask again, and it is started anew.",
        )


class _Child:
    """The other side: a talk that takes orders."""

    def __init__(self, home: str, names: Sequence[str], base: str | None, out: IO[bytes]) -> None:
        self._out = out
        self._orders: Queue[dict[str, Any]] = Queue()
        self._halted = Event()
        self._remarks: list[str] = []
        Thread(target=self._read, daemon=True).start()
        from adapterhub.evaluate.chat import Settings, Talk
        from adapterhub.free_memory import free_on_host

        self._talk = Talk(
            Store.open(Path(home)),
            names,
            base=base,
            settings=Settings(),
            remark=self._remarks.append,
        )
        self._subjects = {subject.name: subject for subject in self._talk.subjects}
        self._say(
            base=self._talk.base.label, dtype=self._talk.dtype, bytes=self._talk.size,
            free=free_on_host(), converses=self._talk.converses, remarks=self._remarks,
        )  # fmt: skip

    def close(self) -> None:
        """Gives back what it holds in the store."""
        self._talk.close()

    def run(self) -> None:
        """Takes orders until it is told to end."""
        while True:
            order = self._orders.get()
            try:
                self._do(order)
            except AdapterHubError as error:
                self.refuse(error)

    def refuse(self, error: AdapterHubError) -> None:
        """Says an error."""
        self._say(error={"what": error.what, "why": error.why, "hint": error.hint})

    def _do(self, order: Mapping[str, Any]) -> None:
        if "load" in order:
            self._talk.load()
            self._say(loaded=True)
            return
        name = str(order["ask"])
        subject = self._subjects.get(name) or self._talk.find(name)
        said = self._talk.reply(
            subject,
            [Message(role, content) for role, content in order["turns"]],
            max_tokens=order["max_tokens"],
            temperature=order["temperature"],
            heard=lambda piece: self._say(piece=piece),
            halted=self._halted.is_set,
        )
        self._say(
            text=said.answer.text, tokens=len(said.answer.tokens), seconds=said.seconds,
            ended=said.answer.ended,
        )  # fmt: skip

    def _say(self, **message: object) -> None:
        self._out.write(json.dumps(message).encode() + b"\n")
        self._out.flush()

    def _read(self) -> None:
        """Orders from stdin. An end of it ends the process, as SIGTERM does."""
        for line in sys.stdin.buffer:
            order = json.loads(line)
            if "halt" in order:
                self._halted.set()
            else:
                self._halted.clear()
                self._orders.put(order)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_LEAVING_SECONDS)
        os._exit(0)  # it is within a library, which doesn't come back


def main() -> None:
    """Runs in the process."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no message of ours
    home, names, base = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, _leave)
    try:
        child = _Child(home, names, base, out)
    except AdapterHubError as error:
        words = {"what": error.what, "why": error.why, "hint": error.hint}
        out.write(json.dumps({"error": words}).encode() + b"\n")
        out.flush()
        return
    try:
        child.run()
    except SystemExit:
        pass
    except Exception:  # noqa: BLE001 - its last line is told
        traceback.print_exc()
    child.close()
    os._exit(0)  # at once: the thread that reads orders keeps the interpreter from ending in order


def _leave(number: int, frame: object) -> None:
    """Unwinds what the process is doing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit


if __name__ == "__main__":
    main()
