"""How much one tenant may ask for, and who is next when all places are taken.

A flood can't keep others waiting, for three reasons: a tenant's requests above its rate or its own concurrency are
refused at once; what it holds is at most a share of all places, so some stay free for others; and where requests
wait, tenants take turns, whatever the length of their queues.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from adapterhub.serve.door.keys import Tenant
from adapterhub.serve.door.refusal import Refused, busy
from adapterhub.serve.door.settings import DoorSettings


@dataclass(eq=False)
class _Waiting:
    """A request in the queue: how many places it needs, and what becomes true when it has them."""

    places: int
    turn: asyncio.Future[None]


@dataclass(eq=False)
class _Account:
    """What a tenant has used. `tokens` are requests it may start now; None before the first."""

    tokens: float | None = None
    refilled: float = 0.0
    running: int = 0
    most: int = 0
    queue: deque[_Waiting] = field(default_factory=deque)

    @property
    def asked(self) -> int:
        """Places held and waited for."""
        return self.running + sum(waiting.places for waiting in self.queue)


class Limits:
    """The places of one server. `clock` gives monotonic seconds. All methods belong to one event loop."""

    def __init__(self, settings: DoorSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._turns: deque[_Account] = (
            deque()
        )  # tenants with requests that wait, the next one first
        self.running = 0

    @property
    def waiting(self) -> int:
        """Requests that wait for a place."""
        return sum(len(account.queue) for account in self._turns)

    def count(self, tenant: Tenant) -> None:
        """Takes one request from the tenant's token bucket. Refused 429 where it is empty."""
        if tenant.rate is None:
            return
        account, now = self._account(tenant), self._clock()
        if account.tokens is None:
            account.tokens = float(tenant.burst)
        else:
            earned = (now - account.refilled) * tenant.rate
            account.tokens = min(account.tokens + earned, float(tenant.burst))
        account.refilled = now
        if account.tokens < 1:
            raise _too_many(
                f"This key may send {tenant.rate * 60:g} requests a minute.",
                (1 - account.tokens) / tenant.rate,
            )
        account.tokens -= 1

    @asynccontextmanager
    async def place(self, tenant: Tenant, places: int) -> AsyncIterator[None]:
        """As many places as the request has answers, held while the block runs.

        Raises:
            Refused: more than the tenant may ever hold (400), more than it may hold now (429), or none became free
                in time (503).
        """
        account = self._account(tenant)
        account.most = self._most(tenant)
        if places > account.most:
            raise Refused(
                400,
                f"This request asks for {places} answers at once; {account.most} are allowed.",
                code="too_many_answers",
                param="n",
            )
        if tenant.concurrent is not None and account.asked + places > tenant.concurrent:
            raise _too_many(f"This key may have {tenant.concurrent} answers written at once.", 1)
        if len(account.queue) >= self._settings.waiting:
            raise _too_many(f"{len(account.queue)} requests of this key are waiting already.", 1)
        await self._turn(account, places)
        try:
            yield
        finally:
            self._release(account, places)

    def _account(self, tenant: Tenant) -> _Account:
        return self._accounts.setdefault(tenant.name, _Account())

    def _most(self, tenant: Tenant) -> int:
        """Places that the tenant may hold."""
        everything = self._settings.concurrent
        if not tenant.keyed:
            return everything
        share = max(1, int(everything * self._settings.share))
        return share if tenant.concurrent is None else min(share, tenant.concurrent)

    async def _turn(self, account: _Account, places: int) -> None:
        """Returns when the places are this request's."""
        waiting = _Waiting(places, asyncio.get_running_loop().create_future())
        if account not in self._turns:
            self._turns.append(account)
        account.queue.append(waiting)
        self._hand_out()
        if waiting.turn.done():
            return
        try:
            async with asyncio.timeout(self._settings.waiting_seconds):
                await waiting.turn
        except BaseException as error:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._release(account, places)  # it got its turn in the moment it gave up
            else:
                with suppress(ValueError):
                    account.queue.remove(waiting)
                self._hand_out()  # what stood behind it may fit where it didn't
            if isinstance(error, TimeoutError):
                seconds = self._settings.waiting_seconds
                raise busy(
                    f"The server is full, and no place became free in {seconds:g} seconds.",
                    code="overloaded",
                ) from None
            raise

    def _release(self, account: _Account, places: int) -> None:
        self.running -= places
        account.running -= places
        self._hand_out()

    def _hand_out(self) -> None:
        """Gives free places to those who wait, one request a tenant, in turns.

        A tenant at its own limit is passed over. One whose request is too big for what is free is waited for, so that
        small requests of others can't starve it.
        """
        passed_over = 0
        while passed_over < len(self._turns):
            account = self._turns[0]
            if not account.queue:
                self._turns.popleft()
                continue
            first = account.queue[0]
            if first.turn.cancelled():  # its client is gone; it hasn't had the time to leave
                account.queue.popleft()
                continue
            if account.running + first.places > account.most:
                self._turns.rotate(-1)
                passed_over += 1
                continue
            if self.running + first.places > self._settings.concurrent:
                return
            account.queue.popleft()
            account.running += first.places
            self.running += first.places
            first.turn.set_result(None)
            passed_over = 0
            if account.queue:
                self._turns.rotate(-1)
            else:
                self._turns.popleft()


def _too_many(message: str, seconds: float) -> Refused:
    return Refused(
        429,
        message,
        kind="rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(max(1, math.ceil(seconds)))},
    )
