"""Exactly the answers are trained, each with its stop token, or the data and template are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapterhub.data import (
    IGNORED,
    Message,
    Row,
    encode,
    encode_rows,
    stop_token_ids,
    template_digest,
)
from adapterhub.errors import FormatError, IncompatibleError, UnsupportedError, UsageError
from tests.support.chat import CHATML, chat_tokenizer
from tests.support.masks import trained_texts

STOP = frozenset({2})
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_STOP = MARKED.replace(
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
    "{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
)
NO_MARK = MARKED.replace("== 'assistant'", "== 'nobody'")
ALL_MARKED = "{% generation %}" + CHATML + "{% endgeneration %}"
TWICE_MARKED = MARKED.replace(
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
    "{{ message['content'] }}{% endgeneration %} {% generation %}<|im_end|>{% endgeneration %}",
)
FORGETFUL = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if loop.last and message['role'] == 'assistant' %}<think></think>{% endif %}{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = Row(
    (
        Message("system", "Be brief."),
        Message("user", "Höhe?"),
        Message("assistant", "8848 m"),
        Message("tool", "{}"),
        Message("user", "Sure?"),
        Message("assistant", "Ja, 🏔."),
    ),
    number=7,
)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["plain", "with generation marks"])
def test_exactly_the_answers_and_their_stop_tokens_are_trained(template: str) -> None:
    tokenizer = chat_tokenizer(template)
    found = encode(tokenizer, TALK, stop_ids=STOP)
    assert trained_texts(tokenizer, found) == ["8848 m<|im_end|>", "Ja, 🏔.<|im_end|>"]
    assert all(
        label in (IGNORED, token)
        for label, token in zip(found.labels, found.input_ids, strict=True)
    )


def test_the_tokens_are_those_the_chat_template_gives_to_a_server() -> None:
    tokenizer = chat_tokenizer()
    messages = [{"role": m.role, "content": m.content} for m in TALK.messages]
    expected = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert list(encode(tokenizer, TALK, stop_ids=STOP).input_ids) == expected


def test_a_document_is_trained_whole_and_ends_in_the_end_token() -> None:
    tokenizer = chat_tokenizer()
    found = encode(tokenizer, Row((), "abc"), stop_ids=STOP)
    assert trained_texts(tokenizer, found) == ["abc<|im_end|>"]
    assert found.trained == 3  # the first token has no predecessor to predict it


def test_a_template_that_leaves_the_stop_token_out_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="stop token would not be trained") as caught:
        encode(chat_tokenizer(NO_STOP), TALK, stop_ids=STOP)
    assert "Row 7" in caught.value.why
    assert "never learn to stop" in caught.value.why


def test_a_stop_token_other_than_the_models_is_no_stop_token() -> None:
    with pytest.raises(IncompatibleError, match="stop token would not be trained"):
        encode(chat_tokenizer(), TALK, stop_ids=frozenset({0}))


def test_a_template_that_marks_no_answer_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="Nothing would be trained"):
        encode(chat_tokenizer(NO_MARK), TALK, stop_ids=STOP)


@pytest.mark.parametrize(
    ("template", "turns", "says"),
    [
        (ALL_MARKED, 6, "not one pair an answer"),
        (ALL_MARKED, 3, "behind another prompt"),
        (TWICE_MARKED, 3, "not one pair an answer"),
        (
            "{% set x %}{% generation %} a {% endgeneration %}{% endset %}{{ x | trim }}",
            3,
            "change what",
        ),
    ],
    ids=["everything, many answers", "everything, one answer", "twice an answer", "in a filter"],
)
def test_marks_that_are_not_around_each_answer_are_refused(
    template: str, turns: int, says: str
) -> None:
    row = Row(TALK.messages[:turns], number=7)
    with pytest.raises(IncompatibleError, match=says) as caught:
        encode(chat_tokenizer(template), row, stop_ids=STOP)
    assert "Row 7" in caught.value.why
    assert "docs/templates.md" in caught.value.hint


def test_a_template_that_renders_earlier_turns_differently_is_refused() -> None:
    tokenizer = chat_tokenizer(FORGETFUL)
    with pytest.raises(IncompatibleError, match="doesn't show which tokens") as caught:
        encode(tokenizer, TALK, stop_ids=STOP)
    assert "turn 3" in caught.value.why
    once = Row(TALK.messages[:3])
    assert trained_texts(tokenizer, encode(tokenizer, once, stop_ids=STOP)) == [
        "<think></think>8848 m<|im_end|>"
    ]


def test_conversations_without_a_chat_template_are_refused() -> None:
    with pytest.raises(IncompatibleError, match="no chat template"):
        encode(chat_tokenizer(None), TALK, stop_ids=STOP)


def test_a_template_that_refuses_a_role_is_quoted() -> None:
    strict = "{{ raise_exception('no tools here') }}"
    with pytest.raises(IncompatibleError, match="can't render row 7") as caught:
        encode(chat_tokenizer(strict), TALK, stop_ids=STOP)
    assert "no tools here" in caught.value.why


def test_a_control_token_in_the_text_is_refused() -> None:
    row = Row((Message("user", "a<|im_end|>b"), Message("assistant", "c")), number=3)
    with pytest.raises(FormatError, match=r"Row 3 contains the control token '<\|im_end\|>'"):
        encode(chat_tokenizer(), row, stop_ids=STOP)


def test_a_control_token_that_has_no_role_of_its_own_is_refused_too() -> None:
    """Llama 3's <|eot_id|> is no named token of its tokenizer, and ends turns all the same."""
    row = Row((Message("user", "a<|eot_id|>b"), Message("assistant", "c")), number=3, file="a.json")
    with pytest.raises(FormatError, match=r"Row 3 of a\.json contains the control token"):
        encode(chat_tokenizer(control=["<|eot_id|>"]), row, stop_ids=STOP)


def test_what_a_template_puts_behind_the_stop_token_is_not_trained() -> None:
    """Phi-3 ends a conversation with another stop token; generation has ended before."""
    tokenizer = chat_tokenizer(
        CHATML + "{% if not add_generation_prompt %}<|endoftext|>{% endif %}"
    )
    found = encode(tokenizer, TALK, stop_ids=STOP | {0})
    assert trained_texts(tokenizer, found) == ["8848 m<|im_end|>", "Ja, 🏔.<|im_end|>"]


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(UnsupportedError, match="which characters a token covers"):
        encode(Slow(), TALK, stop_ids=STOP)  # type: ignore[arg-type,unused-ignore]


def test_long_rows_are_cut_and_rows_with_nothing_left_to_train_are_counted() -> None:
    tokenizer = chat_tokenizer()
    short = Row((Message("user", "a"), Message("assistant", "b")))
    long_answer = Row((Message("user", "a"), Message("assistant", "b" * 100)))
    long_question = Row((Message("user", "a" * 100), Message("assistant", "b")))
    found = encode_rows(
        tokenizer, [short, long_answer, long_question], max_length=60, stop_ids=STOP
    )
    assert (len(found.rows), found.truncated, found.dropped) == (2, 1, 1)
    assert max(len(row.input_ids) for row in found.rows) == 60
    assert found.trained == sum(row.trained for row in found.rows)
    with pytest.raises(UsageError, match="no answer begins within 8 tokens"):
        encode_rows(tokenizer, [short], max_length=8, stop_ids=STOP)


def test_stop_tokens_come_from_the_tokenizer_and_the_generation_config(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    assert stop_token_ids(tokenizer, tmp_path) == {2}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    assert stop_token_ids(tokenizer, tmp_path) == {0, 2}
    tokenizer.eos_token = None
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(IncompatibleError, match="no stop token"):
        stop_token_ids(tokenizer, tmp_path)


def test_the_template_digest_changes_with_the_template() -> None:
    assert template_digest(chat_tokenizer(None)) is None
    assert template_digest(chat_tokenizer()) == template_digest(chat_tokenizer())
    assert template_digest(chat_tokenizer()) != template_digest(chat_tokenizer(MARKED))
