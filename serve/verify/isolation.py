"""Everybody at once: does each name answer as it does when it is asked alone?

A round has two kinds of requests in flight together. The next token after a fixed prompt fills a batch with rows of
prefill; it must be what the name says alone. An answer to a new prompt decodes token by token beside the others. Afterwards
its name is asked alone what comes next after the prompt and a part of that answer, at some places from the first token to
the last: that is a prefill by itself, and whatever went wrong before, in one of the steps or in what was kept of them, shows.
Half of the answers are drawn and not greedy: where a model repeats itself, greedy tokens are sure under every adapter
and tell nobody apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

from adapterhub.serve.verify.asking import Answer, Seen, Server, UnansweredError
from adapterhub.serve.verify.effect import Difference, Tolerance, difference
from adapterhub.serve.verify.probes import Probes, Tokens

IN_FLIGHT = 64
"""Requests at a time; vLLM takes as many into a batch as --max-num-seqs says."""
_CHECKED = 4
"""Places of an answer that are looked at alone."""


@dataclass(frozen=True)
class Question:
    """What was asked: what comes next after the fixed prompt `place`, or an answer, greedy or drawn with a seed."""

    name: str
    prompt: Tokens
    place: int | None = None
    sample: int | None = None


@dataclass(frozen=True)
class Heard:
    """What was seen in an answer beside what its name sees alone after `prompts` (the question, and parts of the answer)."""

    question: Question
    prompts: tuple[Tokens, ...]
    chosen: tuple[int, ...]
    said: tuple[Seen, ...]
    alone: tuple[Seen, ...]

    @property
    def off(self) -> Difference:
        """How far it is from what it should have been."""
        return difference(self.said, self.alone)

    @property
    def regret(self) -> float:
        """By how much the worst greedy token is less likely than the best one there; 0 for drawn ones."""
        if self.question.sample is not None:
            return 0.0
        return max(
            max(seen.values()) - seen.get(token, min(seen.values()))
            for token, seen in zip(self.chosen, self.alone, strict=True)
        )

    def wrong(self, tolerance: Tolerance) -> bool:
        """Whether arithmetic alone can't explain it. A greedy token may be a tie: noise on both sides of it."""
        return tolerance.wrong(self.off) or self.regret > 2 * tolerance.token


def questions(names: Sequence[str], base: str, probes: Probes, random: Random) -> list[Question]:
    """A round for `names`, shuffled: one of each kind for each, and of the base for every second of them besides.

    So rows of the base and of adapters share batches from the first to the last.
    """
    found = []
    for name in (*names, *[base] * (len(names) // 2)):
        place = random.randrange(len(probes.fixed))
        sample = random.getrandbits(31) if random.random() < 0.5 else None
        found.append(Question(name, probes.fixed[place], place=place))
        found.append(Question(name, probes.fresh(random), sample=sample))
    random.shuffle(found)
    return found


async def together(
    server: Server,
    asked: Sequence[Question],
    length: int,
    beside: Callable[[], Awaitable[None]] | None = None,
) -> list[Answer | UnansweredError]:
    """Asks all at once; `beside` runs while they are in flight."""
    free = asyncio.Semaphore(IN_FLIGHT)

    async def ask(question: Question) -> Answer | UnansweredError:
        async with free:
            try:
                return await server.answer(
                    question.name,
                    question.prompt,
                    1 if question.place is not None else length,
                    sample=question.sample,
                )
            except UnansweredError as error:
                return error

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(question)) for question in asked]
        if beside is not None:
            await beside()
    return [task.result() for task in tasks]


async def beside_alone(
    server: Server, question: Question, answer: Answer, alone: Sequence[Seen], random: Random
) -> Heard:
    """`answer` beside what its own name says alone: known already of a fixed prompt (`alone`), or asked for now."""
    if question.place is not None:
        same = (alone[question.place],)
        return Heard(question, (question.prompt,), answer.tokens, answer.seen, same)
    places = _places(len(answer.tokens), random)
    prompts = tuple((*question.prompt, *answer.tokens[:place]) for place in places)
    return Heard(
        question,
        prompts,
        tuple(answer.tokens[place] for place in places),
        tuple(answer.seen[place] for place in places),
        tuple([await server.next(question.name, prompt) for prompt in prompts]),
    )


def _places(length: int, random: Random) -> list[int]:
    """The first token, the last, and some between."""
    between = list(range(1, length - 1))
    drawn = random.sample(between, min(_CHECKED - 2, len(between)))
    return sorted({0, length - 1, *drawn})


async def who_said(server: Server, heard: Heard, names: Sequence[str]) -> dict[str, list[Seen]]:
    """What each of `names` says alone after the same prompts; who can't be asked is left out."""
    found = {}
    for name in names:
        try:
            found[name] = [await server.next(name, prompt) for prompt in heard.prompts]
        except UnansweredError:
            continue
    return found
