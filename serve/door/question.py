"""What a request's body asks for, judged before the engine sees it.

The engine gets what was judged, written anew: a key that stands there twice, another encoding or a number that JSON
doesn't have can't mean one thing here and another there. Of vLLM's many fields, those that concern the request itself
pass; those that reach beyond it are refused by name, or are the door's to set. Fields that no version known here has
are left out, and named in a header of the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import msgspec

from adapterhub.serve.door.refusal import Refused
from adapterhub.serve.door.settings import DoorSettings
from adapterhub.words import shown

_CHAT_TEMPLATE = """
    add_generation_prompt add_special_tokens chat_template chat_template_kwargs continue_final_message
"""
_SAMPLING = """
    allowed_token_ids bad_words echo frequency_penalty ignore_eos include_stop_str_in_output length_penalty logit_bias
    logprob_token_ids logprobs max_tokens min_p min_tokens n presence_penalty prompt_logprobs repetition_detection
    repetition_penalty response_format return_token_ids return_tokens_as_token_ids routed_experts_prompt_start seed
    skip_special_tokens spaces_between_special_tokens stop stop_token_ids stream stream_interval stream_options
    structured_outputs temperature thinking_token_budget top_k top_p truncate_prompt_tokens truncation_side
    use_beam_search user
"""
_CHAT = """
    documents include_reasoning max_completion_tokens messages parallel_tool_calls reasoning_effort return_prompt_text
    tool_choice tools top_logprobs
"""
_EMBED = """
    dimensions embed_dtype encoding_format endianness input messages normalize padding task truncate_prompt_tokens
    truncation_side use_activation user
"""

PASSED: dict[str, frozenset[str]] = {
    "/v1/chat/completions": frozenset(f"{_SAMPLING} {_CHAT} {_CHAT_TEMPLATE}".split()),
    "/v1/completions": frozenset(f"{_SAMPLING} add_special_tokens prompt suffix".split()),
    "/v1/embeddings": frozenset(f"{_EMBED} {_CHAT_TEMPLATE}".split()),
    "/tokenize": frozenset(f"{_CHAT_TEMPLATE} messages prompt return_token_strs tools".split()),
    "/detokenize": frozenset(("tokens",)),
}
"""Path -> fields that concern this request alone and go to the engine as they are."""

OURS = frozenset(("model", "cache_salt", "request_id"))
"""Fields that the door sets. The client's request_id is dropped: an id that two requests share could end the other's."""

REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "kv_transfer_params": ((), "it names other servers and the memory of other requests"),
    "ec_transfer_params": ((), "it names other servers and the memory of other requests"),
    "vllm_xargs": ((), "it goes to extensions of the engine unseen, kv_transfer_params among them"),
    "prompt_embeds": ((), "it is a tensor that the engine would have to unpack"),
    "mm_processor_kwargs": ((), "it changes how much memory the engine takes"),
    "media_io_kwargs": ((), "it changes how much memory the engine takes"),
    "priority": ((0,), "it would pass requests of others by"),
    "watermarking": ((True,), "whether answers are marked is the server's decision"),
}
"""Field -> values that do nothing (None always), and why any other is refused."""

SALTED = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/embeddings"))
"""Paths whose requests may share cached prompts."""

_CONTAINERS = frozenset((list, dict))
_BYTE = re.compile(r" \(byte (\d+)\)$")
_SHOWN_FIELDS = 8
_PLAIN_FIELD = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Question:
    """One request. `model` None is the base, as in vLLM; `answers` is how many are written at once."""

    path: str
    fields: dict[str, Any]
    model: str | None
    stream: bool
    usage: bool
    """Whether the client wants the chunk with the token counts that ends a stream."""
    answers: int
    user: str
    salt: str
    ignored: tuple[str, ...]

    def written(self, model: str, salt: str | None) -> bytes:
        """The body for the engine, which knows the model as `model`."""
        fields = {**self.fields, "model": model}
        if salt and self.path in SALTED:
            fields["cache_salt"] = salt
        if self.stream:
            asked = self.fields.get("stream_options") or {}
            always = self.usage and bool(asked.get("continuous_usage_stats"))
            fields["stream_options"] = {"include_usage": True, "continuous_usage_stats": always}
        return msgspec.json.encode(fields)


def judge(path: str, body: bytes, settings: DoorSettings) -> Question:
    """The request in a body. Refused 400 where it isn't one that may be passed on."""
    given = _object(body, settings.max_depth)
    passed = PASSED[path]
    ignored = []
    for name, value in given.items():
        if name in REFUSED and value is not None:
            harmless, why = REFUSED[name]
            if not any(value == one and type(value) is type(one) for one in harmless):
                _refuse(name, f"`{name}` can't be set through this server: {why}.")
        elif name not in passed and name not in OURS and value is not None:
            ignored.append(name)
    fields = {name: value for name, value in given.items() if name in passed}
    if not settings.prompt_scores:
        _judge_scores(path, fields)
    for messages in (fields.get("messages"), fields.get("input")):
        for part in _parts(messages):
            _judge_part(part, settings.media_urls)
    stream = _typed(fields, "stream", bool) or False
    options = _typed(fields, "stream_options", dict) or {}
    return Question(
        path=path,
        fields=fields,
        model=_typed(given, "model", str) or None,
        stream=stream,
        usage=bool(_typed(options, "include_usage", bool)),
        answers=_answers(path, fields),
        user=_typed(fields, "user", str) or "",
        salt=_typed(given, "cache_salt", str) or "",
        ignored=tuple(filter(_PLAIN_FIELD.fullmatch, ignored))[:_SHOWN_FIELDS],
    )


def _judge_scores(path: str, fields: dict[str, Any]) -> None:
    """Refuses what ends vLLM 0.32 on a CPU when it shares a batch.

    There the log-probabilities of a prompt are computed with a row for each of its tokens, while the LoRA layer of the
    output head has the batch's adapter indices: its kernel fails, and the engine with it, for everybody.
    """
    # in chat, vLLM takes `top_logprobs` for it where `echo` is set, and 0 counts
    always = path == "/v1/chat/completions"
    echoed = fields.get("echo") and (always or fields.get("logprobs") is not None)
    name = "prompt_logprobs" if fields.get("prompt_logprobs") is not None else "echo"
    if echoed or name == "prompt_logprobs":
        _refuse(
            name,
            f"`{name}` can't be asked of this server: with adapters, log-probabilities of a prompt end its engine"
            " (vLLM 0.32 on a CPU).",
        )


def _object(body: bytes, depth: int) -> dict[str, Any]:
    try:
        given = msgspec.json.decode(body)
    except RecursionError:
        _refuse(None, f"The body is nested deeper than {depth} levels.")
    except (
        ValueError
    ) as error:  # malformed, truncated, out of range, not UTF-8, half a surrogate pair
        _refuse(None, f"The body is no JSON: {_where(str(error), body)}.")
    if not isinstance(given, dict):
        _refuse(None, f"The body must be a JSON object, not {shown(given)}.")
    if _deeper(given, depth):
        _refuse(None, f"The body is nested deeper than {depth} levels.")
    return given


def _where(error: str, body: bytes) -> str:
    """The parser's words, with line and column in place of its byte."""
    found = _BYTE.search(error)
    if found is None and "truncated" not in error:
        return error.removesuffix(" - at `$[...]`")
    before = body[: int(found[1])] if found else body
    line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
    what = _BYTE.sub("", error).removeprefix("JSON is malformed: ")
    return f"{what} at line {line}, column {column}"


def _deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are nested in more than `most` levels."""
    level = [value]
    for _ in range(most):
        below: list[Any] = []
        for container in level:
            inside = container.values() if type(container) is dict else container
            if not _CONTAINERS.isdisjoint(map(type, inside)):
                below += [one for one in inside if type(one) in _CONTAINERS]
        if not below:
            return False
        level = below
    return True


def _typed(fields: dict[str, Any], name: str, kind: type) -> Any:
    """The field, or None. vLLM would take "true" or 1 for a bool; what is judged here must mean one thing."""
    value = fields.get(name)
    if value is not None and type(value) is not kind:
        word = {bool: "true or false", dict: "an object", str: "a string", int: "a whole number"}
        _refuse(name, f"`{name}` must be {word[kind]}, not {shown(value)}.")
    return value


def _answers(path: str, fields: dict[str, Any]) -> int:
    """How many sequences the engine generates at once for this request."""
    if path not in ("/v1/chat/completions", "/v1/completions"):
        return 1
    each = _typed(fields, "n", int)
    if each is not None and each < 1:
        _refuse("n", "`n` must be at least 1.")
    prompts = fields.get("prompt")
    several = isinstance(prompts, list) and bool(prompts) and not isinstance(prompts[0], int)
    return (each or 1) * (len(prompts) if several and isinstance(prompts, list) else 1)


def _parts(messages: Any) -> Iterator[dict[str, Any]]:
    """Every content part of messages, or of lists of messages."""
    if type(messages) is dict:
        content = messages.get("content")
        if isinstance(content, list):
            yield from (part for part in content if type(part) is dict)
    elif type(messages) is list and not _CONTAINERS.isdisjoint(map(type, messages)):
        for one in messages:
            yield from _parts(one)


def _judge_part(part: dict[str, Any], media_urls: bool) -> None:
    """Refused for a part that the engine would fetch from elsewhere, unpack, or take from another request's cache."""
    if part.get("uuid") is not None:
        _refuse(
            "messages", "A content part can't have a `uuid`: the cache it names is everybody's."
        )
    for key in (*part, part.get("type")):
        if isinstance(key, str) and key.endswith("_embeds"):
            _refuse("messages", f"`{key}` is a tensor that the engine would have to unpack.")
    if media_urls:
        return
    for key, value in part.items():
        url = value.get("url") if type(value) is dict else value
        if key.endswith("_url") and url is not None and not str(url).startswith("data:"):
            _refuse(
                "messages",
                f"`{key}` must be a data: URL; this server fetches nothing for its clients.",
            )


def _refuse(param: str | None, message: str) -> NoReturn:
    raise Refused(400, message, code="invalid_value", param=param)
