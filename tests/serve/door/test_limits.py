"""Places and turns: never more than there are, nobody forgotten, and no tenant before its turn."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.serve.door.keys import ANONYMOUS, Tenant
from adapterhub.serve.door.limits import Limits
from adapterhub.serve.door.refusal import Refused
from adapterhub.serve.door.settings import DoorSettings

A, B, C = (Tenant(name, ("*",)) for name in "abc")


def limits(**fields: float) -> Limits:
    return Limits(DoorSettings(**{"share": 1.0, **fields}))  # type: ignore[arg-type]


class Crowd:
    """Requests that take their places until they are let go; `order` is who got one."""

    def __init__(self, of: Limits) -> None:
        self.limits = of
        self.order: list[str] = []
        self.most = 0
        self._let_go: dict[asyncio.Task[None], asyncio.Event] = {}

    async def send(self, tenant: Tenant, places: int = 1) -> asyncio.Task[None]:
        leave = asyncio.Event()

        async def stay() -> None:
            async with self.limits.place(tenant, places):
                self.order.append(tenant.name)
                self.most = max(self.most, self.limits.running)
                await leave.wait()

        task = asyncio.create_task(stay())
        self._let_go[task] = leave
        await asyncio.sleep(0)
        return task

    async def let_go(self, task: asyncio.Task[None]) -> None:
        self._let_go[task].set()
        for _ in range(4):
            await asyncio.sleep(0)

    async def empty(self) -> None:
        """Everybody leaves as soon as they are served."""
        for leave in self._let_go.values():
            leave.set()
        await asyncio.gather(*self._let_go, return_exceptions=True)


async def test_tenants_take_turns_whatever_the_length_of_their_queues() -> None:
    crowd = Crowd(limits(concurrent=1))
    for tenant in (A, A, A, A, B, B, C):
        await crowd.send(tenant)
    await crowd.empty()
    assert "".join(crowd.order) == "abacbaa"  # the first holds the place, so its next turn goes by


async def test_a_share_is_all_one_key_may_hold_and_the_rest_of_it_waits() -> None:
    crowd = Crowd(limits(concurrent=4, share=0.5))
    for _ in range(5):
        await crowd.send(A)
    await crowd.send(B)
    assert crowd.order == ["a", "a", "b"]
    for _ in range(4):
        await crowd.send(ANONYMOUS)  # without keys nobody is kept from anything
    assert crowd.limits.running == 4
    await crowd.empty()
    assert len(crowd.order) == 10


async def test_a_big_request_is_not_starved_by_small_ones() -> None:
    crowd = Crowd(limits(concurrent=4))
    small = [await crowd.send(A) for _ in range(4)]
    await crowd.send(B, places=3)
    for task in small:
        await crowd.send(A)  # one comes for each that goes
        await crowd.let_go(task)
    assert crowd.order.index("b") == 4
    await crowd.empty()


async def test_more_than_may_ever_be_held_is_refused_and_more_than_now_too() -> None:
    crowd = Crowd(limits(concurrent=4))
    small = Tenant("small", ("*",), concurrent=2)
    with pytest.raises(Refused) as never:
        async with crowd.limits.place(small, 3):
            pass
    assert never.value.status == 400
    await crowd.send(small, places=2)
    with pytest.raises(Refused) as now:
        async with crowd.limits.place(small, 1):
            pass
    assert (now.value.status, now.value.headers["Retry-After"]) == (429, "1")
    await crowd.empty()
    assert crowd.limits.running == 0


async def test_who_waits_in_vain_is_told() -> None:
    crowd = Crowd(limits(concurrent=1, waiting_seconds=0.01))
    await crowd.send(A)
    with pytest.raises(Refused, match="no place became free") as refused:
        async with crowd.limits.place(B, 1):
            pass
    assert refused.value.status == 503
    assert crowd.limits.waiting == 0
    await crowd.empty()


def test_a_bucket_fills_with_time_and_not_beyond_its_brim() -> None:
    now = 0.0
    of = Limits(DoorSettings(), lambda: now)
    tenant = Tenant("slow", ("*",), rate=0.5, burst=3)
    told: set[tuple[int, str]] = set()

    def passes() -> int:
        for number in range(10):
            try:
                of.count(tenant)
            except Refused as refused:
                told.add((refused.status, refused.headers["Retry-After"]))
                return number
        raise AssertionError("no limit")

    assert passes() == 3
    now += 2.0
    assert passes() == 1
    now += 3600
    assert passes() == 3
    for _ in range(50):  # what is refused costs nothing
        passes()
    now += 2.0
    assert passes() == 1
    assert told == {(429, "2")}


steps = st.lists(
    st.tuples(
        st.sampled_from((A, B, C)), st.integers(1, 3), st.sampled_from(("send", "go", "cancel"))
    ),
    max_size=25,
)


@given(steps, st.integers(3, 5), st.sampled_from((0.6, 1.0)))
@settings(max_examples=60, deadline=None)
def test_whatever_comes_goes_and_gives_up_no_place_is_lost_or_given_twice(
    happening: list[tuple[Tenant, int, str]], places: int, share: float
) -> None:
    async def play() -> None:
        crowd = Crowd(limits(concurrent=places, share=share))
        tasks: list[asyncio.Task[None]] = []
        for tenant, size, what in happening:
            if what == "send" or not tasks:
                tasks.append(await crowd.send(tenant, min(size, max(1, int(places * share)))))
            elif what == "go":
                await crowd.let_go(tasks[size % len(tasks)])
            else:
                tasks[size % len(tasks)].cancel()
        await asyncio.sleep(0)
        await crowd.empty()
        assert crowd.most <= places
        assert (crowd.limits.running, crowd.limits.waiting) == (0, 0)
        served = sum(not task.cancelled() for task in tasks)
        assert len(crowd.order) >= served

    asyncio.run(play())
