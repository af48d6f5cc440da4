"""The base with retrieved texts is asked exactly what the page says, about every row, for the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from adapterhub.data import Message, Row, read_rows, stop_token_ids
from adapterhub.errors import FormatError, NotFoundError, UsageError
from adapterhub.evaluate import evaluate
from adapterhub.evaluate.contexts import read_contexts, with_contexts
from adapterhub.evaluate.interactions import interactions
from adapterhub.evaluate.measures import parse_measure
from adapterhub.evaluate.models import load_tokenizer
from adapterhub.evaluate.subjects import Kind
from adapterhub.evaluate.suite import load_suite
from adapterhub.evaluate.task import Settings, ask, choose
from tests.cli.calling import call
from tests.support.chat import write_rows
from tests.support.evaluated import loss_of

if TYPE_CHECKING:
    from adapterhub.store import Store

Add = Callable[..., str]

FORM = """\
Context:

[1] Paint 3 is red.

[2] All paint dries.

Question:

Which colour?"""


@pytest.fixture
def contexts(data: Path, tmp_path: Path) -> Path:
    """Two texts for every question of the data, in another order, with other blanks."""
    entries = [
        {"question": f"  {row['instruction']}\n", "contexts": [row["output"], "All paint dries."]}
        for row in reversed(json.loads(data.read_text()))
    ]
    return write_rows(tmp_path / "contexts.json", entries)


def test_the_texts_stand_before_the_question_in_the_form_that_is_documented() -> None:
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hello"),
        Message("tool", "{}"),
        Message("user", "Which colour?"),
        Message("assistant", "Red."),
        Message("user", "Sure?"),
        Message("assistant", "Yes."),
    )
    row = Row(turns)
    given = with_contexts(row, ("Paint 3 is red.", "All paint dries."))
    assert given.messages == (*turns[:3], Message("user", FORM), *turns[4:])
    assert with_contexts(row, ()) == row


def test_what_the_base_reads_is_that_form_and_what_it_is_scored_on_the_same_answer(
    base: Path, data: Path, contexts: Path
) -> None:
    settings = Settings("all", 0.1, 0, None, None, 1024, "float32")
    chosen = choose(data, None, settings, None)
    tokenizer = load_tokenizer(base)
    others: dict[Kind, list[Row]] = {"retrieved": read_contexts(contexts).given(chosen.rows)}
    asked = ask(
        tokenizer, chosen, stop_token_ids(tokenizer, base), 1024, others=others, answering=True
    )
    for place, row in enumerate(asked.plain.rows):
        plain, given = asked.plain, asked.others["retrieved"]
        answer, question = row.answers[0], row.question[0].content
        text = f"Context:\n\n[1] {answer}\n\n[2] All paint dries.\n\nQuestion:\n\n{question}"
        wanted = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        assert tokenizer.decode(given.questions[place]) == wanted
        asked_first = given.encoded[place].input_ids[: len(given.questions[place])]
        assert asked_first == given.questions[place]

        def labels(of: Any, at: int = place) -> list[int]:
            return [label for label in of.encoded[at].labels if label >= 0]

        assert labels(given) == labels(plain)
        assert tokenizer.decode(labels(given)) == f"{answer}<|im_end|>"


def test_the_base_gets_a_line_of_its_own_and_the_others_are_as_without(
    store: Store, add: Add, base: Path, data: Path, contexts: Path, tmp_path: Path
) -> None:
    digest = add("one")

    def run(**given: Any) -> list[Any]:
        how = {"base": str(base), "split": "all", "max_new_tokens": 3, **given}
        exact = [parse_measure("exact")]
        return evaluate(store, ["base", "one"], data=data, measures=exact, **how)

    with_them = run(contexts=contexts)
    without = run()
    assert [(row.name, row.kind) for row in with_them[2:]] == [("base + contexts", "retrieved")]
    assert [row.loss for row in with_them[:2]] == [row.loss for row in without]
    retrieved = with_them[2]
    assert retrieved.tokens == with_them[0].tokens, "the same answers"
    assert retrieved.versus_base is not None
    assert retrieved.versus_base.difference == pytest.approx(
        loss_of(retrieved) - loss_of(with_them[0])
    )
    by_hand = []
    for row in json.loads(data.read_text()):
        told = f"Context:\n\n[1] {row['output']}\n\n[2] All paint dries.\n\nQuestion:\n\n{row['instruction']}"
        by_hand.append({"instruction": told, "output": row["output"]})
    other = write_rows(tmp_path / "by-hand.json", by_hand)
    (plain,) = evaluate(store, ["base"], base=str(base), data=other, split="all")
    assert retrieved.loss == pytest.approx(plain.loss, rel=1e-6)
    bodies = [a.body for a in store.attestations(digest) if a.type == "eval"]
    (attested,) = [body for body in bodies if "contexts" in body["settings"]]
    assert attested["result"]["baselines"]["retrieved"]["perplexity"] == retrieved.perplexity
    assert attested["settings"]["contexts"].startswith("sha256:")


def test_a_row_whose_answer_has_no_room_left_is_left_out_for_all_and_told(
    store: Store, add: Add, base: Path, data: Path, tmp_path: Path
) -> None:
    add("one")
    rows = json.loads(data.read_text())
    entries = [
        {"question": row["instruction"], "context": "long " * (200 if n < 3 else 1)}
        for n, row in enumerate(rows)
    ]
    found = write_rows(tmp_path / "contexts.json", entries)
    words: list[str | Path] = [
        "eval",
        "base",
        "one",
        "--base",
        base,
        "--data",
        data,
        "--split",
        "all",
    ]
    words += ["--contexts", found, "--max-length", "200"]
    said = call(*words)
    assert said.code == 0, said.err
    assert "Left out for all: 3 rows" in said.err
    told = call(*words, "--json").json
    assert {(row["rows"], row["left_out"]) for row in told} == {(len(rows) - 3, 3)}
    write_rows(found, [{**entry, "context": "long " * 200} for entry in entries])
    with pytest.raises(UsageError, match="No answer begins within 200 tokens in every way"):
        evaluate(store, ["base"], base=str(base), data=data, contexts=found, max_length=200)


def test_what_a_merge_keeps_is_not_told_of_the_base_that_reads(
    store: Store, add: Add, base: Path, data: Path, contexts: Path
) -> None:
    add("one")
    add("two", seed=1)

    def kept(**given: Any) -> list[tuple[float, float | None]]:
        how = {"base": str(base), "max_rows": 3, **given}
        found = interactions(store, ["one", "two"], "one", [data, data], **how)
        return [(one.gain, one.kept) for one in found]

    plain = kept()
    assert plain[0][1] == pytest.approx(1), "it is its own merge, and gained"
    assert kept(contexts=contexts) == plain


def test_a_question_without_an_entry_is_an_error_that_names_it(
    store: Store, base: Path, data: Path, contexts: Path
) -> None:
    rows = read_rows(data)
    entries = json.loads(contexts.read_text())
    write_rows(contexts, [e for e in entries if "number 7:" not in e["question"]])
    with pytest.raises(UsageError, match=r"contexts\.json has no contexts for 1 of the") as caught:
        read_contexts(contexts).given(rows)
    assert "'Paint number 7: which colour?' (data.json:8)" in caught.value.why
    write_rows(contexts, entries[:4])
    with pytest.raises(UsageError, match="for 26 of the questions") as caught:
        evaluate(store, ["base"], base=str(base), data=data, contexts=contexts, split="all")
    assert "and 23 more" in caught.value.why


def test_where_nothing_was_found_it_is_asked_plainly(
    store: Store, base: Path, data: Path, tmp_path: Path
) -> None:
    entries = [{"question": row.question[0].content, "contexts": []} for row in read_rows(data)]
    found = write_rows(tmp_path / "none.json", entries)
    plain, retrieved = evaluate(store, ["base"], base=str(base), data=data, contexts=found)
    assert retrieved.loss == plain.loss


def test_documents_are_asked_nothing_and_need_no_entry(tmp_path: Path) -> None:
    prose = [row for row in load_suite("forgetting").rows if row.text is not None]
    found = write_rows(tmp_path / "one.json", [{"question": "x", "context": "y"}])
    assert prose
    assert read_contexts(found).given(prose) == prose


def test_of_a_question_that_several_rows_ask_one_entry_does(tmp_path: Path) -> None:
    lines = [
        {"question": "When?", "context": "At nine."},
        {"question": " When? ", "contexts": ["At nine."]},
        {"question": "Where?", "contexts": []},
    ]
    path = tmp_path / "found.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [
        Row((Message("user", "When?"), Message("assistant", answer))) for answer in ("9.", "Nine.")
    ]
    contexts = read_contexts(path)
    assert [row.messages[0].content for row in contexts.given(rows)] == [
        "Context:\n\n[1] At nine.\n\nQuestion:\n\nWhen?"
    ] * 2
    other = tmp_path / "other.json"
    write_rows(other, lines[:1])
    assert contexts.digest(rows) == read_contexts(other).digest(rows), "what isn't used is nothing"
    write_rows(other, [{"question": "When?", "context": "At ten."}])
    assert contexts.digest(rows) != read_contexts(other).digest(rows)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"question": "When?"}, "no question with its contexts"),
        ({"question": "When?", "context": "a", "contexts": ["a"]}, "no question with"),
        ({"question": "When?", "contexts": "a"}, "no question with"),
        ({"question": "When?", "contexts": [1]}, "no question with"),
        ({"question": " ", "context": "a"}, "no question with"),
        ({"question": 3, "context": "a"}, "no question with"),
        (["When?"], "no question with"),
        ({"question": "Late?", "context": "other"}, "other contexts for a question"),
    ],
)
def test_an_entry_that_is_none_is_refused_with_its_number(
    tmp_path: Path, entry: object, words: str
) -> None:
    path = write_rows(tmp_path / "c.json", [{"question": "Late?", "context": "No."}, entry])
    with pytest.raises(FormatError, match=words) as caught:
        read_contexts(path)
    assert "c.json:2" in caught.value.what


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        read_contexts(tmp_path / "c.json")
    (tmp_path / "c.txt").write_text("a")
    with pytest.raises(UsageError, match=r"must end in \.json or \.jsonl"):
        read_contexts(tmp_path / "c.txt")
    (tmp_path / "c.json").write_text("[")
    with pytest.raises(FormatError):
        read_contexts(tmp_path / "c.json")
