"""The base with retrieved texts before each question: what retrieval alone would have done, beside what training did.

A file says which texts were found for which question, in JSON or JSONL:

    {"question": "When do you open?", "contexts": ["We open at nine.", "On Sundays at ten."]}

Texts go with a question and not with a place in a file: the rows are split by hash, so their order is none to rely on, and
retrieval never saw more than the question. A question that is asked by several rows is looked up once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.data import Row
from adapterhub.data.records import read_records
from adapterhub.data.rows import Message
from adapterhub.errors import FormatError, NotFoundError, UsageError
from adapterhub.words import shown, some

RETRIEVED = "base + contexts"
"""What the base is called that was given them."""

_ENDINGS = (".json", ".jsonl")
_HINT = 'A record is {"question": "...", "contexts": ["...", "..."]}, or with one "context".'


@dataclass(frozen=True)
class Contexts:
    """The texts that were found for each question, best first, by the question without differences of blanks."""

    texts: Mapping[str, tuple[str, ...]]
    name: str

    def given(self, rows: Sequence[Row]) -> list[Row]:
        """The rows as they are asked with their texts. Documents ask nothing, and stay as they are.

        UsageError where a question has no entry, naming how many and the first of them.
        """
        missing = [row for row in rows if row.text is None and _key(_asked(row)) not in self.texts]
        if missing:
            questions = list(dict.fromkeys(_key(_asked(row)) for row in missing))
            first = some([f"{shown(_asked(row))} ({row.where})" for row in missing])
            raise UsageError(
                f"{self.name} has no contexts for {len(questions)} of the questions.",
                why=f"They are matched by the last user message before the answer: {first}.",
                hint='Add them; where nothing was found: {"question": "...", "contexts": []}',
            )
        return [
            with_contexts(row, self.texts[_key(_asked(row))]) if row.text is None else row
            for row in rows
        ]

    def digest(self, rows: Sequence[Row]) -> str:
        """Of what these rows are given, and of no other entry."""
        used = {_key(_asked(row)) for row in rows if row.text is None}
        return digest_of(canonical_bytes({key: list(self.texts[key]) for key in used}))


def read_contexts(path: Path) -> Contexts:
    """The file's entries. NotFoundError where it isn't there, FormatError names the record that is faulty."""
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", hint=_HINT)
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(f"{path.name} must end in {' or '.join(_ENDINGS)}.", hint=_HINT)
    texts: dict[str, tuple[str, ...]] = {}
    for number, record in read_records(path, path.name):
        question, found = _entry(record, f"{path.name}:{number}")
        if texts.setdefault(_key(question), found) != found:
            raise FormatError(
                f"{path.name}:{number} has other contexts for a question that was there before.",
                why=shown(question),
                hint="Keep one of the two.",
            )
    return Contexts(texts, path.name)


def with_contexts(row: Row, texts: Sequence[str]) -> Row:
    """The row with the texts before the question, in its last user message before the answer:

        Context:

        [1] The first text.

        [2] The second text.

        Question:

        The question as it was.

    Where there are no texts, the row as it is.
    """
    place = _place(row)
    if not texts or place is None:
        return row
    told = [f"[{number}] {text}" for number, text in enumerate(texts, start=1)]
    asked = "\n\n".join(["Context:", *told, "Question:", row.messages[place].content])
    turns = [*row.messages]
    turns[place] = Message("user", asked)
    return replace(row, messages=tuple(turns))


def _place(row: Row) -> int | None:
    """Where the last user message before the answer is."""
    places = [at for at, message in enumerate(row.question) if message.role == "user"]
    return places[-1] if places else None


def _asked(row: Row) -> str:
    place = _place(row)
    return "" if place is None else row.messages[place].content


def _key(text: str) -> str:
    return " ".join(text.split())


def _entry(record: Any, where: str) -> tuple[str, tuple[str, ...]]:
    entry = record if isinstance(record, dict) else {}
    question = entry.get("question")
    if ("context" in entry) == ("contexts" in entry):
        found = None
    else:
        found = entry["contexts"] if "contexts" in entry else [entry["context"]]
    if (
        not isinstance(question, str)
        or not question.strip()
        or not isinstance(found, list)
        or not all(isinstance(text, str) for text in found)
    ):
        raise FormatError(
            f"{where} is no question with its contexts.", why=shown(record), hint=_HINT
        )
    return question, tuple(found)
