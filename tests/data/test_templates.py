"""Real chat templates: the trained text is the answers and their stop tokens, and nothing else, or the row is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from adapterhub.data import Message, Row, encode, stop_token_ids
from adapterhub.data.templates import (
    MOST_STEPS,
    has_marks,
    marked_copies,
    read_template,
    render,
    render_marked,
    with_template,
)
from adapterhub.errors import FormatError, IncompatibleError, NotFoundError
from tests.support.chat import CHATML, chat_tokenizer
from tests.support.masks import trained_texts

SHIPPED = Path(trl.__file__).parent / "chat_templates"
SMOLLM = Path(__file__).parents[2] / "demo-work" / "inputs" / "base"

# As Mistral 7B Instruct v0.3 and Phi-4 write conversations without tools.
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""
MISTRAL_LATER = (  # the system message goes to the last question, wherever that is
    MISTRAL.replace("{{- bos_token }}", '{%- set asked = loop_messages|selectattr("role", "equalto", "user")|list %}{{- bos_token }}')
    .replace("loop.last and", "message == asked[-1] and")
)  # fmt: skip
PHI4 = (
    "{% for message in messages %}{% if (message['role'] == 'system') %}"
    "{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'user') %}"
    "{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}"
    "{% elif (message['role'] == 'assistant') %}"
    "{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A template, its control tokens (the first one begins, `stop` ends), and what it does to an answer."""

    template: str
    stop: str
    control: tuple[str, ...] = ()
    answer: Callable[[str], str] = str
    last: str = ""
    """What it puts before the last answer, for the model to write."""
    system: bool = True

    @property
    def tokenizer(self) -> Any:
        first = self.control[0] if self.control else "<|im_start|>"
        return chat_tokenizer(self.template, control=self.control, bos=first, eos=self.stop)


def shipped(name: str) -> str:
    return (SHIPPED / f"{name}.jinja").read_text(encoding="utf-8")


LLAMA = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA = ("<bos>", "<start_of_turn>", "<end_of_turn>")
PHI = ("<s>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
FAMILIES = {
    "chatml": Family(CHATML, "<|im_end|>"),
    "qwen2.5": Family(shipped("qwen2_5"), "<|im_end|>"),
    "qwen3": Family(
        shipped("qwen3"), "<|im_end|>", answer=lambda text: text.lstrip("\n"), last="<think>\n\n</think>\n\n"
    ),
    "llama3": Family(shipped("llama3"), "<|eot_id|>", LLAMA, str.strip),
    "llama3.1": Family(shipped("llama3_1"), "<|eot_id|>", LLAMA, str.strip),
    "llama3.2": Family(shipped("llama3_2"), "<|eot_id|>", LLAMA, str.strip),
    "gemma2": Family(shipped("gemma"), "<end_of_turn>", GEMMA, str.strip, system=False),
    "gemma3": Family(shipped("gemma3"), "<end_of_turn>", GEMMA, str.strip),
    "mistral": Family(
        MISTRAL, "</s>", ("<s>", "[INST]", "[/INST]", "</s>"), lambda text: " " + text.strip(), system=False
    ),
    "mistral later": Family(
        MISTRAL_LATER, "</s>", ("<s>", "[INST]", "[/INST]", "</s>"), lambda text: " " + text.strip()
    ),
    "phi3": Family(shipped("phi3"), "<|end|>", PHI),
    "phi3.5": Family(shipped("phi3_5"), "<|end|>", PHI),
    "phi4": Family(PHI4, "<|im_end|>", ("<s>", "<|im_sep|>")),
}  # fmt: skip
SYSTEM = Message("system", " Sei kurz. ")
each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<>[]"), min_size=1, max_size=12
).filter(str.strip)


def talk(*texts: str, system: bool = False) -> Row:
    """Question, answer, question, answer ..."""
    turns = [Message("assistant" if i % 2 else "user", text) for i, text in enumerate(texts)]
    return Row(((SYSTEM,) if system else ()) + tuple(turns), number=7)


def messages(row: Row) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in row.messages]


@pytest.mark.parametrize("turns", [1, 3])
@each_family
@settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_exactly_each_answer_and_its_stop_token_are_trained(
    family: Family, turns: int, data: st.DataObject
) -> None:
    texts = data.draw(st.lists(TEXT, min_size=2 * turns, max_size=2 * turns))
    row = talk(*texts, system=family.system and data.draw(st.booleans()))
    tokenizer = family.tokenizer
    stops = frozenset({tokenizer.eos_token_id})
    found = encode(tokenizer, row, stop_ids=stops)
    answers = [family.answer(text) for text in texts[1::2]]
    answers[-1] = family.last + answers[-1]
    assert trained_texts(tokenizer, found) == [text + family.stop for text in answers]
    assert tokenizer.decode(found.input_ids) == render(tokenizer, family.template, messages(row))


@each_family
def test_the_tokens_are_those_a_server_makes_of_the_same_conversation(family: Family) -> None:
    tokenizer = family.tokenizer
    row = talk(
        " Höhe?\n", "\n8848 m 🏔 ", "Sure?", "<think>\nhm\n</think>\n\nJa.", system=family.system
    )
    today = datetime.now(UTC).strftime("%d %b %Y")
    served = tokenizer.apply_chat_template(messages(row), tokenize=False)
    found = encode(tokenizer, row, stop_ids=frozenset({tokenizer.eos_token_id}))
    assert tokenizer.decode(found.input_ids) == served.replace(today, "26 Jul 2024")


@each_family
def test_a_marked_copy_renders_the_same_text_and_transformers_reads_the_same_marks(
    family: Family,
) -> None:
    tokenizer = family.tokenizer
    row = talk("Höhe?", " 8848 m\n", "Sure?", "Ja, 🏔.", "Ok.", "<tool_call>\n{}\n</tool_call>")
    text = render(tokenizer, family.template, messages(row))
    copies = marked_copies(tokenizer, family.template)
    alike = [copy for copy in copies if render(tokenizer, copy, messages(row)) == text]
    assert alike, "no copy is known"
    for copy in alike:
        marked, spans = render_marked(tokenizer, copy, messages(row))
        read = tokenizer.apply_chat_template(
            messages(row), chat_template=copy, return_dict=True, return_assistant_tokens_mask=True
        )
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        ours = [int(any(a <= s < e <= b for a, b in spans)) for s, e in offsets]
        assert marked == text
        assert (read["assistant_masks"], len(spans)) == (ours, 3)


def test_a_copy_that_renders_otherwise_is_not_taken() -> None:
    """trl's copy of Qwen3 keeps the thoughts of every turn; the original, and so a server, keeps only the last."""
    family = FAMILIES["qwen3"]
    tokenizer = family.tokenizer
    row = talk("a", "<think>\none\n</think>\n\nb", "c", "<think>\ntwo\n</think>\n\nd")
    copies = marked_copies(tokenizer, family.template)
    texts = [render(tokenizer, copy, messages(row)) for copy in copies]
    assert ["one" in text for text in texts] == [True, False]
    found = encode(tokenizer, row, stop_ids=frozenset({tokenizer.eos_token_id}))
    assert trained_texts(tokenizer, found) == [
        "b<|im_end|>",
        "<think>\ntwo\n</think>\n\nd<|im_end|>",
    ]


def test_tools_are_read_and_calls_are_trained() -> None:
    row = Row(
        (
            Message("user", "Wetter?"),
            Message("assistant", '<tool_call>\n{"name": "w"}\n</tool_call>'),
            Message("tool", '{"t": 3}'),
            Message("assistant", "3 °C"),
        )
    )
    for name in ("chatml", "qwen2.5", "qwen3", "llama3.1"):
        family = FAMILIES[name]
        tokenizer = family.tokenizer
        found = trained_texts(
            tokenizer, encode(tokenizer, row, stop_ids=frozenset({tokenizer.eos_token_id}))
        )
        assert [text.endswith(family.stop) for text in found] == [True, True], name
        assert ['"name": "w"' in found[0], "3 °C" in found[1]] == [True, True], name
        assert '{"t": 3}' not in "".join(found), name


def test_marks_that_take_in_the_generation_prompt_lose_it() -> None:
    """trl's marks for Qwen2.5 begin before the line feed that ends the prompt."""
    marked = shipped("qwen2_5_training")
    assert "assistant' }}\n        {%- generation %}" in marked
    tokenizer = chat_tokenizer(marked)
    found = encode(tokenizer, talk("a", "b", "c", "\nd"), stop_ids=frozenset({2}))
    assert trained_texts(tokenizer, found) == ["b<|im_end|>", "\nd<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "control", "says"),
    [
        (MISTRAL, ("<s>", "[INST]", "[/INST]", "</s>"), "Be brief"),
        (shipped("deepseek_r1_distill"), ("<s>", "</s>"), "<think>"),
    ],
    ids=["a system message that is left out", "thoughts that are asked for"],
)
def test_answers_behind_another_prompt_than_the_generation_prompt_are_refused(
    template: str, control: tuple[str, ...], says: str
) -> None:
    """The first drops the system message from rows that end in an answer; the second trains answers without thoughts."""
    row = Row((Message("system", "Be brief"), *talk("a", "b").messages), number=7)
    tokenizer = chat_tokenizer(template, control=control, bos="<s>", eos="</s>")
    with pytest.raises(IncompatibleError) as caught:
        encode(tokenizer, row, stop_ids=frozenset({tokenizer.eos_token_id}))
    assert "behind another prompt than the one it generates from" in caught.value.what
    assert "Row 7, turn 3: a server would send …" in caught.value.why
    assert says in caught.value.why


def test_marks_that_begin_behind_what_the_model_must_write_are_refused() -> None:
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.role == 'assistant' %}<think></think>{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
        "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(IncompatibleError, match="behind another prompt") as caught:
        encode(chat_tokenizer(marked), talk("a", "b"), stop_ids=frozenset({2}))
    assert "<think></think>" in caught.value.why


@pytest.mark.skipif(not SMOLLM.is_dir(), reason="the demo's base model is not on this machine")
def test_a_real_tokenizer_trains_exactly_the_answers() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SMOLLM, local_files_only=True)
    answers = ["Das höchste: 8848 m 🏔.\n", " def f(x):\n\treturn x ", "\u00a0naïve — ‘ok’  "]
    row = talk(
        "Höhe?", answers[0], "Code, please.\n\n", answers[1], "And?", answers[2], system=True
    )
    for template in (None, *marked_copies(tokenizer, tokenizer.chat_template)):
        used = with_template(tokenizer, template) if template else tokenizer
        found = encode(used, row, stop_ids=stop_token_ids(used, SMOLLM))
        assert trained_texts(used, found) == [text + "<|im_end|>" for text in answers]
        served = tokenizer.apply_chat_template(messages(row), return_dict=True)["input_ids"]
        assert list(found.input_ids) == served


def test_the_template_that_the_docs_show_is_chatml_with_marks() -> None:
    page = (Path(__file__).parents[2] / "docs" / "templates.md").read_text(encoding="utf-8")
    shown = page.split("```jinja\n")[1].split("```")[0]
    tokenizer = chat_tokenizer(shown)
    row = talk("a", "b\n", "c", "d", system=True)
    assert render(tokenizer, shown, messages(row)) == render(tokenizer, CHATML, messages(row))
    found = encode(tokenizer, row, stop_ids=frozenset({2}))
    assert trained_texts(tokenizer, found) == ["b\n<|im_end|>", "d<|im_end|>"]


def test_text_that_looks_like_our_marks_is_text() -> None:
    marked = marked_copies(chat_tokenizer(), CHATML)[0]
    answer = "\ue0000\ue001 and \ue0000\ue002 and \ue0001\ue001"
    tokenizer = chat_tokenizer(marked)
    found = encode(tokenizer, talk("\ue0000\ue002", answer), stop_ids=frozenset({2}))
    assert trained_texts(tokenizer, found) == [answer + "<|im_end|>"]


def test_marks_inside_a_captured_block_are_found() -> None:
    """transformers counts what was printed so far, and there nothing was."""
    captured = (
        "{% for m in messages %}{% set turn %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
        "{% endset %}{{ turn }}\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = chat_tokenizer(captured)
    found = encode(tokenizer, talk("a", "b", "c", "d"), stop_ids=frozenset({2}))
    assert trained_texts(tokenizer, found) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_mark_in_a_comment_is_none() -> None:
    assert not has_marks("{#- says {% generation %} only -#}" + CHATML)
    assert has_marks("{%- generation -%}x{%- endgeneration -%}")


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", f"{MOST_STEPS:,} steps"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{{ 'a' * 9999999999 }}", "too large"),
        ("{{ 9 ** 9 ** 9 }}", "too large"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{{ messages + 1 }}", "concatenate"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ 1 / 0 }}", "division"),
    ],
)  # fmt: skip
def test_a_hostile_or_faulty_template_is_refused_in_words(template: str, says: str) -> None:
    with pytest.raises(IncompatibleError, match="can't render row 7") as caught:
        encode(chat_tokenizer(template), talk("a", "b"), stop_ids=frozenset({2}))
    assert says in caught.value.why


def test_arithmetic_that_templates_need_is_done() -> None:
    text = render(chat_tokenizer(), "{{ ' ' * 4 }}{{ 2 * 3 }}{{ [1] * 2 }}{{ 2 ** 10 }}", [])
    assert text == "    6[1, 1]1024"


def test_a_file_that_is_no_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match="can't be read") as caught:
        with_template(chat_tokenizer(), "a\n{% if x %}")
    assert "Line 2" in caught.value.why
    with pytest.raises(IncompatibleError, match="too long"):
        with_template(chat_tokenizer(), "a" * (1 << 21))
    with pytest.raises(NotFoundError, match="no chat template"):
        read_template(tmp_path / "chat.jinja")
    (tmp_path / "chat.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="not UTF-8"):
        read_template(tmp_path / "chat.jinja")


def test_another_template_leaves_the_tokenizer_its_own() -> None:
    tokenizer = chat_tokenizer()
    changed = with_template(tokenizer, PHI4)
    assert (tokenizer.chat_template, changed.chat_template) == (CHATML, PHI4)
    assert changed("<|im_end|>a")["input_ids"] == tokenizer("<|im_end|>a")["input_ids"]
