"""Evaluating through a server that speaks OpenAI's protocol: a door of ours, vLLM by itself, or another.

The rows go over as their tokens, so a server is asked exactly what transformers is asked here. How likely a token is
after those before it, it is asked by letting it write that one token and no other (`allowed_token_ids`): the likelihood it
tells is the model's own, from before the choice was narrowed. vLLM's `prompt_logprobs`, one request for a whole row, is
asked only where no adapters are served: vLLM 0.32 takes the rows of a prompt for rows of the batch when an adapter changes
the output head, and on a CPU it dies of that. Nor is `logprob_token_ids` asked: it takes the likelihoods away that
others in the batch have asked for.

A server that knows no tokens, or other ones, is asked in messages, and tells no likelihoods.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from adapterhub.canonical import canonical_bytes, digest_of
from adapterhub.data.masking import IGNORED, Encoded
from adapterhub.data.rows import Message, plain_messages
from adapterhub.errors import IncompatibleError, RemoteError, UsageError
from adapterhub.evaluate import models
from adapterhub.evaluate.generate import answer_of
from adapterhub.evaluate.models import Answer
from adapterhub.evaluate.scoring import Score
from adapterhub.evaluate.server import RefusedError, Server, Work
from adapterhub.evaluate.subjects import Subject
from adapterhub.evaluate.task import Asking

if TYPE_CHECKING:
    import httpx2

    from adapterhub.base import BaseModel

_TEXT = "What is the capital of France? Größe: 3,50 €\n"
"""What both sides make tokens of, to see whether they mean the same by them."""
_HELLO = "Hello!"
_FEW = 16
"""Tokens of an answer and of a text by which a model is known again."""
_UNKNOWN = frozenset((400, 404, 405, 415, 422, 501))
"""Statuses of a server that doesn't know what it is asked for."""
_CHUNK = 64
"""Answers that are handed on together."""
_ABOVE = 1e-3
"""What probabilities, told as rounded logarithms, may add up to beyond 1."""
_CLAMPED = -9999.0
"""vLLM's word for a likelihood of nothing at all."""
_NEUTRAL = {
    "temperature": 0.0,
    # what a generation_config.json over there may say otherwise
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(frozen=True)
class Way:
    """How one model is asked. `likelihoods`: a row at once, a token at a time, or not told, for the reason `why`."""

    tokens: bool
    likelihoods: Literal["row", "token"] | None
    why: str = ""


class Served:
    """The backend. `names` says what each subject is called over there, and `base` is the base it is all about."""

    def __init__(
        self,
        server: Server,
        names: Mapping[str, str],
        base: BaseModel,
        tokenizer: Any,
        stop_ids: frozenset[int],
        remark: Callable[[str], None],
    ) -> None:
        self.server = server
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self._names = names
        self._base = base
        self._remark = remark
        self._ways: dict[str, Way] = {}
        self._engine: str | None = None
        self.salt = secrets.token_hex(16)
        """Keeps this evaluation from what the server remembers of prompts under names that may have meant something else."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the server says of itself. It is its word; an address is nobody else's business."""
        engine = self._engine_told()
        name, _, version = engine.partition(" ")
        return {
            "server": "adapterhub" if self.server.base else "openai",
            "dtype": self.server.dtype,
            "options": str(self.server.base.about.get("options")) if self.server.base else None,
            "versions": {name: version} if name else {},
        }

    def recognised(self, subject: Subject) -> Mapping[str, Any]:
        """Nothing more where a door of ours says which weights it serves; elsewhere a name, and how it behaves."""
        name = self._names[subject.name]
        if self.server.base is not None and subject.kind != "model":
            return {}  # by its digest, on a base by its fingerprint
        way = self.way(name)
        return {"served": name, "tokens": way.tokens, "behaves": self._behaviour(name, way)}

    @contextmanager
    def speaker(self, subject: Subject) -> Iterator[_Served]:
        """The model, under its name over there."""
        yield _Served(self, self._names[subject.name])

    def way(self, name: str) -> Way:
        """How this one is asked, tried out once; what it doesn't tell is remarked upon."""
        if name not in self._ways:
            found = self._tried(name)
            if self.server.base is not None and not found.tokens:
                raise IncompatibleError(
                    f"The server at {self.server.host} makes other tokens of a text than the store's {self._base.label}.",
                    why="Their weights are the same, and their tokenizers differ.",
                )
            self._ways[name] = found
            if found.why:
                asked = "its tokens" if found.tokens else "messages"
                self._remark(f"{name} is asked in {asked} and has no perplexity: {found.why}")
        return self._ways[name]

    def room(self, name: str) -> float:
        """Tokens of a prompt and its answer together, as far as the server says it."""
        listed = self.server.models
        lengths = [
            one.max_model_len
            for one in (listed.get(name), self.server.base)
            if one is not None and one.max_model_len is not None
        ]
        return min(lengths, default=math.inf)

    def completion(self, name: str, prompt: Sequence[int], **fields: Any) -> dict[str, Any]:
        """The body that asks for what comes after these tokens."""
        return {
            "model": name,
            "prompt": list(prompt),
            "return_token_ids": True,
            # only what is in stop_token_ids ends an answer, as it does here
            "ignore_eos": True,
            "cache_salt": self.salt,
            **_NEUTRAL,
            **fields,
        }

    def _tried(self, name: str) -> Way:
        asked: list[int] = self.tokenizer(_TEXT, add_special_tokens=False)["input_ids"]
        question = {"model": name, "prompt": _TEXT, "add_special_tokens": False}
        theirs = self._answered("/tokenize", question)
        if not isinstance(theirs, dict) or theirs.get("tokens") != asked:
            told = (
                "says other tokens than" if theirs else "doesn't say whether it has the tokens of"
            )
            return Way(False, None, f"the server {told} {self._base.label}.")
        choice = _choice(
            self._answered("/v1/completions", self.completion(name, asked, max_tokens=1))
        )
        if not isinstance(choice.get("token_ids"), list):
            return Way(False, None, "the server answers no tokens with tokens.")
        if not any(one.parent for one in self.server.models.values()):
            body = self.completion(name, asked, max_tokens=1, prompt_logprobs=0)
            values = _row_told(_choice(self._answered("/v1/completions", body)), asked)
            if values and None not in values[1:]:
                return Way(True, "row")
        return self._forced(name, asked)

    def _forced(self, name: str, asked: Sequence[int]) -> Way:
        """Whether it tells the model's own likelihood of a token that it is made to say."""
        first = min(self.stop_ids)
        pair = (first, next(token for token in asked if token != first))
        told = [
            forced_value(
                _choice(self._answered("/v1/completions", forced(self, name, asked, token))), token
            )
            for token in pair
        ]
        values = [one for one in told if one is not None]
        if len(values) < len(pair):
            return Way(True, None, "the server tells no likelihood of a token it is asked for.")
        if sum(map(math.exp, values)) > 1 + _ABOVE:
            return Way(
                True,
                None,
                "the server tells how likely a token was among those allowed, not how likely the model"
                " takes it for (vLLM: --logprobs-mode raw_logprobs).",
            )
        return Way(True, "token")

    def _answered(self, path: str, body: Mapping[str, Any]) -> Any:
        """The answer, or None of a server that doesn't know what it is asked."""
        try:
            return self.server.now("POST", path, body)
        except RefusedError as refused:
            if refused.status in _UNKNOWN:
                return None
            raise

    def _behaviour(self, name: str, way: Way) -> str:
        """A digest of a short answer and of a likelihood, by which a model is known again that proves nothing."""
        speaker = _Served(self, name)
        seen = {"said": speaker.answer(_HELLO, _FEW)}
        if way.likelihoods:
            asked = tuple(self.tokenizer(_TEXT, add_special_tokens=False)["input_ids"][:_FEW])
            row = Encoded(asked, (IGNORED, *asked[1:]))
            scores = speaker.score(
                [row], known={}, on_scores=lambda _: None, on_rows=lambda _: None
            )
            assert scores is not None, "its way tells likelihoods"
            seen["loss"] = f"{scores[0].loss:.2f}"
        return digest_of(canonical_bytes(seen))

    def _engine_told(self) -> str:
        """Like `vllm 0.32.0`; nothing where the server doesn't say it."""
        if self._engine is None:
            if self.server.base is not None:
                self._engine = str(self.server.base.about.get("engine") or "")
            else:
                try:
                    told = self.server.now("GET", "/version")
                except RemoteError:
                    told = None
                version = told.get("version") if isinstance(told, dict) else None
                self._engine = f"vllm {version}" if isinstance(version, str) else ""
        return self._engine


class _Served:
    """What is asked of one of them."""

    def __init__(self, of: Served, name: str) -> None:
        self._of = of
        self._name = name

    def score(
        self,
        rows: Sequence[Encoded],
        *,
        known: Mapping[int, Score],
        on_scores: Callable[[Mapping[int, Score]], None],
        on_rows: Callable[[int], None],
    ) -> list[Score] | None:
        places = range(len(rows))
        found = {place: known[place] for place in places if place in known}
        if len(found) == len(rows):
            on_rows(len(rows))
            return [found[place] for place in places]
        if self._of.way(self._name).likelihoods is None:
            on_rows(len(rows))
            return None
        longest = max(len(row.input_ids) for row in rows)
        if longest > (room := self._of.room(self._name)):
            raise UsageError(
                f"A row has {longest} tokens, and {self._name} reads {room} at this server.",
                hint=f"--max-length {room}, or serve it with more: --max-model-len {longest}",
            )
        on_rows(len(found))

        def scored(place: int, values: Sequence[float | None]) -> None:
            found[place] = self._score(values)
            on_scores({place: found[place]})
            on_rows(1)

        left = [place for place in places if place not in known]
        self._of.server.together(
            work for place in left for work in self._scoring(rows[place], partial(scored, place))
        )
        return [found[place] for place in places]

    def _scoring(
        self, row: Encoded, scored: Callable[[Sequence[float | None]], None]
    ) -> list[Work]:
        """The questions of one row; `scored` hears the logarithms of its marked tokens once all have come."""
        of, ids = self._of, row.input_ids
        marked = [at for at, label in enumerate(row.labels) if at and label != IGNORED]
        values: dict[int, float | None] = {}

        async def at_once(client: httpx2.AsyncClient) -> None:
            body = of.completion(self._name, ids, max_tokens=1, prompt_logprobs=0)
            told = _row_told(await self._choice(client, body), ids)
            scored([told[at] if told else None for at in marked])

        async def one(at: int, client: httpx2.AsyncClient) -> None:
            choice = await self._choice(client, forced(of, self._name, ids[:at], ids[at]))
            values[at] = forced_value(choice, ids[at])
            if len(values) == len(marked):
                scored([values[at] for at in marked])

        if of.way(self._name).likelihoods == "row" and len(ids) < of.room(self._name):
            return [at_once]
        return [partial(one, at) for at in marked]

    async def _choice(self, client: httpx2.AsyncClient, body: Mapping[str, Any]) -> dict[str, Any]:
        return _choice(await self._of.server.ask(client, "POST", "/v1/completions", body))

    def _score(self, values: Sequence[float | None]) -> Score:
        """Of the marked tokens of one row, in the order of the text. RemoteError where one is missing."""
        sound = [value for value in values if value is not None]
        if len(sound) < len(values):
            raise RemoteError(
                f"The server at {self._of.server.host} tells no likelihood of {len(values) - len(sound)} of the"
                f" {len(values)} tokens of a row that {self._name} was asked for.",
                why="It is missing, not finite, or that of another token.",
                hint="adapterhub server verify looks whether a server of ours answers as it should.",
            )
        return Score(-math.fsum(sound), len(sound), 1)

    def answers(
        self,
        asking: Asking,
        max_new_tokens: int,
        *,
        known: Container[int],
        on_rows: Callable[[int], None],
    ) -> Iterator[dict[int, Answer]]:
        asked = [place for place, question in enumerate(asking.questions) if question]
        left = [place for place in asked if place not in known]
        on_rows(len(asked) - len(left))
        if not left:
            return
        if self._of.way(self._name).tokens:
            self._require_room(asking.questions, left, max_new_tokens)
        for start in range(0, len(left), _CHUNK):
            made: dict[int, Answer] = {}
            chunk = left[start : start + _CHUNK]
            broken: BaseException | None = None
            try:
                self._of.server.together(
                    self._asker(asking, place, max_new_tokens, made) for place in chunk
                )
            except (RemoteError, KeyboardInterrupt) as error:
                broken = error
            if made:
                yield made
            on_rows(len(made))
            if broken is not None:
                raise broken

    def _require_room(
        self, questions: Sequence[Sequence[int]], places: Sequence[int], max_new_tokens: int
    ) -> None:
        longest = max(len(questions[place]) for place in places)
        room = self._of.room(self._name)
        if longest + max_new_tokens > room:
            raise UsageError(
                f"A question of {longest} tokens and an answer of up to {max_new_tokens} don't fit into the {room} that"
                f" {self._name} reads at this server.",
                hint=f"--max-new-tokens {room - longest}"
                if longest < room
                else f"Serve it with more: --max-model-len {longest + max_new_tokens}",
            )

    def _asker(
        self, asking: Asking, place: int, max_new_tokens: int, made: dict[int, Answer]
    ) -> Work:
        turns, tokens = asking.rows[place].question, asking.questions[place]

        async def work(client: httpx2.AsyncClient) -> None:
            made[place] = await self._ask(client, tokens, turns, max_new_tokens)

        return work

    def answer(self, prompt: str, max_new_tokens: int) -> str:
        """One greedy answer."""
        found: list[Answer] = []
        self._of.way(self._name)  # tried out before anything is in flight
        tokens = models.prompt_tokens(self._of.tokenizer, prompt)

        async def work(client: httpx2.AsyncClient) -> None:
            found.append(await self._ask(client, tokens, [Message("user", prompt)], max_new_tokens))

        self._of.server.together([work])
        return found[0].text.strip()

    async def _ask(
        self,
        client: httpx2.AsyncClient,
        tokens: Sequence[int],
        turns: Sequence[Message],
        max_new_tokens: int,
    ) -> Answer:
        of = self._of
        if of.way(self._name).tokens:
            body = of.completion(
                self._name, tokens, max_tokens=max_new_tokens, stop_token_ids=sorted(of.stop_ids)
            )
            made = (await self._choice(client, body)).get("token_ids")
            if not isinstance(made, list) or not all(type(one) is int for one in made):
                raise self._unreadable()
            return answer_of(of.tokenizer, made, of.stop_ids)
        body = {
            "model": self._name,
            "messages": plain_messages(turns),
            "temperature": 0,
            "max_tokens": max_new_tokens,
        }
        choice = _choice(await of.server.ask(client, "POST", "/v1/chat/completions", body))
        message = choice.get("message")
        text = message.get("content") if isinstance(message, dict) else None
        if text is not None and not isinstance(text, str):
            raise self._unreadable()
        # Its own tokens aren't known: they are counted as the base's.
        made = of.tokenizer(text or "", add_special_tokens=False)["input_ids"]
        cut = choice.get("finish_reason") == "length"
        return Answer(text or "", tuple(made), "length" if cut else "stop")

    def _unreadable(self) -> RemoteError:
        return RemoteError(
            f"An answer of {self._name} at {self._of.server.host} can't be read.",
            why="It has neither tokens nor a text where they should be.",
        )


def forced(of: Served, name: str, before: Sequence[int], token: int) -> dict[str, Any]:
    """The body that makes the model say `token` after `before`, and tell how likely it was."""
    return of.completion(name, before, max_tokens=1, allowed_token_ids=[token], logprobs=1)


def forced_value(choice: Mapping[str, Any], token: int) -> float | None:
    """The natural logarithm of the probability of `token`; None where the answer doesn't tell a sound one."""
    if choice.get("token_ids") != [token]:
        return None
    told = choice.get("logprobs")
    values = told.get("token_logprobs") if isinstance(told, dict) else None
    return _sound(values[0]) if isinstance(values, list) and len(values) == 1 else None


def _row_told(choice: Mapping[str, Any], ids: Sequence[int]) -> list[float | None] | None:
    """The same of each token of a row, of the first nothing; None where the answer has none of them."""
    told = choice.get("prompt_logprobs")
    if not isinstance(told, list) or len(told) != len(ids):
        return None
    found: list[float | None] = []
    for token, seen in zip(ids, told, strict=True):
        one = seen.get(str(token)) if isinstance(seen, dict) else None
        found.append(_sound(one.get("logprob")) if isinstance(one, dict) else None)
    return found


def _sound(value: Any) -> float | None:
    """A finite logarithm of a probability."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if _CLAMPED < value <= _ABOVE else None


def _choice(body: Any) -> dict[str, Any]:
    """The first choice of an answer; an empty one where there is none."""
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}
