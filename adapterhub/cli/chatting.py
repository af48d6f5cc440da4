"""`chat`: talk to an adapter without a server, through transformers with the adapter attached."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapterhub.cli.command import Context, command, require_extra
from adapterhub.errors import AdapterHubError, UsageError

if TYPE_CHECKING:
    from adapterhub.evaluate.chat import Said, Talk
    from adapterhub.evaluate.subjects import Subject

_HELP = """\
/adapter NAME   let another adapter answer from here on
/base           hear the base's answer to the last question
/reset          forget what was said
/quit           leave; so does Ctrl-D, and Ctrl-C where you type
/help           this list
Ctrl-C stops an answer. A line that ends in \\ goes on in the next one."""


@command
def chat(
    ctx: Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME... | MODEL_FOLDER",
            help="Adapters, the word `base`, or one folder of an exported model.",
        ),
    ],
    base: Annotated[
        str | None, typer.Option(help="Folder or repository; by default the first adapter's own.")
    ] = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Said to the model before everything else.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Ask just this. Off a terminal, what is piped in is asked."
        ),
    ] = None,
    base_too: Annotated[
        bool, typer.Option("--base-too", help="Let the base answer as well, to compare.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=1)] = 256,
    temperature: Annotated[
        float, typer.Option(help="0 takes the likeliest token each time.", min=0)
    ] = 0.0,
    seed: Annotated[
        int | None, typer.Option(help="Of the draw, above temperature 0: the same again.", min=0)
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            help="auto, float32, bfloat16 or float16. On a CPU auto is float32, if it fits."
        ),
    ] = "auto",
    template: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A chat template in place of the base's own."),
    ] = None,
    allow_mismatch: Annotated[
        bool, typer.Option("--allow-mismatch", help="Go on although one doesn't fit the base.")
    ] = False,
) -> None:
    """Talk to an adapter on this machine, without a server."""
    for package in ("torch", "transformers", "peft"):
        require_extra(package, "train")
    talking = prompt is None and ctx.out.interactive
    question = "" if talking else _question(prompt)
    from adapterhub.evaluate.chat import Settings, Talk

    settings = Settings(system, max_tokens, temperature, seed, dtype, template, allow_mismatch)
    with ctx.out.progress("Looking at the adapters") as progress:
        talk = Talk(ctx.store, names, base=base, settings=settings, remark=ctx.out.warn)
        compared = None
        if base_too and all(subject.kind != "base" for subject in talk.subjects):
            compared = talk.the_base()
        progress.update(f"Loading {talk.base.label} in {talk.dtype}")
        talk.load()
    with closing(talk):
        if not talk.converses:
            ctx.out.note(f"{talk.base.label} has no chat template: texts are continued.")
        if talking:
            _Terminal(ctx, talk, compared).run()
        else:
            _answer(ctx, talk, question, [*talk.subjects, *([compared] if compared else [])])


def _question(prompt: str | None) -> str:
    """What to ask where nobody types."""
    if prompt is None and sys.stdin.isatty():
        raise UsageError("What should be asked?", hint="--prompt TEXT, or pipe a text in.")
    question = sys.stdin.read().removesuffix("\n") if prompt is None else prompt
    if not question.strip():
        raise UsageError("The question is empty.", hint="--prompt TEXT, or pipe a text in.")
    return question


def _answer(ctx: Context, talk: Talk, question: str, subjects: Sequence[Subject]) -> None:
    """One question to each, and nothing but the answers on stdout; with a line above each where they are several."""
    rows: list[dict[str, Any]] = []
    for subject in subjects:
        if len(subjects) > 1:
            ctx.out.piece("\n" * bool(rows) + f"{_label(talk, subject)}:\n")
        talk.reset()
        rows.append(_said(ctx, talk.ask(subject, question, heard=ctx.out.piece)).row())
    if ctx.out.mode == "json" and len(rows) == 1:
        ctx.out.record(rows[0])
    elif ctx.out.mode == "json":
        ctx.out.table(rows, ())


def _label(talk: Talk, subject: Subject) -> str:
    return f"base {talk.base.label}" if subject.kind == "base" else subject.name


def _said(ctx: Context, said: Said) -> Said:
    """Ends the line, and says where the answer isn't whole."""
    if not said.answer.text.endswith("\n"):
        ctx.out.piece("\n")
    if said.answer.ended == "length":
        ctx.out.note(
            f"It was cut off after {len(said.answer.tokens)} tokens: --max-tokens, or all that the base reads."
        )
    return said


class _Terminal:
    """Question and answer with a person."""

    def __init__(self, ctx: Context, talk: Talk, compared: Subject | None) -> None:
        self._ctx, self._talk, self._compared = ctx, talk, compared
        self._subject = talk.subjects[0]
        self._commands: dict[str, Callable[[str], Any]] = {
            "/adapter": self._adapter,
            "/base": self._base,
            "/reset": self._reset,
            "/help": self._help,
        }

    def run(self) -> None:
        """Until /quit, Ctrl-D or Ctrl-C at the prompt."""
        base = "" if self._subject.kind == "model" else f" on {self._talk.base.label}"
        self._ctx.out.note(f"{self._subject.name}{base}, {self._talk.dtype}. /help lists commands.")
        while True:
            try:
                line = self._line()
            except KeyboardInterrupt:
                line = None
            if line is None:
                self._ctx.out.piece("\n")
                return
            if line in ("/quit", "/exit"):
                return
            try:
                self._do(line)
            except AdapterHubError as error:
                self._ctx.out.error(error)
            except KeyboardInterrupt:  # pressed twice while it answered
                self._ctx.out.piece("\n")

    def _line(self) -> str | None:
        """What is typed, over several lines where they end in a backslash."""
        line = self._ctx.out.ask(f"{self._subject.name}> ")
        while line is not None and line.endswith("\\"):
            more = self._ctx.out.ask("… ")
            line = None if more is None else f"{line[:-1]}\n{more}"
        return line

    def _do(self, line: str) -> None:
        word, _, rest = line.strip().partition(" ")
        if word in self._commands:
            self._commands[word](rest.strip())
        elif line.startswith("/"):
            raise UsageError(
                f"There is no command {word}.", hint="/help lists them; a blank before it asks it."
            )
        elif line.strip():
            self._ask(line)

    def _ask(self, question: str) -> None:
        with _halting() as halted:
            said = self._talk.ask(self._subject, question, heard=self._ctx.out.piece, halted=halted)
            _said(self._ctx, said)
        if self._compared and self._subject.kind != "base" and said.answer.ended != "halted":
            other = self._again(self._compared)
            if other.answer.tokens == said.answer.tokens:
                self._ctx.out.note("The two answers are the same.")

    def _again(self, subject: Subject) -> Said:
        self._ctx.out.note(f"{_label(self._talk, subject)}:")
        with _halting() as halted:
            return _said(
                self._ctx, self._talk.ask_again(subject, heard=self._ctx.out.piece, halted=halted)
            )

    def _base(self, _: str) -> None:
        self._again(self._talk.the_base())

    def _adapter(self, name: str) -> None:
        if not name:
            known = ", ".join(subject.name for subject in self._talk.subjects)
            raise UsageError("Which adapter?", why=f"Named so far: {known}.", hint="/adapter NAME")
        self._subject = self._talk.find(name)

    def _reset(self, _: str) -> None:
        self._talk.reset()
        self._ctx.out.note("Forgotten.")

    def _help(self, _: str) -> None:
        self._ctx.out.note(_HELP)


@contextmanager
def _halting() -> Iterator[Callable[[], bool]]:
    """Ctrl-C is only noted, for the answer to end after the token that is being made; pressed again, it interrupts."""
    pressed = False

    def note(number: int, frame: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
