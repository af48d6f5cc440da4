"""What each model answered, row by row, in a file: the numbers say how many answers were wrong, these say which."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adapterhub.data.rows import plain_messages
from adapterhub.errors import UsageError
from adapterhub.evaluate.table import Found
from adapterhub.evaluate.task import Asked
from adapterhub.fsio import write_file


def require_room(path: Path) -> None:
    """UsageError, before anything is computed, where the file couldn't be written or would take another's place."""
    if path.exists():
        raise UsageError(f"{path} exists.", hint="--answers FILE takes the name of a new one.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} to write {path.name} into.")


def write_answers(path: Path, found: Sequence[Found], asked: Asked) -> None:
    """A line of JSON for each model and row: what was asked and expected, the answer, and what each measure says of it."""
    lines = (json.dumps(one, ensure_ascii=False) + "\n" for one in _records(found, asked))
    write_file(path, "".join(lines).encode(errors="surrogatepass"), path.parent)


def _records(found: Sequence[Found], asked: Asked) -> Iterator[dict[str, Any]]:
    for model in found:
        for place, row in enumerate(asked.of(model.subject).rows):
            answer = model.answers[place] if model.answers else None
            if answer is None:
                continue
            yield {
                "name": model.subject.name,
                "kind": model.subject.kind,
                **({"part": asked.parts[place]} if asked.parts else {}),
                "row": row.number,
                "question": plain_messages(row.question),
                "expected": row.answers[0] if row.answers else None,
                "answer": answer.text,
                "tokens": answer.tokens,
                "measures": {name: values[place] for name, values in model.values.items()},
            }
