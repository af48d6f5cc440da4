"""Keys in their order: the next one is handed on once the one before has done what it does.

Textual gives a key to what has the focus when it arrives. Of several at once (a slow connection, a paste without brackets)
the first may move the focus, and the rest would run as commands of what had it before.
"""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any

from textual import events
from textual.app import App
from textual.message import Message
from textual.widget import Widget

_PATIENCE_SECONDS = 3.0
"""A key that takes longer holds the others up no more."""
_LOOK_SECONDS = 0.1
"""How often it is looked whether a key is lost that others wait for."""


class InOrder(App[None]):
    """An application that hands on one key at a time."""

    class Followed(Message, bubble=True):
        """Goes the key's way through the same queues right behind it, so it arrives when the key is dealt with."""

        def __init__(self, taker: Widget) -> None:
            super().__init__()
            self.taker, self.since = taker, monotonic()

        @property
        def lost(self) -> bool:
            """Whether it won't arrive any more: who took the key is gone, or takes too long."""
            gone = not self.taker.is_attached or not self.taker.is_running
            return gone or monotonic() - self.since >= _PATIENCE_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._typed: deque[events.Event] = deque()
        self._follower: InOrder.Followed | None = None
        self._looking = False

    async def on_event(self, event: events.Event) -> None:
        if not isinstance(event, events.Key | events.Paste) or event.is_forwarded:
            await super().on_event(event)
            return
        self._typed.append(event)
        await self._hand_on()
        if self._typed and not self._looking:
            self._looking = True
            self.set_timer(_LOOK_SECONDS, self._look_again)

    async def _hand_on(self) -> None:
        """The next key to what has the focus now, unless one is still on its way."""
        if not self._typed or (self._follower is not None and not self._follower.lost):
            return
        taker = self.focused or self.screen
        self._follower = self.Followed(taker)
        await super().on_event(self._typed.popleft())
        if not taker.post_message(self._follower):  # the key has closed it
            self._follower = None
            self.call_later(self._hand_on)

    async def _look_again(self) -> None:
        await self._hand_on()
        self._looking = bool(self._typed)
        if self._looking:
            self.set_timer(_LOOK_SECONDS, self._look_again)

    def on_in_order_followed(self, event: Followed) -> None:
        if event is self._follower:
            self._follower = None
            self.call_later(self._hand_on)  # behind a focus that the key has just asked for
