"""The one sink for everything the command line says.

stdout is data: a table or record for people, `--json` for programs, bare ids with `-q`. stderr is everything else:
remarks, warnings, progress, errors. Tables and colour are for terminals; a pipe gets tab-separated lines, complete.
Strings may come from strangers' files, so they are never read as markup, and control characters are made visible.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import IO, Any, ClassVar, Literal, Protocol

from adapterhub.errors import AdapterHubError, UsageError
from adapterhub.words import human_size

Mode = Literal["human", "json", "quiet"]
_NONE = type(None)
_MOST_RICH = 500
"""Rows of a table with a frame."""

# C0, DEL, C1, marks that reorder text (bidi), line separators, and the lone surrogates that stand for bytes which are
# no UTF-8: a name made of these could command a terminal or pretend to be another.
_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def clean(value: object, *, keep_newlines: bool = False) -> str:
    """`value` as text that can't command a terminal."""

    def visible(match: re.Match[str]) -> str:
        found = match[0]
        if keep_newlines and found == "\n":
            return found
        return f"\\x{ord(found):02x}" if ord(found) < 256 else f"\\u{ord(found):04x}"

    text = str(value)
    # Nothing printable is among them, and asking that is much faster than searching.
    return text if text.isprintable() else _CONTROL.sub(visible, text)


def to_json(value: object, indent: int | None = None) -> str:
    """JSON in which every control character is escaped, also those that JSON itself would let through."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str, allow_nan=False)
    return _CONTROL.sub(lambda m: m[0] if m[0] == "\n" else f"\\u{ord(m[0]):04x}", text)


class Progress(Protocol):
    """A running piece of work, shown on stderr."""

    def advance(self, amount: float = 1, **status: object) -> None:
        """`amount` more units are done; `status` (loss=1.2, ...) is shown beside the bar."""

    def update(self, text: str) -> None:
        """Says what is being done now."""


class Listener(Protocol):
    """Who hears what a command that nobody watches has to say."""

    def tell(self, value: object, text: str) -> None:
        """The data, and the same as JSON."""

    def fail(self, error: AdapterHubError) -> None:
        """An error."""


class Output:
    """Prints what a command has to say, in one of three modes."""

    listener: ClassVar[Listener | None] = None
    """Takes data in place of stdout, and leaves stderr to people, where this process works on somebody's run."""

    def __init__(
        self, mode: Mode = "human", *, stdout: IO[str] | None = None, stderr: IO[str] | None = None
    ) -> None:
        self.mode = mode
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self._live: Any = None
        """The console of a bar that is on the terminal: what is said meanwhile goes above it."""

    # Data: stdout

    def table(
        self,
        rows: Sequence[Mapping[str, Any]],
        columns: Sequence[str],
        *,
        ids: str = "name",
        title: str = "",
    ) -> None:
        """Rows as a table, a JSON array, or the `ids` column. JSON holds every key of a row, the table only `columns`."""
        if self.mode == "json":
            self._print_json(list(rows))
        elif self.mode == "quiet":
            for row in rows:
                self._line(clean(row[ids]))
        elif not self._stdout.isatty():
            cells = [_cells([row.get(column) for row in rows]) for column in columns]
            lines = map("\t".join, zip(*cells, strict=True))
            self._line("\n".join(["\t".join(columns), *lines]))
        elif len(rows) > _MOST_RICH:
            self._plain_table(rows, columns)
        else:
            self._rich_table(rows, columns, title)

    def record(
        self, record: Mapping[str, Any], *, ids: Sequence[str] = (), title: str = ""
    ) -> None:
        """One thing: `key: value` lines, a JSON object, or the values of the keys `ids`."""
        if self.mode == "json":
            self._print_json(dict(record))
        elif self.mode == "quiet":
            for key in ids:
                self._line(clean(record[key]))
        else:
            if title:
                self._line(clean(title))
            self._lines(record, "")

    def text(self, text: str) -> None:
        """Words for people only (a drawing, a command line); nothing in the other modes."""
        if self.mode == "human":
            for line in text.split("\n"):
                self._line(clean(line))

    def piece(self, text: str) -> None:
        """A part of a long text that is still being made, at once; lines and tabs are as they come. Not as JSON."""
        if self.mode != "json":
            self._stdout.write("\t".join(clean(p, keep_newlines=True) for p in text.split("\t")))
            self._stdout.flush()

    def stream(self, pieces: Iterable[str], *, about: Mapping[str, Any]) -> None:
        """An answer while it comes, and the line ended; as JSON a record of `about` and the whole `answer`."""
        told = []
        for text in pieces:
            told.append(text)
            self.piece(text)
        whole = "".join(told)
        if self.mode == "json":
            self._print_json({**about, "answer": whole})
        elif not whole.endswith("\n"):
            self.piece("\n")

    @property
    def width(self) -> int | None:
        """Columns of the terminal that stdout is; None where it is none."""
        return self._console(self._stdout).width if self._stdout.isatty() else None

    def pieces(self, lines: Sequence[Sequence[tuple[str, str]]]) -> None:
        """Lines of (text, style of rich) for people; without colour where there is none."""
        if self.mode != "human":
            return
        if not self._stdout.isatty():
            for line in lines:
                self._line(clean("".join(text for text, _ in line)).rstrip())
            return
        from rich.text import Text

        console = self._console(self._stdout)
        for line in lines:
            text = Text.assemble(*((clean(piece), style) for piece, style in line))
            console.print(text, soft_wrap=True)

    # Everything else: stderr

    def note(self, text: str) -> None:
        """A remark; not with -q."""
        if self.mode != "quiet":
            self._say("", text)

    def warn(self, text: str) -> None:
        """Something a person should know before relying on the result."""
        self._say("warning: ", text, "yellow")

    def error(self, error: AdapterHubError) -> None:
        """What happened, why, and what to type next."""
        if self.listener is not None:
            self.listener.fail(error)
        elif self.mode == "json":
            body = {
                "what": error.what,
                "why": error.why,
                "hint": error.hint,
                "exit_code": int(error.exit_code),
            }
            self._stderr.write(to_json({"error": body}) + "\n")
            return
        self._say("error: ", error.what, "bold red")
        for part in (error.why, error.hint):
            if part:
                self._say("  ", part)

    def progress(
        self,
        description: str,
        total: float | None = None,
        *,
        above: Callable[[int], Sequence[str]] | None = None,
    ) -> AbstractContextManager[Progress]:
        """Shows work of `total` units while the block runs; on a terminal under the lines of `above(its width)`."""
        return self._working(description, total, "", above)

    def transfer(
        self, description: str, total: float | None = None
    ) -> AbstractContextManager[Progress]:
        """As `progress`, in bytes: with how many a second, and the time left."""
        return self._working(description, total, "bytes")

    def confirm(self, question: str, *, yes: bool, flag: str = "--yes") -> None:
        """Asks before something is destroyed; off a terminal refuses unless `yes`, naming the flag."""
        if yes:
            return
        if not sys.stdin.isatty() or not self._stderr.isatty():
            raise UsageError(f"{question} This needs a yes.", hint=f"Say it with {flag}.")
        self._stderr.write(clean(question) + " [y/N] ")
        self._stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UsageError("Nothing was done.")

    @property
    def interactive(self) -> bool:
        """Whether a person can be asked and answered: people's words, on a terminal, typed at one."""
        return self.mode == "human" and sys.stdin.isatty() and self._stdout.isatty()

    def ask(self, label: str) -> str | None:
        """A line that a person types, with the keys and the history of readline; None at the end of the input."""
        with suppress(ImportError):
            import readline  # noqa: F401 - input() uses it once it is there
        try:
            return input(clean(label))
        except EOFError:
            return None

    # How

    def _print_json(self, value: object) -> None:
        text = to_json(value, indent=2)
        if self.listener is not None:
            self.listener.tell(value, text)
        else:
            self._line(text)

    def _line(self, text: str) -> None:
        self._stdout.write(text + "\n")

    def _say(self, label: str, text: str, style: str = "") -> None:
        words = clean(text, keep_newlines=True)
        if self._stderr.isatty():
            from rich.text import Text

            console = self._live or self._console(self._stderr)
            console.print(Text(label, style=style) + Text(words), soft_wrap=True)
        else:
            self._stderr.write(label + words + "\n")
        self._stderr.flush()

    def _lines(self, record: Mapping[str, Any], indent: str) -> None:
        width = max((len(key) for key in record), default=0)
        for key, value in record.items():
            if isinstance(value, Mapping):
                self._line(f"{indent}{clean(key)}")
                self._lines(value, indent + "  ")
            elif isinstance(value, list) and value and all(isinstance(i, Mapping) for i in value):
                self._line(f"{indent}{clean(key)}")
                for item in value:
                    plain = [part for part in item.values() if not isinstance(part, Mapping)]
                    self._line(f"{indent}  " + "  ".join(clean(_shown(part)) for part in plain))
                    for part in item.values():
                        if isinstance(part, Mapping):
                            self._lines(part, indent + "    ")
            else:
                self._line(f"{indent}{clean(key):<{width}}  {clean(_shown(value))}".rstrip())

    def _plain_table(self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
        """Aligned columns without a frame: for so many rows rich needs seconds."""
        cells = [[column, *_cells([row.get(column) for row in rows])] for column in columns]
        padded = []
        for texts in cells:
            wide = max(map(_width, texts))
            padded.append([text + " " * (wide - _width(text)) for text in texts])
        self._line("\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True)))

    def _rich_table(
        self, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str
    ) -> None:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(title) if title else None,
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            title_justify="left",
        )
        for column in columns:
            numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
            table.add_column(column, justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(
                *(Text(clean(_shown(row.get(column)), keep_newlines=True)) for column in columns)
            )
        self._console(self._stdout).print(table)

    @contextmanager
    def _working(
        self,
        description: str,
        total: float | None,
        unit: Literal["", "bytes"],
        above: Callable[[int], Sequence[str]] | None = None,
    ) -> Iterator[Progress]:
        from adapterhub.progress import told

        transfer = unit == "bytes"
        with ExitStack() as stack:
            bar: Progress
            if self.mode == "human" and self._stderr.isatty():
                console = stack.enter_context(self._drawing())
                drawn = _bar(console, description, total, transfer=transfer, above=above)
                bar = stack.enter_context(drawn)
            elif transfer:
                bar = _Bytes(self, description, total)
            else:
                bar = _Lines(self, description, total)
            yield stack.enter_context(told(bar, description, total, unit))

    @contextmanager
    def _drawing(self) -> Iterator[Any]:
        """The console to draw a bar on; a bar within a bar draws on a console of its own."""
        console, before = self._console(self._stderr), self._live
        self._live = before or console
        try:
            yield console
        finally:
            self._live = before

    def _console(self, stream: IO[str]) -> Any:
        from rich.console import Console

        return Console(
            file=stream,
            highlight=False,
            markup=False,
            emoji=False,
            no_color="NO_COLOR" in os.environ,
        )


def _cells(values: list[Any]) -> list[str]:
    """The values of a column as a line of a table has them. There may be ten thousand: looked at together first."""
    kinds = set(map(type, values))
    if kinds <= {str}:
        texts = [value or "–" for value in values]
    elif kinds <= {int, _NONE} or kinds <= {float, _NONE} or kinds <= {str, _NONE}:
        shown = {
            value: _shown(value) for value in set(values)
        }  # of one type, so no two are mixed up
        texts = [shown[value] for value in values]
    else:
        texts = list(map(_shown, values))
    return texts if "".join(texts).isprintable() else list(map(clean, texts))


def _width(text: str) -> int:
    """Columns of a terminal that the text takes."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _shown(value: object) -> str:
    """A value as people read it in a cell."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(_shown(item) for item in value) or "–"
    return str(value)


class _Lines:
    """Progress where there is no terminal: a line when it begins, and one at most every ten seconds."""

    _SECONDS = 10.0

    def __init__(self, out: Output, description: str, total: float | None) -> None:
        self._out = out
        self._description = description
        self._total = total
        self._done = 0.0
        self._last = time.monotonic()
        out.note(f"{description} …")

    def advance(self, amount: float = 1, **status: object) -> None:
        self._done += amount
        if time.monotonic() - self._last >= self._SECONDS:
            self._last = time.monotonic()
            extra = "".join(f"  {key} {_shown(value)}" for key, value in status.items())
            self._out.note(self._said(extra))

    def update(self, text: str) -> None:
        self._description = text

    def _said(self, extra: str) -> str:
        of = "" if self._total is None else f" of {self._total:g}"
        return f"{self._description}: {round(self._done, 1):g}{of}{extra}"


class _Bytes(_Lines):
    """As `_Lines`, in bytes."""

    def __init__(self, out: Output, description: str, total: float | None) -> None:
        super().__init__(out, description, total)
        self._began = self._last

    def _said(self, extra: str) -> str:
        speed = self._done / max(1e-9, time.monotonic() - self._began)
        text = human_size(self._done)
        if self._total is not None:
            text += f" of {human_size(self._total)}"
        text += f", {human_size(speed)}/s"
        if self._total is not None and speed > 0:
            text += f", {max(0.0, self._total - self._done) / speed:.0f} s left"
        return f"{self._description}: {text}{extra}"


class _Bar:
    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task

    def advance(self, amount: float = 1, **status: object) -> None:
        extra = "  ".join(f"{key} {_shown(value)}" for key, value in status.items())
        self._bar.update(self._task, advance=amount, **({"status": clean(extra)} if extra else {}))

    def update(self, text: str) -> None:
        self._bar.update(self._task, description=clean(text), status="")


@contextmanager
def _bar(
    console: Any,
    description: str,
    total: float | None,
    *,
    transfer: bool = False,
    above: Callable[[int], Sequence[str]] | None = None,
) -> Iterator[_Bar]:
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Drawn(RichProgress):
        def get_renderables(self) -> Iterator[Any]:
            if above is not None:
                yield from (Text(clean(line), no_wrap=True) for line in above(console.width))
            yield from super().get_renderables()

    counted: tuple[ProgressColumn, ...] = ()
    if transfer:
        counted = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    elif total is not None:
        counted = (MofNCompleteColumn(),)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *counted,
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    with Drawn(*columns, console=console, transient=True) as bar:
        yield _Bar(bar, bar.add_task(clean(description), total=total, status=""))
