"""Every field that this vLLM knows has been judged: it passes, it is refused, it is the door's, or it does nothing."""

from __future__ import annotations

import ast
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from adapterhub.serve.door.question import OURS, PASSED, REFUSED, judge
from adapterhub.serve.door.refusal import Refused
from adapterhub.serve.door.settings import DoorSettings

DROPPED = {
    "session_id",  # for routers that follow where a cache is
    "mm_payload",
    "return_mm_kwargs",
    "return_token_offsets",  # these three only mean something to routes for rendering
}

REQUESTS = {
    "/v1/chat/completions": ("openai/chat_completion", ["ChatCompletionRequest"]),
    "/v1/completions": ("openai/completion", ["CompletionRequest"]),
    "/v1/embeddings": (
        "pooling/embed",
        ["EmbeddingCompletionRequest", "EmbeddingChatInputRequest"],
    ),
    "/tokenize": ("serve/tokenize", ["TokenizeCompletionRequest", "TokenizeChatRequest"]),
    "/detokenize": ("serve/tokenize", ["DetokenizeRequest"]),
}


def entrypoints() -> Path:
    spec = find_spec("vllm")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("vLLM isn't installed")
    return Path(spec.submodule_search_locations[0]) / "entrypoints"


def fields(folder: Path, package: str, names: list[str]) -> set[str]:
    """The fields of classes and of their bases, read from the source: importing vLLM takes half a minute."""
    places = (folder / package, (folder / package).parent / "base")
    files = [place / "protocol.py" for place in places]
    classes = {
        node.name: node
        for file in files
        if file.exists()
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    found: set[str] = set()
    wanted = list(names)
    while wanted:
        node = classes.get(wanted.pop())
        if node is not None:
            wanted += [base.id for base in node.bases if isinstance(base, ast.Name)]
            found |= {
                line.target.id
                for line in node.body
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
            }
    return {name for name in found if not name.startswith("_")}


@pytest.mark.parametrize("path", sorted(REQUESTS))
def test_every_field_of_this_vllm_has_been_judged(path: str) -> None:
    package, names = REQUESTS[path]
    known = fields(entrypoints(), package, names)
    assert "model" in known
    assert known - PASSED[path] - OURS - set(REFUSED) == known & DROPPED
    assert PASSED[path] - known <= {"normalize", "task"}, "vLLM says what became of these two"


def test_a_stream_always_counts_and_counts_every_chunk_only_when_asked_whole() -> None:
    def options(text: str) -> bytes:
        question = judge("/v1/completions", b'{"stream":true%s}' % text.encode(), DoorSettings())
        return question.written("m", None)

    assert b'"include_usage":true,"continuous_usage_stats":false' in options("")
    for asked in ("false", "null"):
        text = f',"stream_options":{{"include_usage":{asked},"continuous_usage_stats":true}}'
        assert b'"include_usage":true,"continuous_usage_stats":false' in options(text)
    text = ',"stream_options":{"include_usage":true,"continuous_usage_stats":true}'
    assert b'"include_usage":true,"continuous_usage_stats":true' in options(text)
    whole = judge("/v1/completions", b'{"stream_options":{"include_usage":true}}', DoorSettings())
    assert whole.written("m", None) == b'{"stream_options":{"include_usage":true},"model":"m"}'


@pytest.mark.parametrize(
    ("fields_", "answers"),
    [
        ('"prompt":"a"', 1),
        ('"prompt":[1,2,3]', 1),
        ('"prompt":["a","b"],"n":3', 6),
        ('"prompt":[[1],[2]]', 2),
        ('"prompt":[],"n":null', 1),
    ],
)
def test_answers_are_prompts_times_n(fields_: str, answers: int) -> None:
    question = judge("/v1/completions", f"{{{fields_}}}".encode(), DoorSettings())
    assert question.answers == answers


@pytest.mark.parametrize(
    "fields",
    [{"prompt_logprobs": 0}, {"prompt_logprobs": 1}, {"echo": True, "logprobs": 0}],
)
def test_scores_of_a_prompt_are_refused_where_they_would_end_the_engine(
    fields: dict[str, object],
) -> None:
    body = json.dumps({"prompt": "x", **fields}).encode()
    assert judge("/v1/completions", body, DoorSettings()).fields["prompt"] == "x"
    with pytest.raises(Refused, match="end its engine") as refused:
        judge("/v1/completions", body, DoorSettings(prompt_scores=False))
    assert refused.value.status == 400
    chat = json.dumps({"messages": [], "echo": True}).encode()
    with pytest.raises(Refused, match="`echo`"):
        judge("/v1/chat/completions", chat, DoorSettings(prompt_scores=False))
    harmless = json.dumps({"prompt": "x", "echo": True, "prompt_logprobs": None}).encode()
    assert judge("/v1/completions", harmless, DoorSettings(prompt_scores=False)).stream is False
