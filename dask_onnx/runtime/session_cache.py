"""Sessions of this process, by stage: built once, dropped when their weights exceed a limit."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from dask_onnx.core import config
from dask_onnx.core.process_caches import PROCESS_CACHES, KeyedLocks
from dask_onnx.core.specs import SessionSpec

_MAX_ALIASES = 100_000
"""Bound on stages that share a session; the configured limit in bytes does not count them."""


class Runnable(Protocol):
    """Anything that runs a stage: an ORT session, or the reference evaluator."""

    inputs: tuple[str, ...]
    """Names of the inputs, in the order of `run`."""
    outputs: tuple[str, ...]
    """Names of the outputs, in the order of `run`."""
    weight_bytes: int
    """Bytes of the stage's weights."""
    lease: Any
    """Lease on the store that keeps the mapped weights from eviction."""

    def run(self, arrays: list[Any]) -> list[Any]:
        """Return the outputs for one array per input."""


SessionKey = tuple[str, SessionSpec]
"""Stage token, and every option that changes what runs."""
Build = Callable[[], Runnable]
"""Function that builds a session."""


@dataclass(slots=True)
class SessionCache:
    """Sessions by key, least recently used first; two threads never build the same one twice.

    Bounded by ``onnx.session.cache-bytes`` of weights, and by `max_entries`; the newest session
    stays in any case.
    """

    name: str = "sessions"
    """Name among the caches of the process."""
    max_entries: int = 10_000
    """Bound on sessions, for those that have no weights to count."""
    sessions: OrderedDict[SessionKey, Runnable] = field(default_factory=OrderedDict)
    """Sessions by key, least recently used first."""
    aliases: OrderedDict[SessionKey, SessionKey] = field(default_factory=OrderedDict)
    """Key of a stage to the key of the session that it shares with equal stages."""
    built: int = 0
    """Sessions built since the process started, for tests and reports."""
    _weight_bytes: int = 0
    """Bytes of weights of all sessions."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _building: KeyedLocks = field(default_factory=KeyedLocks)

    def __len__(self) -> int:
        with self._lock:
            return len(self.sessions)

    def get(self, key: SessionKey, prepare: Callable[[], tuple[SessionKey, Build]]) -> Runnable:
        """Return the session of a stage, built if it is missing.

        Parameters
        ----------
        key : SessionKey
            Key of the stage.
        prepare : function
            Called if the stage is new: returns the key that all equal stages share, and a
            function that builds their session.
        """
        found = self._find(key)
        if found is not None:
            return found
        with self._building.hold(key):
            found = self._find(key)
            if found is not None:
                return found
            shared, build = prepare()
            if shared == key:
                return self._insert(key, key, build())
            with self._building.hold(shared):
                found = self._find(shared)
                return self._insert(key, shared, build() if found is None else found)

    def clear(self) -> None:
        """Drop all sessions."""
        with self._lock:
            self.sessions.clear()
            self.aliases.clear()
            self._weight_bytes = 0

    def drop_oldest(self) -> bool:
        """Drop the least recently used session, and return whether there was one."""
        with self._lock:
            if not self.sessions:
                return False
            self._drop()
            return True

    def _drop(self) -> None:
        dropped, oldest = self.sessions.popitem(last=False)
        self._weight_bytes -= oldest.weight_bytes
        for key in [key for key, shared in self.aliases.items() if shared == dropped]:
            del self.aliases[key]

    def _find(self, key: SessionKey) -> Runnable | None:
        with self._lock:
            shared = self.aliases.get(key, key)
            if shared in self.sessions:
                self.sessions.move_to_end(shared)
                return self.sessions[shared]
            return None

    def _insert(self, key: SessionKey, shared: SessionKey, session: Runnable) -> Runnable:
        limit = int(config.get("session.cache-bytes"))
        with self._lock:
            if shared != key:
                self.aliases[key] = shared
                if len(self.aliases) > _MAX_ALIASES:
                    self.aliases.popitem(last=False)
            if shared not in self.sessions:
                self.built += 1
                self.sessions[shared] = session
                self._weight_bytes += session.weight_bytes
            while len(self.sessions) > 1 and (
                self._weight_bytes > limit or len(self.sessions) > self.max_entries
            ):
                self._drop()
        return session


SESSION_CACHE = SessionCache()
"""Sessions of this process."""
PROCESS_CACHES.register(SESSION_CACHE)
