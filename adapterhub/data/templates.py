"""Chat templates: chosen, rendered within bounds, and given marks around the answers where they have none.

A template is a program out of a stranger's file. It runs in the sandbox that transformers and servers run it in, and
here it also has only so many steps; whatever it raises is told as the template's fault.

`{% generation %}` ... `{% endgeneration %}` around an answer says which part of the text the model writes. Few templates
have these marks, so a copy with them is looked up (trl ships some) or made for templates of a known shape. A copy is
only ever a proposal: whoever uses it compares its text with the original's, row by row.
"""

from __future__ import annotations

import copy
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import FormatError, IncompatibleError, NotFoundError

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

MOST_CHARACTERS = 1 << 20
"""Of a template; the longest known ones have about 20,000."""
MOST_STEPS = 200_000
"""Passes through loops and macros in one rendering."""
TODAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The date a template is told that asks for one: Llama 3's own default. The real one would give the same recipe other
tokens tomorrow."""

_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_GENERATION = re.compile(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")
_ENDGENERATION = re.compile(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")
_STEP, _OPEN, _CLOSE = "adapterhub_step", "adapterhub_open", "adapterhub_close"


def read_template(path: Path) -> str:
    """The text of a .jinja file. Raises NotFoundError, and FormatError where it can't be a template."""
    if not path.is_file():
        raise NotFoundError(f"There is no chat template {path}.")
    if path.stat().st_size > 4 * MOST_CHARACTERS:
        raise FormatError(f"{path.name} is too large for a chat template.")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path.name} is not UTF-8 text.", why=str(error)) from error


def with_template(tokenizer: PreTrainedTokenizerBase, text: str) -> PreTrainedTokenizerBase:
    """`tokenizer` with another chat template; the one given keeps its own.

    Raises IncompatibleError when `text` is no template.
    """
    _compiled(text)
    changed = copy.copy(tokenizer)
    changed.chat_template = text
    return changed


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's template for conversations; IncompatibleError when it has none."""
    template: object = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        raise IncompatibleError(
            "The base model has no chat template, and the data are conversations.",
            hint="Use an instruction-tuned base, name a file with `template:` in the recipe,"
            " or use data of the format `text`.",
        )
    return template


def render(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    row: str = "0",
    add_generation_prompt: bool = False,
    variables: Mapping[str, str] | None = None,
) -> str:
    """The text of the conversation, as transformers' `apply_chat_template` gives it, with the date held still.

    Raises IncompatibleError, naming the row, for whatever the template raises or can't do in MOST_STEPS.
    """
    from jinja2 import TemplateError

    program = _compiled(template)
    try:
        return program.render(
            **tokenizer.special_tokens_map,
            **(variables or {}),
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            strftime_now=TODAY.strftime,
            **{_STEP: _steps()},
        )
    except (
        TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError, ValueError,
    ) as error:  # fmt: skip
        raise IncompatibleError(
            f"The base model's chat template can't render row {row}.",
            why=str(error) or type(error).__name__,
            hint="Some templates know no system or tool messages; leave them out of the data.",
        ) from error


def has_marks(template: str) -> bool:
    """Whether the template itself says where answers are."""
    return _GENERATION.search(_COMMENT.sub("", template)) is not None


def render_marked(
    tokenizer: PreTrainedTokenizerBase,
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    row: str = "0",
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a template with marks, and the marked spans in it (characters, end exclusive).

    The marks are rendered as text that occurs nowhere else and taken out again. transformers counts the characters
    that were printed before a mark instead, which is wrong inside a macro or a `{% set %}` block. Spans that touch are
    one. Raises what `render` raises.
    """
    plain = render(tokenizer, template, messages, row=row)
    signs = _signs(plain)
    shown = render(tokenizer, _with_signs(template), messages, row=row, variables=dict(signs))
    text = ""
    spans: list[tuple[int, int]] = []
    begun: int | None = None
    for part in re.split("|".join(f"({re.escape(sign)})" for _, sign in signs), shown):
        if part == signs[0][1]:
            begun = len(text)
        elif part == signs[1][1]:
            if begun is not None and begun < len(text):
                touching = bool(spans) and spans[-1][1] == begun
                spans.append((spans.pop()[0] if touching else begun, len(text)))
            begun = None
        elif part:
            text += part
    return text, spans


@lru_cache(maxsize=8)
def marked_copies(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, ...]:
    """Copies of a known template that have marks, best first; none for an unknown one."""
    made = (_copy_of_trl(tokenizer, template), *(shape(template) for shape in _SHAPES))
    return tuple(text for text in made if text is not None and has_marks(text))


# Bounds


@cache
def _environment() -> Any:
    """transformers' own sandbox, in which `*` and `**` can't fill the memory."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # Compiled from nothing: compiling computes constants, so a template must not come near it before it is bounded.
    environment: Any = _compile_jinja_template("").environment
    environment.intercepted_binops = frozenset({"*", "**"})
    for sign, function in (("*", operator.mul), ("**", operator.pow)):
        environment.binop_table[sign] = _small(function)
    return environment


def _small(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def compute(left: Any, right: Any) -> Any:
        if all(isinstance(value, int | float) and abs(value) <= 1000 for value in (left, right)):
            return function(left, right)
        if function is operator.mul and all(_extent(v) <= MOST_CHARACTERS for v in (left, right)):
            if _extent(left) * _extent(right) <= MOST_CHARACTERS:
                return function(left, right)
        raise OverflowError("The template computes something too large.")

    return compute


def _extent(value: Any) -> float:
    return abs(value) if isinstance(value, int | float) else len(value)


def _steps() -> Callable[[], None]:
    left = MOST_STEPS

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OverflowError(f"The template takes more than {MOST_STEPS:,} steps.")

    return step


@lru_cache(maxsize=64)
def _compiled(text: str) -> Template:
    """The template with a count of steps in every loop and macro; IncompatibleError where it is none."""
    from jinja2 import TemplateError, nodes

    if len(text) > MOST_CHARACTERS:
        raise IncompatibleError(
            "The chat template is too long.",
            why=f"It has {len(text):,} characters; {MOST_CHARACTERS:,} are read.",
        )
    environment = _environment()
    try:
        tree = environment.parse(text)
        for block in tree.find_all((nodes.For, nodes.Macro)):
            step = nodes.Call(nodes.Name(_STEP, "load"), [], [], None, None)
            block.body.insert(0, nodes.ExprStmt(step).set_lineno(block.lineno))
        tree.set_environment(environment)
        program: Template = environment.from_string(tree)
    except (TemplateError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        raise IncompatibleError(
            "The chat template can't be read.",
            why=(f"Line {line}: " if line else "") + (str(error) or type(error).__name__),
            hint="Correct it; a template is a Jinja file.",
        ) from error
    return program


# Marks


def _signs(text: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """What the two marks are rendered as: characters for private use and a number that make it unlike all of `text`."""
    number = 0
    while f"\ue000{number}\ue001" in text or f"\ue000{number}\ue002" in text:
        number += 1
    return (_OPEN, f"\ue000{number}\ue001"), (_CLOSE, f"\ue000{number}\ue002")


@lru_cache(maxsize=64)
def _with_signs(template: str) -> str:
    """The template with its marks printed. `print` is a statement too, so blanks around it are treated alike."""
    opened = _GENERATION.sub(rf"{{%\1 print {_OPEN} \2%}}", template)
    return _ENDGENERATION.sub(rf"{{%\1 print {_CLOSE} \2%}}", opened)


def _copy_of_trl(tokenizer: PreTrainedTokenizerBase, template: str) -> str | None:
    """trl's copy of a template that it knows to the letter."""
    if find_spec("trl") is None:
        return None
    from trl.chat_template_utils import get_training_chat_template

    bare = with_template(tokenizer, template)
    try:
        found: str | None = get_training_chat_template(bare)
    except Exception:  # noqa: BLE001 - unknown to trl, or it stumbles over it while trying: no copy either way
        return None
    return found


_TEXT = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_ROLE = r"""\w+(?:\[['"]role['"]\]|\.role)"""
_CONTENT = r"""(?P<message>\w+)(?:\[['"]content['"]\]|\.content)(?:\s*\|\s*trim|\.strip\(\))?"""
_ONE_EXPRESSION = re.compile(
    rf"""\{{\{{(?P<left>-?)\s*(?P<head>(?:(?:{_TEXT}|{_ROLE}|bos_token)\s*\+\s*)*)"""
    rf"""(?P<answer>{_CONTENT}(?:\s*\+\s*(?:{_TEXT}|eos_token))+)\s*(?P<right>-?)\}}\}}"""
)


def _mark_one_expression(template: str) -> str | None:
    """Turns that are one expression, `{{ header + message['content'] + stop }}`: ChatML, Llama 3, Mistral, Phi."""

    def marked(found: re.Match[str]) -> str:
        head, answer = found["head"].rstrip().removesuffix("+").rstrip(), found["answer"]
        if not head.replace("+", "").strip("'\" \t\n"):  # Mistral's blank before an answer
            head, answer = "''", found["head"] + answer
        return (
            f"{{{{{found['left']} {head} }}}}"
            f"{{% if {found['message']}['role'] == 'assistant' %}}"
            f"{{% generation %}}{{{{ {answer} }}}}{{% endgeneration %}}"
            f"{{% else %}}{{{{ {answer} }}}}{{% endif %}}"
            f"{{{{ '' {found['right']}}}}}"
        )

    changed, count = _ONE_EXPRESSION.subn(marked, template)
    return changed if count else None


def _mark_thoughts(template: str) -> str | None:
    """Qwen3's way: the header comes in three places, with and without a block of thoughts behind it."""
    choice = "{%- if loop.index0 > ns.last_query_index %}"
    header, stop = r"'<|im_start|>' + message.role + '\n", r"{{- '<|im_end|>\n' }}"
    before, found, after = template.partition(choice)
    answer, ended, rest = after.partition(stop)
    if not found or not ended or answer.count(header) != 3:
        return None
    answer = answer.replace(header + "' + content", "content").replace(header + "<", "'<")
    head = "{{- " + header + "' }}{%- generation %}"
    return before + head + found + answer + ended + "{%- endgeneration %}" + rest


_SHAPES: tuple[Callable[[str], str | None], ...] = (_mark_thoughts, _mark_one_expression)
