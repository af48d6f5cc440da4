"""Where the answers are in a rendered conversation, and that each begins where the model will be asked to begin it.

A template with `{% generation %}` marks says where answers are. Any other is rendered turn by turn, and what an
assistant turn adds after the generation prompt is the answer. That needs a template that leaves earlier text unchanged
as turns follow, which some don't: Qwen3 drops earlier thoughts, Phi-3 moves its end token. Then a copy of the template
that has marks is taken, if one is known and gives this very text for this very row.

However found, an answer must begin right after the generation prompt. Trained behind anything else, the adapter answers
a prompt that no server will send.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub.data.templates import (
    chat_template,
    has_marks,
    marked_copies,
    render,
    render_marked,
)
from adapterhub.errors import IncompatibleError
from adapterhub.words import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from adapterhub.data.rows import Row

_HELP = "docs/templates.md shows how to write the marks"


def place(row: Row) -> str:
    """Where people find the row: its number and, where it is known, its file."""
    return f"{row.number} of {row.file}" if row.file else str(row.number)


class _Conversation:
    """One row and its template: renders the row, or the prompt before one of its turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, row: Row) -> None:
        self.tokenizer = tokenizer
        self.template = chat_template(tokenizer)
        self.place = place(row)
        self.messages = [{"role": m.role, "content": m.content} for m in row.messages]
        self.answers = [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]
        self.text = self.upto(len(self.messages))

    def upto(self, turn: int, *, prompt: bool = False) -> str:
        """The text of the turns before `turn`, with the generation prompt or without."""
        return render(
            self.tokenizer,
            self.template,
            self.messages[:turn],
            row=self.place,
            add_generation_prompt=prompt,
        )

    def marked(self, template: str) -> tuple[str, list[tuple[int, int]]]:
        """The text and the marked spans that another template gives."""
        return render_marked(self.tokenizer, template, self.messages, row=self.place)


def answer_spans(tokenizer: PreTrainedTokenizerBase, row: Row) -> tuple[str, list[tuple[int, int]]]:
    """The row's text, and for every assistant turn the characters (end exclusive) that the model is to write.

    Raises IncompatibleError when the template can't render the row, doesn't show the answers, or shows them behind
    something other than the generation prompt.
    """
    talk = _Conversation(tokenizer, row)
    if not has_marks(talk.template):
        spans, changed = _from_turns(talk)
        if changed is None:
            return talk.text, spans
        found = _from_copies(talk)
        if found is None:
            raise IncompatibleError(
                "The chat template doesn't show which tokens are the answers.",
                why=f"Row {talk.place}: the text up to turn {changed + 1} is another once more turns follow it,"
                " or doesn't begin with the generation prompt; and no copy of the template with"
                " {% generation %} marks is known.",
                hint=f"Use rows with one answer each, or a template with marks: {_HELP}.",
            )
        return talk.text, found
    text, spans = talk.marked(talk.template)
    if text != talk.text:
        raise IncompatibleError(
            "The {% generation %} marks change what the chat template renders.",
            why=f"Row {talk.place}: without them its text is another.",
            hint=f"Put them around whole answers, outside of filters and macros: {_HELP}.",
        )
    return text, _after_prompts(talk, spans)


def _from_turns(talk: _Conversation) -> tuple[list[tuple[int, int]], int | None]:
    """The answers by rendering turn after turn, and the first whose text doesn't stay (then they are of no use)."""
    spans: list[tuple[int, int]] = []
    for turn in talk.answers:
        prompt = talk.upto(turn, prompt=True)
        upto = talk.upto(turn + 1)
        if not (talk.text.startswith(upto) and upto.startswith(prompt)):
            return spans, turn
        spans.append((len(prompt), len(upto)))
    return spans, None


def _from_copies(talk: _Conversation) -> list[tuple[int, int]] | None:
    """The answers as the first marked copy shows them that renders this row alike."""
    for copy in marked_copies(talk.tokenizer, talk.template):
        try:
            text, spans = talk.marked(copy)
        except IncompatibleError:  # the original renders the row, so this is no copy of it
            continue
        if text == talk.text and spans:
            return _after_prompts(talk, spans)
    return None


def _after_prompts(talk: _Conversation, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The marked spans, one an answer, each from the end of its generation prompt on."""
    if not spans:
        raise IncompatibleError(
            "Nothing would be trained: the chat template marks no token of the answers.",
            why=f"Row {talk.place} was rendered without any assistant tokens.",
            hint=f"Put the marks around the assistant's turns: {_HELP}.",
        )
    if len(spans) != len(talk.answers):
        raise IncompatibleError(
            "The chat template's {% generation %} marks are not one pair an answer.",
            why=f"Row {talk.place} has {len(talk.answers)} answers and {len(spans)} marked parts.",
            hint=f"Mark each assistant turn from its beginning to its stop token: {_HELP}.",
        )
    return [
        (_begin(talk, turn, begin, end), end)
        for turn, (begin, end) in zip(talk.answers, spans, strict=True)
    ]


def _begin(talk: _Conversation, turn: int, begin: int, end: int) -> int:
    """Where the answer of `turn` begins, whose marks begin at `begin`.

    Marks may take in (part of) the generation prompt, as trl's for Qwen2.5 do; the prompt is never the model's to
    write, so it is left out. The text before an earlier answer may differ from what the model was asked then (its
    question without a later system message, say), as long as the generation prompt itself is there. The last answer is
    the one a server asks for next: everything before it must be as the server would have it.
    """
    prompt = talk.upto(turn, prompt=True)
    without = talk.upto(turn)
    ending = prompt[_shared(prompt, without) :]
    if talk.text.startswith(prompt):
        if len(prompt) - len(ending) <= begin <= len(prompt) < end:
            return len(prompt)
    elif turn != talk.answers[-1]:
        for position in range(begin, min(begin + len(ending), end - 1) + 1):
            if talk.text.endswith(ending, 0, position):
                return position
    before = talk.text[:begin]
    same = _shared(prompt, before)
    raise IncompatibleError(
        "The chat template trains answers behind another prompt than the one it generates from.",
        why=f"Row {talk.place}, turn {turn + 1}: a server would send …{shown(prompt[max(0, same - 20) :])},"
        f" the trained text has …{shown(before[max(0, same - 20) :])} before the answer.",
        hint="Use a template whose assistant turns begin with its generation prompt"
        f" (`template:` in the recipe; {_HELP}), or leave out what it treats differently"
        " (a system message, say).",
    )


def _shared(left: str, right: str) -> int:
    """How many characters the two begin with alike."""
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
