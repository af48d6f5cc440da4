"""What is wrong with rows that can be read: told by file and number, before anything is trained on them.

Refused is what can't be trained on, or not as it is meant: control tokens in a text, rows the limit leaves nothing of.
Everything else is a warning, because there are data for which it is right: few answers to many questions are a
classification, `{{name}}` may be a lesson about templates, and two user turns in a row are fine for some chat templates.
What the reader refuses (empty answers, results of tools that nobody called, ...) never gets here.

Questions and answers are compared without regard to case, white space and the punctuation of prose. All rules together
look at each row a few times, so a hundred thousand rows take seconds.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Generic, TypeVar

from adapterhub.data.masking import Encoded
from adapterhub.data.problems import Health, Problem, Severity
from adapterhub.data.rows import Example, Preference
from adapterhub.data.split import Split
from adapterhub.words import counted, some

R = TypeVar("R", bound=Example)

FEW_ROWS = 500
BOILERPLATE = 0.1
"""The share of rows with one answer from which on it is worth a warning."""
_OWN_WORDS = 40
"""Characters from which on two equal answers are one text, and no "Yes, of course."."""

_PROSE = str.maketrans(dict.fromkeys(".,;:!?'\"()[]{}…“”‘’„«»，。？！：；、（）「」", " "))
_PLACEHOLDER = re.compile(r"\{\{\s*[\w.-]{1,40}\s*\}\}")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_EVALUATION = {"test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation"}


def examine(
    rows: Sequence[R],
    split: Split[R] | None = None,
    *,
    control_tokens: Sequence[str] = (),
    encoded: Mapping[str, Encoded] | None = None,
    max_length: int | None = None,
) -> Health:
    """Looks for everything this module knows.

    Args:
        rows: all rows, in the order of their files.
        split: their two sides, for leaks between them; None: not looked for.
        control_tokens: the tokenizer's, which no text may contain (`masking.control_tokens`).
        encoded: rows as tokens, uncut, by digest; those that are missing are not judged.
        max_length: tokens a row is cut to.
    """
    seen = _Seen(rows)
    found = [
        *_control_tokens(rows, control_tokens),
        *(_too_long(rows, encoded, max_length) if encoded and max_length else ()),
        *_few(rows),
        *_kinds(rows),
        *_duplicates(seen),
        *_conflicts(seen),
        *(_leaks(seen, split) if split is not None else ()),
        *_boilerplate(seen),
        *_texts(rows),
        *_order(rows),
    ]
    return Health.of(found)


def any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    """Finds any of the tokens: there may be hundreds, and asking for each takes a hundred times as long."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class _Seen(Generic[R]):
    """The rows, and what makes two of them alike."""

    def __init__(self, rows: Sequence[R]) -> None:
        self.rows = rows

    @cached_property
    def questions(self) -> list[bytes]:
        """What is asked, or a document's whole text."""
        return [_alike(*([m.content for m in row.question] or row.texts)) for row in self.rows]

    @cached_property
    def answers(self) -> list[list[bytes]]:
        """What is answered."""
        return [[_alike(answer) for answer in row.answers] for row in self.rows]


def _alike(*texts: str) -> bytes:
    """The same for texts that differ in case, white space and punctuation only."""
    plain = (" ".join(text.translate(_PROSE).casefold().split()) for text in texts)
    joined = unicodedata.normalize("NFC", "\n".join(plain))
    return hashlib.blake2b(joined.encode(), digest_size=16).digest()


def _control_tokens(rows: Sequence[Example], tokens: Sequence[str]) -> Iterator[Problem]:
    hurt: defaultdict[str, list[Example]] = defaultdict(list)
    anyone = any_of(tokens)
    for row in rows:
        for token in {found for text in row.texts for found in anyone.findall(text)}:
            hurt[token].append(row)
    for token, those in sorted(hurt.items()):
        yield _problem(
            "control_token",
            "refuse",
            f"{_many(len(those), 'row has', 'rows have')} the control token {token!r} in a text; a tokenizer"
            " reads it as the end or beginning of a turn.",
            those,
        )


def _too_long(
    rows: Sequence[Example], encoded: Mapping[str, Encoded], max_length: int
) -> Iterator[Problem]:
    known = [(row, encoded[row.digest]) for row in rows if row.digest in encoded]
    lost, cut = [], []
    for row, tokens in known:
        if Encoded(tokens.input_ids[:max_length], tokens.labels[:max_length]).trained == 0:
            lost.append(row)
        elif len(tokens.input_ids) > max_length:
            cut.append(row)
    if lost:
        every = len(lost) == len(known)
        yield _problem(
            "dropped",
            "refuse" if every else "warn",
            f"{counted(len(lost), 'row')} would be dropped: no answer begins within {max_length} tokens."
            + (" Nothing is left to train on." if every else ""),
            lost,
        )
    if cut:
        yield _problem(
            "truncated",
            "warn",
            f"{counted(len(cut), 'row')} would be cut at {max_length} tokens and lose the end of the answer; many of"
            " these teach not to stop.",
            cut,
        )


def _few(rows: Sequence[Example]) -> Iterator[Problem]:
    if 0 < len(rows) < FEW_ROWS:
        yield Problem(
            "few_rows",
            "warn",
            f"{counted(len(rows), 'row')}: fewer than {FEW_ROWS} are soon known by heart. Train few epochs, and watch the"
            " held-out loss.",
        )


def _kinds(rows: Sequence[Example]) -> Iterator[Problem]:
    documents = [row for row in rows if not row.turns]
    if 0 < len(documents) < len(rows):
        yield _problem(
            "mixed",
            "warn",
            f"{counted(len(documents), 'row')} of {len(rows)} are documents, learned whole, and the others conversations.",
            documents,
        )
    files = dict.fromkeys(row.file for row in rows)
    meant = [name for name in files if _EVALUATION & set(re.split(r"[^a-z]+", name.lower()))]
    if 0 < len(meant) < len(files):
        yield Problem(
            "evaluation_files",
            "warn",
            f"Some files are named as if nothing should be trained on them: {some(meant, 6)}. They are used like the"
            " others; name the files to use if that is wrong.",
            tuple((name,) for name in meant),
        )


def _duplicates(seen: _Seen[R]) -> Iterator[Problem]:
    exact = _grouped(seen.rows, (row.digest for row in seen.rows))
    if exact:
        extra = sum(len(group) for group in exact) - len(exact)
        yield _together(
            "duplicates",
            f"{_many(extra, 'row repeats', 'rows repeat')} another exactly; each is learned as often as it comes up.",
            exact,
        )
    keys = (
        (question, *answers) for question, answers in zip(seen.questions, seen.answers, strict=True)
    )
    near = [
        group
        for group in _grouped(seen.rows, keys)
        if len({row.digest for row in group}) > 1 and not isinstance(group[0], Preference)
    ]
    if near:
        yield _together(
            "near_duplicates",
            f"{counted(len(near), 'group')} of rows that differ in case, white space or punctuation only.",
            near,
        )


def _conflicts(seen: _Seen[R]) -> Iterator[Problem]:
    """One question, several first answers. For preferences: what one row chooses another rejects."""
    if any(isinstance(row, Preference) for row in seen.rows):
        yield from _contradictions(seen.rows)
        return
    asked: defaultdict[bytes, list[int]] = defaultdict(list)
    for place, question in enumerate(seen.questions):
        if seen.answers[place]:
            asked[question].append(place)
    groups = [
        [seen.rows[place] for place in places]
        for places in asked.values()
        if len({seen.answers[place][0] for place in places}) > 1
    ]
    if groups:
        yield _together(
            "conflicts",
            f"{counted(len(groups), 'question')} with different answers; an adapter learns something between them.",
            groups,
        )


def _contradictions(rows: Sequence[Example]) -> Iterator[Problem]:
    first: dict[object, Preference] = {}
    groups: list[list[Example]] = []
    for row in rows:
        if isinstance(row, Preference):
            other = first.get((row.prompt, row.rejected, row.chosen))
            if other is not None:
                groups.append([other, row])
            first.setdefault((row.prompt, row.chosen, row.rejected), row)
    if groups:
        yield _together(
            "contradictions",
            f"{counted(len(groups), 'pair')} of rows that prefer the opposite of each other.",
            groups,
        )


def _leaks(seen: _Seen[R], split: Split[R]) -> Iterator[Problem]:
    """The split puts equal questions on one side. What is left: questions that differ in their looks, and equal answers.

    Of several answers the longest counts; "You're welcome!" is in many conversations.
    """
    out = {row.digest for row in split.held_out}
    trained = {row.digest for row in split.train} - out
    sides = [
        "out" if row.digest in out else "in" if row.digest in trained else "" for row in seen.rows
    ]
    places = range(len(seen.rows))
    asked = _across(sides, ((place, seen.questions[place]) for place in places))
    if asked:
        yield _together(
            "leaked_questions",
            f"{_many(len(asked), 'held-out row asks', 'held-out rows ask')} what a training row asks, but for case, white"
            " space or punctuation; the held-out loss looks better than it is.",
            [[seen.rows[a], seen.rows[b]] for a, b in asked],
        )
    known = {a for a, _ in asked}
    told = (
        max(zip(map(len, seen.rows[place].answers), seen.answers[place], strict=True), default=None)
        for place in places
    )
    said = _across(
        sides,
        (
            (place, longest[1])
            for place, longest in enumerate(told)
            if longest and longest[0] >= _OWN_WORDS and place not in known
        ),
    )
    if said:
        yield _together(
            "leaked_answers",
            f"{_many(len(said), 'held-out row has', 'held-out rows have')} an answer that a training row has, too; the"
            " held-out loss looks better than it is.",
            [[seen.rows[a], seen.rows[b]] for a, b in said],
        )


def _across(sides: Sequence[str], keyed: Iterable[tuple[int, bytes]]) -> list[tuple[int, int]]:
    """Each held-out place whose key a training place has too, with the first such place."""
    first: dict[bytes, int] = {}
    out: list[tuple[int, bytes]] = []
    for place, key in keyed:
        if sides[place] == "in":
            first.setdefault(key, place)
        elif sides[place] == "out":
            out.append((place, key))
    found = {place: first[key] for place, key in reversed(out) if key in first}
    return sorted(found.items())


def _boilerplate(seen: _Seen[R]) -> Iterator[Problem]:
    counts = Counter(key for answers in seen.answers for key in set(answers))
    for key, count in counts.items():
        if count > max(2, BOILERPLATE * len(seen.rows)):
            hurt = [row for row, keys in zip(seen.rows, seen.answers, strict=True) if key in keys]
            places = seen.answers[seen.rows.index(hurt[0])]
            text = hurt[0].answers[places.index(key)].strip()
            begins = text if len(text) <= 60 else f"{text[:59]}…"
            yield _problem(
                "boilerplate",
                "warn",
                f"{count} of {len(seen.rows)} rows have the same answer, {begins!r}. Unless it is the label of a class, an"
                " adapter will give it to anything.",
                hurt,
            )


def _texts(rows: Sequence[Example]) -> Iterator[Problem]:
    """What only a look into the texts shows."""
    for kind, wrong, words in (
        (
            "placeholders",
            lambda row: any(_PLACEHOLDER.search(answer) for answer in row.answers),
            "with a placeholder like {{name}} in an answer, which will be learned as it stands",
        ),
        (
            "broken_calls",
            lambda row: any(_has_broken_call(answer) for answer in row.answers),
            "with a tool call that is no JSON object with a name, so that nothing could carry it out",
        ),
        (
            "damaged_text",
            lambda row: any("\ufffd" in text for text in row.texts),
            "with the character U+FFFD, which stands for bytes that were once lost",
        ),
    ):
        yield from _where(rows, kind, wrong, words)


def _order(rows: Sequence[Example]) -> Iterator[Problem]:
    """Orders of turns that teach nothing wrong, but that some chat templates refuse or that are seldom meant."""

    def in_a_row(role: str) -> Callable[[Example], bool]:
        return lambda row: any(
            a.role == b.role == role and not (a.content + b.content).count("<tool_call>")
            for a, b in zip(row.turns, row.turns[1:], strict=False)
        )

    for kind, wrong, words in (
        (
            "user_after_user",
            in_a_row("user"),
            "with two user turns in a row, which some chat templates refuse",
        ),
        (
            "answer_after_answer",
            in_a_row("assistant"),
            "with two answers in a row, which some chat templates refuse",
        ),
        (
            "unanswered",
            lambda row: bool(row.turns) and row.turns[-1].role != "assistant",
            "with something after the last answer, from which nothing is learned",
        ),
    ):
        yield from _where(rows, kind, wrong, words)


def _where(
    rows: Sequence[Example], kind: str, wrong: Callable[[Example], bool], words: str
) -> Iterator[Problem]:
    hurt = [row for row in rows if wrong(row)]
    if hurt:
        yield _problem(kind, "warn", f"{counted(len(hurt), 'row')} {words}.", hurt)


def _has_broken_call(answer: str) -> bool:
    if "<tool_call>" not in answer:
        return False
    for call in _CALL.findall(answer):
        try:
            value = json.loads(call)
        except (ValueError, RecursionError):
            return True
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            return True
    return False


def _grouped(rows: Sequence[R], keys: Iterable[object]) -> list[list[R]]:
    """The rows that share a key, where several do, in the order of the first of each."""
    groups: defaultdict[object, list[R]] = defaultdict(list)
    for row, key in zip(rows, keys, strict=True):
        groups[key].append(row)
    return [group for group in groups.values() if len(group) > 1]


def _problem(kind: str, severity: Severity, words: str, rows: Iterable[Example]) -> Problem:
    return Problem(kind, severity, words, tuple((row.where,) for row in rows))


def _together(kind: str, words: str, groups: Iterable[Sequence[Example]]) -> Problem:
    return Problem(kind, "warn", words, tuple(tuple(r.where for r in group) for group in groups))


def _many(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"
