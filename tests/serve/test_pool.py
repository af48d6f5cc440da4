"""Which versions the engine holds: an engine that is slow, refuses and forgets, and requests that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

from adapterhub.serve.door import pool as pool_module
from adapterhub.serve.door.pool import EngineError, Pool
from adapterhub.serve.door.refusal import Refused
from adapterhub.serve.naming import engine_name

DIGESTS = [f"sha256:{number:064x}" for number in range(1, 9)]


class Recorded:
    """An engine that takes its time, counts, and knows at any moment what it holds."""

    def __init__(self) -> None:
        self.holds: set[str] = set()
        self.loads: list[str] = []
        self.refuses: set[str] = set()
        self.most = 0

    async def load(self, name: str, folder: Path) -> None:
        assert folder == Path("/views") / name
        await asyncio.sleep(0)
        if name in self.refuses:
            raise EngineError("it is too large")
        self.holds.add(name)
        self.loads.append(name)
        self.most = max(self.most, len(self.holds))

    async def unload(self, name: str) -> None:
        await asyncio.sleep(0)
        self.holds.discard(name)

    def loaded(self, digest: str, seconds: float) -> None:
        assert seconds >= 0

    def evicted(self, digest: str) -> None:
        pass


def made(engine: Recorded, capacity: int) -> Pool:
    return Pool(engine, lambda d: Path("/views") / engine_name(d), capacity, "base", engine)


async def test_requests_for_one_version_share_one_load_and_one_that_leaves_stops_it_for_nobody() -> (
    None
):
    engine = Recorded()
    pool = made(engine, 2)

    async def ask() -> str:
        async with pool.using(DIGESTS[0]) as name:
            return name

    asked = [asyncio.create_task(ask()) for _ in range(5)]
    await asyncio.sleep(0)
    asked[0].cancel()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert answers[1:] == [engine_name(DIGESTS[0])] * 4
    assert len(engine.loads) == 1
    assert [held.users for held in pool.held] == [0]


async def test_the_least_recently_used_leaves_and_never_one_that_is_used_or_pinned() -> None:
    engine = Recorded()
    pool = made(engine, 3)
    await pool.pin(DIGESTS[0])
    async with pool.using(DIGESTS[1]):
        await pool.load(DIGESTS[2])
        await pool.load(DIGESTS[3])
        assert {held.digest for held in pool.held} == {DIGESTS[0], DIGESTS[1], DIGESTS[3]}
    await pool.load(DIGESTS[3])
    await pool.load(DIGESTS[4])
    assert {held.digest for held in pool.held} == {DIGESTS[0], DIGESTS[3], DIGESTS[4]}
    assert engine.holds == {engine_name(held.digest) for held in pool.held}


async def test_when_all_are_in_use_a_newcomer_waits_for_the_first_that_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Recorded()
    pool = made(engine, 1)
    async with pool.using(DIGESTS[0]):
        waiting = asyncio.create_task(pool.load(DIGESTS[1]))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        monkeypatch.setattr(pool_module, "WAIT_SECONDS", 0.01)
        with pytest.raises(Refused, match="All 1 adapters that fit are in use") as refused:
            await pool.load(DIGESTS[2])
        assert refused.value.status == 503
    await waiting
    assert engine.holds == {engine_name(DIGESTS[1])}


async def test_a_refused_load_tells_everyone_who_waits_and_leaves_its_place() -> None:
    engine = Recorded()
    engine.refuses.add(engine_name(DIGESTS[0]))
    pool = made(engine, 1)
    answers = await asyncio.gather(
        pool.load(DIGESTS[0]), pool.load(DIGESTS[0]), return_exceptions=True
    )
    assert all(isinstance(answer, Refused) and answer.status == 502 for answer in answers)
    assert "it is too large" in str(answers[0])
    await pool.load(DIGESTS[1])
    assert [held.digest for held in pool.held] == [DIGESTS[1]]


async def test_what_the_engine_forgot_is_loaded_again_even_while_others_use_it() -> None:
    engine = Recorded()
    pool = made(engine, 1)
    async with pool.using(DIGESTS[0]):
        pool.forget(DIGESTS[0])
        await pool.load(DIGESTS[0])
    assert len(engine.loads) == 2


async def test_an_engine_started_anew_holds_nothing_and_pins_come_back() -> None:
    engine = Recorded()
    pool = made(engine, 2)
    await pool.pin(DIGESTS[0])
    await pool.load(DIGESTS[1])
    engine.holds.clear()
    pool.reset()
    assert [held.digest for held in pool.held] == [DIGESTS[0]]
    await pool.load(DIGESTS[0])
    assert engine.holds == {engine_name(DIGESTS[0])}


async def test_a_version_is_dropped_only_when_its_last_request_is_answered() -> None:
    engine = Recorded()
    pool = made(engine, 2)
    async with pool.using(DIGESTS[0]):
        dropping = asyncio.create_task(pool.drop(DIGESTS[0]))
        await asyncio.sleep(0.01)
        assert engine.holds
        assert not dropping.done()
    await dropping
    assert not engine.holds
    assert pool.held == []


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_comes_and_goes_what_is_given_out_is_held_and_no_more_than_fit(
    seed: int,
) -> None:
    engine = Recorded()
    pool = made(engine, 3)
    random = Random(seed)

    async def ask(digest: str, pauses: int) -> None:
        async with pool.using(digest) as name:
            for _ in range(pauses):
                assert name in engine.holds
                await asyncio.sleep(0)

    def tasks() -> Iterator[asyncio.Task[None]]:
        for _ in range(120):
            digest = random.choice(DIGESTS)
            if random.random() < 0.1:
                yield asyncio.create_task(pool.drop(digest))
            else:
                yield asyncio.create_task(ask(digest, random.randrange(4)))

    running = []
    for task in tasks():
        running.append(task)
        if random.random() < 0.15:
            random.choice(running).cancel()
        if random.random() < 0.5:
            await asyncio.sleep(0)
    for task in running:
        with suppress(asyncio.CancelledError):
            await task
    assert engine.most <= pool.capacity
    assert all(held.users == 0 for held in pool.held)
    assert engine.holds == {engine_name(held.digest) for held in pool.held if held.ready}
