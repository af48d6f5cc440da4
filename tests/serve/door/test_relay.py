"""A stream comes out the same however the network cuts it, and nothing changes in it but the model's name."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from adapterhub.serve.door.relay import Events, Names, Usage, usage_of

ENGINE = "ab" * 32
ASKED = 'support/tone@1f2e3d4c5b6a "ü"'

texts = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        (f'"model":"{ENGINE}"', ENGINE, '"choices":[]', "\n\n", "data: [DONE]\n\n", "\\")
    ),
)
chunks = st.builds(
    lambda text, number: {"id": text, "model": ENGINE, "choices": [{"text": text}] * number},
    texts,
    st.integers(1, 3),
)
usages = st.builds(
    lambda into, out: {
        "model": ENGINE,
        "choices": [],
        "usage": {"prompt_tokens": into, "completion_tokens": out},
    },
    st.integers(0, 9),
    st.integers(0, 9),
)


def written(events: list[dict[str, Any]]) -> bytes:
    lines = [json.dumps(one, ensure_ascii=False, separators=(",", ":")) for one in events]
    return "".join(f"data: {line}\n\n" for line in (*lines, "[DONE]")).encode()


def read(stream: bytes) -> list[Any]:
    lines = stream.decode().split("\n\n")[:-1]
    return [json.loads(line.removeprefix("data: ")) for line in lines if line != "data: [DONE]"]


@given(st.lists(chunks, max_size=5), usages, st.booleans(), st.data())
def test_any_cut_gives_the_same_stream_with_only_its_model_fields_replaced(
    events: list[dict[str, Any]], usage: dict[str, Any], keep_usage: bool, data: st.DataObject
) -> None:
    stream = written([*events, usage])
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8).map(sorted))
    relayed = Events(Names(ENGINE, ASKED), keep_usage)
    pieces = [
        relayed.feed(stream[start:end])
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    ]
    assert all(piece.endswith(b"\n\n") for piece in pieces if piece)
    expected = [{**one, "model": ASKED} for one in [*events, *([usage] if keep_usage else [])]]
    assert read(b"".join(pieces)) == expected
    assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
    assert relayed.complete
    assert relayed.usage == Usage(**usage["usage"])
    assert relayed.count == len(events) + 2


@given(st.lists(chunks, min_size=1, max_size=3), st.data())
def test_a_stream_that_is_cut_short_is_known_and_no_half_event_leaves(
    events: list[dict[str, Any]], data: st.DataObject
) -> None:
    stream = written(events)
    kept = data.draw(st.integers(0, len(stream) - 1))
    relayed = Events(Names(ENGINE, ASKED), keep_usage=True)
    out = relayed.feed(stream[:kept])
    assert not relayed.complete
    assert read(out) == [{**one, "model": ASKED} for one in events[: len(read(out))]]


def test_only_an_event_without_choices_and_with_counts_is_the_usage() -> None:
    """Counts in every chunk are what `continuous_usage_stats` asks for."""
    stream = written(
        [
            {"model": ENGINE, "choices": [{"text": '"choices":[]'}], "usage": {"prompt_tokens": 1}},
            {"model": ENGINE, "choices": []},
            {"choices": [{"text": 'data: {"error"'}]},
        ]
    )
    relayed = Events(Names(ENGINE, ENGINE), keep_usage=False)
    assert relayed.feed(stream) == stream
    assert relayed.usage is None
    assert not relayed.failed


def test_an_error_in_the_stream_names_the_model_as_the_client_does() -> None:
    relayed = Events(Names(ENGINE, "tone"), keep_usage=False)
    out = relayed.feed(written([{"error": {"message": f"{ENGINE} failed", "choices": []}}]))
    assert read(out) == [{"error": {"message": "tone failed", "choices": []}}]
    assert relayed.failed
    assert relayed.complete


def test_an_answer_that_is_no_json_has_no_usage() -> None:
    assert usage_of(b"<html>") is None
    assert usage_of(b'{"usage":{"prompt_tokens":3,"completion_tokens":null}}') == Usage(3, None)
