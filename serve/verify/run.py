"""The order of things: alone, effect, transformers, remembered, mixed, remembered and alone again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Literal

import httpx

from adapterhub.errors import AdapterHubError
from adapterhub.export.logits import CannotCompareError
from adapterhub.serve.verify.asking import Answer, Seen, Server, UnansweredError
from adapterhub.serve.verify.effect import (
    TELLING,
    TOLERANCES,
    changes_nothing,
    difference,
    nearest,
    telling,
)
from adapterhub.serve.verify.isolation import (
    Heard,
    Question,
    beside_alone,
    questions,
    together,
    who_said,
)
from adapterhub.serve.verify.probes import LONG_ANSWER, Probes, make_probes, served_dtype
from adapterhub.serve.verify.reference import compare, distance, expected
from adapterhub.serve.verify.report import Checked, Report
from adapterhub.words import some

MOST_ADAPTERS = 16
"""That are looked at; of more, a sample."""
ROUNDS = 3
ANSWER_SECONDS = 120.0
"""For one request, loading an adapter included."""
SECONDS = 300.0
"""After which no further round begins."""

THE_SERVER = "the server"
_EXACT = 1e-6
"""Two computations of the same thing in the same batch; log-probabilities travel as text."""
_BASE_ROW = (
    "rows of the base take an adapter's slot (vLLM #48421, CPU kernels of 0.32): "
    "serve through adapterhub's door, with its vLLM plugin, or with a slot that stays empty"
)
_EXCHANGED = (
    "its weights were exchanged under one name, and vLLM's prefix cache goes by name and path: "
    "serve each version under a name and path of its own"
)


@dataclass(frozen=True)
class Served:
    """A name to ask for, and its PEFT folder as the store shows it; None: the base."""

    name: str
    folder: Path | None


async def verify(
    client: httpx.AsyncClient,
    base_folder: Path,
    served: Sequence[Served],
    *,
    dtype: str,
    probes: Sequence[str] | None = None,
    reference: Literal["auto", "never", "always"] = "auto",
    rounds: int = ROUNDS,
    churn: Callable[[], Awaitable[None]] | None = None,
    tell: Callable[[str], None] = lambda _: None,
    seconds: float = SECONDS,
    seed: int = 0,
) -> Report:
    """Asks the server behind `client` until it is known whether every name in `served` answers as itself, alone and mixed.

    Args:
        served: what is served, the base among it.
        dtype: what the server computes in; "auto" as vLLM takes it.
        probes: texts to ask in place of the built-in ones.
        reference: whether transformers computes the same; "auto" where memory and time allow it.
        churn: loads and unloads adapters, awaited once a round while its requests are in flight.
        tell: hears what is being done, a few words at a time.
        seconds: after which no further round begins, and names not asked yet are left out.

    Raises IncompatibleError where the server takes too few tokens, UnansweredError never: what goes wrong is a fault in
    the report.
    """
    server = Server(client, ANSWER_SECONDS)
    work = _Verification(server, base_folder, served, dtype, seconds, Random(seed), tell)
    started = time.monotonic()
    await work.run(probes, reference, rounds, churn)
    work.report.requests = server.requests
    work.report.seconds = time.monotonic() - started
    return work.report


class _Verification:
    """What is known so far. `alone`: what each name that could be asked says after the fixed prompts."""

    def __init__(
        self,
        server: Server,
        base_folder: Path,
        served: Sequence[Served],
        dtype: str,
        seconds: float,
        random: Random,
        tell: Callable[[str], None],
    ) -> None:
        self.server, self.base_folder, self.random, self.tell = server, base_folder, random, tell
        self.deadline = time.monotonic() + seconds
        computed = served_dtype(dtype, base_folder)
        self.stated = TOLERANCES[computed]
        self.report = Report(computed, self.stated)
        known = {one.name: one for one in served}
        bases = [one.name for one in known.values() if one.folder is None]
        if len(bases) != 1:
            raise ValueError(f"served must name the base once, not {len(bases)} times")
        self.base = bases[0]
        adapters = [one for one in known.values() if one.folder is not None]
        chosen = adapters
        if len(adapters) > MOST_ADAPTERS:
            picked = set(random.sample(range(len(adapters)), MOST_ADAPTERS))
            chosen = [one for place, one in enumerate(adapters) if place in picked]
            self.report.left_out += [one.name for one in adapters if one not in chosen]
            self.report.remarks.append(
                f"{len(chosen)} of {len(adapters)} adapters were looked at, drawn at random"
            )
        self.checked = {
            one.name: Checked(one.name, one.folder) for one in (known[self.base], *chosen)
        }
        self.alone: dict[str, list[Seen]] = {}
        self.wrong: list[Heard] = []

    @property
    def late(self) -> bool:
        return time.monotonic() > self.deadline

    async def run(
        self,
        texts: Sequence[str] | None,
        reference: str,
        rounds: int,
        churn: Callable[[], Awaitable[None]] | None,
    ) -> None:
        limit = await self._limit()
        self.probes: Probes = await asyncio.to_thread(make_probes, self.base_folder, limit, texts)
        await self._ask_alone()
        self.report.names = [self.checked[name] for name in self.alone]
        if self.base not in self.alone:
            return
        await self._noise()
        await self._effects()
        await self._reference(reference)
        self._separate()
        await self._remembered()
        for number in range(rounds):
            if self.late and number:
                self.report.remarks.append(
                    f"stopped after {number} of {rounds} rounds: no time left"
                )
                break
            self.tell(f"round {number + 1} of {rounds}, all names mixed")
            await self._round(churn)
            self.report.rounds += 1
        await self._remembered()
        await self._ask_again()
        await self._blame_mixed()

    async def _limit(self) -> int | None:
        """The longest prompt and answer together, where the server says it (vLLM does, of the base)."""
        try:
            listed = await self.server.listed()
        except UnansweredError:
            return None  # whether the names answer is what counts
        found = [model.get("max_model_len") for model in listed.values()]
        return min((one for one in found if isinstance(one, int)), default=None)

    def _refused(self, name: str, error: UnansweredError) -> None:
        self.report.blame(name, "refused", str(error))

    async def _ask_alone(self) -> None:
        for name in self.checked:
            if self.late and name != self.base:
                self.report.left_out.append(name)
                continue
            self.tell(f"asking {name} alone")
            try:
                self.alone[name] = [
                    await self.server.next(name, prompt) for prompt in self.probes.fixed
                ]
            except UnansweredError as error:
                self._refused(name, error)

    async def _noise(self) -> None:
        """What other batches alone change: all prompts of one name at once, for the base and one adapter."""
        for name, first in list(self.alone.items())[:2]:
            asked = [
                Question(name, prompt, place=place)
                for place, prompt in enumerate(self.probes.fixed)
            ]
            answers = await together(self.server, asked, 1)
            for answer, alone in zip(answers, first, strict=True):
                if isinstance(answer, Answer):
                    found = difference(answer.seen, [alone])
                    self.report.noise = self.report.noise.or_more(found)
        noise = self.report.noise
        if noise.worst > self.stated.most:
            self.report.blame(
                THE_SERVER,
                "unrepeatable",
                f"doesn't repeat itself: asked the same of the same name in another batch, log-probabilities differ "
                f"by {noise}, where in {self.report.dtype} {self.stated}",
            )
        elif self.stated.wrong(noise):
            self.report.tolerance = self.stated.widened(noise)
            self.report.remarks.append(
                f"batches of one name differ by {noise}, so {self.report.tolerance}, more than is usual"
            )

    async def _effects(self) -> None:
        base = self.alone[self.base]
        try:
            again = [await self.server.next(self.base, prompt) for prompt in self.probes.fixed]
        except UnansweredError as error:
            self._refused(self.base, error)
            return
        exact = min(difference(base, again).worst, self.stated.token) + _EXACT
        for name, seen in self.alone.items():
            one = self.checked[name]
            if one.folder is None:
                continue
            one.effect = difference(seen, base)
            if one.effect.worst > max(exact, self.report.noise.worst):
                continue
            if await asyncio.to_thread(_zero, one.folder):
                self.report.remarks.append(f"{name} changes nothing: its own factors are zero")
            elif one.effect.worst <= exact:
                self.report.blame(
                    name,
                    "no effect",
                    f"changes nothing: after {len(base)} prompts it answers exactly as the base '{self.base}' does",
                    "the server found none of its modules; its keys match nothing there",
                )
            else:
                self.report.remarks.append(
                    f"{name} changes no more than the server's own noise ({one.effect.worst:.2g})"
                )

    async def _reference(self, wanted: str) -> None:
        names = list(self.alone)
        folders = {name: self.checked[name].folder for name in names}
        if wanted == "never":
            why_not = "not asked for"
        else:
            self.tell("computing the same with transformers")
            stop = threading.Event()
            try:
                references = await asyncio.to_thread(
                    expected,
                    self.base_folder,
                    folders,
                    self.probes.fixed,
                    self._shown(),
                    self.report.dtype,
                    always=wanted == "always",
                    stop=stop,
                )
            except asyncio.CancelledError:
                stop.set()  # the thread can't be cancelled, but it looks
                raise
            except CannotCompareError as error:
                why_not = str(error)
            else:
                self._agree(references)
                return
        self.report.remarks.append(f"not compared with transformers: {why_not}")
        for name in names:
            self.checked[name].why_not = why_not

    def _shown(self) -> list[list[int]]:
        """The tokens that any name showed after each of the fixed prompts."""
        places = zip(*self.alone.values(), strict=True)
        return [sorted({token for seen in place for token in seen}) for place in places]

    def _agree(self, references: dict[str, list[Seen]]) -> None:
        base = self.alone[self.base]
        plain = distance(base, references[self.base])
        if plain.rms > 5 * self.stated.reference:
            self.report.blame(
                self.base,
                "differs",
                f"answers otherwise than transformers does with {self.base_folder}: log-probabilities differ by "
                f"{plain.rms:.2g} (rms) where {self.stated.reference:g} is expected in {self.report.dtype}",
                "the server has another base, another revision or a quantized one",
            )
            for one in self.report.names:
                one.why_not = "the base itself differs"
            return
        for one in self.report.names:
            found = compare(
                one.name, self.alone[one.name], references, self.base, self.stated, base
            )
            one.agreement = found
            if found.verdict and not self._blamed(one.name, "no effect"):
                self.report.blame(
                    one.name,
                    "differs",
                    f"is not what transformers makes of its folder: {found.verdict}; log-probabilities differ by "
                    f"{found.off.rms:.2g} (rms) where {found.limit:.2g} is expected in {self.report.dtype}",
                    found.cause,
                )
            elif one.folder is not None and not found.verdict and not found.told:
                self.report.remarks.append(
                    f"{one.name} changes too little ({found.expected.rms:.2g}) for transformers to tell whether all of it "
                    f"arrives; {2 * found.limit:.2g} is needed"
                )

    def _blamed(self, name: str, kind: str) -> bool:
        return any((fault.who, fault.kind) == (name, kind) for fault in self.report.faults)

    def _separate(self) -> None:
        """Which pairs couldn't be told apart if one answered for the other."""
        for a, b in combinations(self.report.names, 2):
            if a.folder is not None and a.folder == b.folder:
                continue
            one, other = self.alone[a.name], self.alone[b.name]
            if telling(one, other, self.report.tolerance) < TELLING:
                self.report.untold.append((a.name, b.name, difference(one, other)))
        if self.report.untold:
            pairs = [f"{a} and {b} ({gap})" for a, b, gap in self.report.untold]
            self.report.remarks.append(
                f"too alike to be told apart by answers where {self.report.tolerance}, so nothing is known of their "
                f"isolation from each other: {some(pairs)}"
            )

    async def _remembered(self) -> None:
        """Is what the prefix cache holds of a name still that name's? The long prompt is the same in every run."""
        if not self.probes.long:
            return
        for name, seen in self.alone.items():
            if self.late:
                return
            question = Question(name, self.probes.long)
            heard = []
            try:
                for cached in (True, False):
                    answer = await self.server.answer(
                        name, question.prompt, LONG_ANSWER, cached=cached
                    )
                    heard.append(
                        await beside_alone(self.server, question, answer, seen, self.random)
                    )
                    if not heard[-1].wrong(self.report.tolerance):
                        break
            except UnansweredError as error:
                self._refused(name, error)
                continue
            self._count(heard[-1])
            if len(heard) == 2 and heard[1] in self.wrong:
                continue  # wrong without the cache too
            if len(heard) == 2:
                self.report.blame(
                    name,
                    "stale",
                    f"answers a prompt from the prefix cache otherwise than when it computes it: log-probabilities differ "
                    f"by {heard[0].off}, where {self.report.tolerance}",
                    _EXCHANGED,
                )

    async def _round(self, churn: Callable[[], Awaitable[None]] | None) -> None:
        async def beside() -> None:
            assert churn is not None
            try:
                await churn()
            except (AdapterHubError, httpx.HTTPError, OSError) as error:
                self.report.blame(
                    THE_SERVER,
                    "loading",
                    f"failed to load or unload an adapter while requests were in flight: {error}",
                )

        asked = questions(list(self.alone), self.base, self.probes, self.random)
        answers = await together(
            self.server, asked, self.probes.answer, None if churn is None else beside
        )
        for question, answer in zip(asked, answers, strict=True):
            try:
                if isinstance(answer, UnansweredError):
                    raise answer
                heard = await beside_alone(
                    self.server, question, answer, self.alone[question.name], self.random
                )
            except UnansweredError as error:
                self._refused(question.name, error)
                continue
            self._count(heard)

    def _count(self, heard: Heard) -> None:
        one = self.checked[heard.question.name]
        one.answers += 1
        one.mixed = one.mixed.or_more(heard.off)
        one.regret = max(one.regret, heard.regret)
        if heard.wrong(self.report.tolerance):
            self.wrong.append(heard)

    async def _ask_again(self) -> None:
        """Whether each name still is who it was when this began; else its mixed answers say nothing."""
        self.tell("asking each alone again")
        for name, first in self.alone.items():
            if self.late and not any(heard.question.name == name for heard in self.wrong):
                continue
            try:
                again = [await self.server.next(name, prompt) for prompt in self.probes.fixed]
            except UnansweredError as error:
                self._refused(name, error)
                continue
            gaps = [difference([a], [b]) for a, b in zip(again, first, strict=True)]
            if any(map(self.report.tolerance.wrong, gaps)):
                self.report.blame(
                    name,
                    "changed",
                    f"no longer answers as it did when this began: log-probabilities differ by "
                    f"{difference(again, first)}, where {self.report.tolerance}",
                    _EXCHANGED,
                )

    async def _blame_mixed(self) -> None:
        for name in self.alone:
            wrong = [heard for heard in self.wrong if heard.question.name == name]
            if not wrong or self._blamed(name, "changed"):
                continue
            worst = max(wrong, key=lambda heard: heard.off.rms)
            others = [] if self.late else [one for one in self.alone if one != name]
            said = await who_said(self.server, worst, others)
            like = nearest(worst.said, worst.alone, said)
            cause = _BASE_ROW if name == self.base else ""
            if not cause and like:
                cause = f"'{name}' and '{like[0]}' share a slot or a cache on the server"
            self.report.blame(
                name,
                "mixed",
                (f"answers as '{like[0]}' does " if like else "answers otherwise than alone ")
                + f"when others are asked beside it: {len(wrong)} of {self.checked[name].answers} answers, whose "
                f"log-probabilities differ by up to {worst.off}, where {self.report.tolerance}",
                cause,
            )


def _zero(folder: Path) -> bool:
    """`changes_nothing`, where the folder can be read."""
    try:
        return changes_nothing(folder)
    except (AdapterHubError, OSError):
        return False
