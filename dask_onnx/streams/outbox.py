"""Results on their way to the consumer: an outbox that threads and event loops can wait for."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any


class Outbox:
    """Results in the order in which they are handed over, and the end of the stream."""

    def __init__(self) -> None:
        self._items: deque[tuple[int, Any]] = deque()
        self._changed = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
        self._has_ended = False
        self._error: BaseException | None = None

    def put(self, index: int, outcome: Any) -> None:
        """Add the outcome of a frame; dropped if the stream has ended."""
        with self._changed:
            if not self._has_ended:
                self._items.append((index, outcome))
                self._wake()

    def end(self, error: BaseException | None = None, *, clears: bool = False) -> None:
        """End the stream, after what is in the outbox; only the first call counts.

        Parameters
        ----------
        error : BaseException, optional
            Raised by the consumer's next call after the last outcome.
        clears : bool
            True to drop the outcomes that are still there.
        """
        with self._changed:
            if not self._has_ended:
                self._has_ended, self._error = True, error
            if clears:
                self._items.clear()
            self._wake()

    @property
    def has_ended(self) -> bool:
        """True once the stream has ended, though outcomes may be left."""
        return self._has_ended

    def take(self, timeout: float | None = None) -> tuple[int, Any] | None:
        """Wait for the next outcome, and return it with its index; None at the end of the stream.

        Parameters
        ----------
        timeout : float, optional
            Seconds after which a TimeoutError is raised.
        """
        with self._changed:
            if not self._changed.wait_for(self.is_ready, timeout):
                raise TimeoutError
            return self._pop()

    def take_now(self) -> tuple[int, Any] | None:
        """Return the next outcome without waiting; raise a TimeoutError if there is none yet."""
        with self._changed:
            if not self.is_ready():
                raise TimeoutError
            return self._pop()

    async def take_async(self) -> tuple[int, Any] | None:
        """Do as `take` in an event loop, without blocking it."""
        waiter = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._waiters.append(waiter)
        try:
            while True:
                with self._changed:
                    if self.is_ready():
                        return self._pop()
                    waiter[1].clear()
                await waiter[1].wait()
        finally:
            with self._changed:
                self._waiters.remove(waiter)

    def is_ready(self) -> bool:
        """Return whether an outcome is there, or the stream has ended."""
        return bool(self._items) or self._has_ended

    def _pop(self) -> tuple[int, Any] | None:
        if self._items:
            return self._items.popleft()
        error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def _wake(self) -> None:
        self._changed.notify_all()
        for loop, event in self._waiters:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)
