"""Caches of this process: each with a bound and a lock, all in one registry.

A worker process keeps sessions, answers of ONNX Runtime and measurements between tasks. Every
module that keeps something registers its cache in `PROCESS_CACHES`, so that a test can clear them
and a user can see how full they are.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")
Result = TypeVar("Result")
P = ParamSpec("P")

_MISSING: Any = object()


class ProcessCache(Protocol):
    """A cache that can be listed and cleared."""

    name: str
    """Plural noun for its entries, unique in the process."""
    max_entries: int
    """Bound on the number of entries."""

    def __len__(self) -> int:
        """Return the number of entries."""

    def clear(self) -> None:
        """Drop all entries."""


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Fill level of one cache."""

    name: str
    """Name of the cache."""
    entries: int
    """Number of entries that it holds."""
    max_entries: int
    """Bound on the number of entries."""


class ProcessCaches:
    """Registry of the caches of a process."""

    def __init__(self) -> None:
        self._caches: dict[str, ProcessCache] = {}
        self._lock = threading.Lock()

    def register(self, cache: ProcessCache) -> None:
        """Add a cache.

        Raises
        ------
        ValueError
            Another cache has the same name.
        """
        with self._lock:
            if cache.name in self._caches:
                raise ValueError(f"there are two caches of {cache.name}")
            self._caches[cache.name] = cache

    def names(self) -> tuple[str, ...]:
        """Return the names of all caches, in alphabetical order."""
        with self._lock:
            return tuple(sorted(self._caches))

    def clear(self, *names: str) -> None:
        """Drop the entries of the named caches, or of all caches without a name.

        Raises
        ------
        KeyError
            There is no cache of that name.
        """
        for cache in self._select(names):
            cache.clear()

    def usage(self) -> tuple[CacheUse, ...]:
        """Return the fill level of every cache, in alphabetical order."""
        return tuple(
            CacheUse(cache.name, len(cache), cache.max_entries)
            for cache in self._select(self.names())
        )

    def _select(self, names: tuple[str, ...]) -> list[ProcessCache]:
        with self._lock:
            return [self._caches[name] for name in names or self._caches]


PROCESS_CACHES = ProcessCaches()
"""Registry of this process."""


class KeyedLocks:
    """Locks by key: one thread at a time works on a key, threads of other keys do not wait."""

    def __init__(self) -> None:
        self._users: dict[Hashable, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def hold(self, key: Hashable) -> Iterator[None]:
        """Hold the lock of a key."""
        with self._lock:
            lock, users = self._users.get(key, (threading.Lock(), 0))
            self._users[key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            # The last user removes the lock; earlier, a waiting thread and a new one would hold
            # two different locks of the same key.
            with self._lock:
                _, users = self._users[key]
                if users == 1:
                    del self._users[key]
                else:
                    self._users[key] = lock, users - 1


class KeptResults(Generic[Key, Value]):
    """Entries of one object; the least recently used one makes room for a new one.

    Safe to use from several threads. Values should be immutable, or have a lock of their own.

    Parameters
    ----------
    max_entries : int
        Bound on the number of entries.
    max_age_seconds : float, optional
        Age after which an entry counts as missing.
    """

    def __init__(self, max_entries: int, *, max_age_seconds: float | None = None) -> None:
        self.max_entries = max_entries
        self.max_age_seconds = max_age_seconds
        self._entries: OrderedDict[Key, tuple[float, Value]] = OrderedDict()
        self._lock = threading.RLock()
        self._making = KeyedLocks()

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process finds its own results.
        return _empty, (self.max_entries, self.max_age_seconds)

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)

    def get(self, key: Key) -> Value | None:
        """Return the value of a key; None if it is missing."""
        return cast("Value | None", self._find(key, None))

    def put(self, key: Key, value: Value) -> None:
        """Set the value of a key."""
        with self._lock:
            self._entries[key] = time.monotonic(), value
            self._entries.move_to_end(key)
            while len(self._entries) > self.max_entries:
                self._entries.popitem(last=False)

    def get_or_make(self, key: Key, make: Callable[[], Value]) -> Value:
        """Return the value of a key, made by `make` if it is missing.

        Threads that ask for the same key at the same time wait for one of them to make it. An
        error of `make` is raised, and nothing is stored.
        """
        found = self._find(key, _MISSING)
        if found is not _MISSING:
            return cast("Value", found)
        with self._making.hold(key):
            found = self._find(key, _MISSING)
            if found is _MISSING:
                found = make()
                self.put(key, found)
        return cast("Value", found)

    def update(self, key: Key, change: Callable[[Value | None], Value]) -> None:
        """Replace the value of a key by what `change` returns for it, in one atomic step."""
        with self._lock:
            self.put(key, change(self.get(key)))

    def items(self) -> list[tuple[Key, Value]]:
        """Return a snapshot of keys and values, least recently used first."""
        with self._lock:
            return [(key, value) for key, (_, value) in self._entries.items()]

    def clear(self) -> None:
        """Drop all entries."""
        with self._lock:
            self._entries.clear()

    def _find(self, key: Key, default: Any) -> Any:
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return default
            made, value = entry
            if self.max_age_seconds is not None and time.monotonic() - made > self.max_age_seconds:
                del self._entries[key]
                return default
            self._entries.move_to_end(key)
            return value


def _empty(max_entries: int, max_age_seconds: float | None) -> KeptResults[Any, Any]:
    return KeptResults(max_entries, max_age_seconds=max_age_seconds)


class BoundedCache(KeptResults[Key, Value]):
    """Entries of one kind in this process, listed in `PROCESS_CACHES`.

    Parameters
    ----------
    name : str
        Plural noun for the entries, unique in the process.
    max_entries, max_age_seconds
        As for `KeptResults`.
    """

    def __init__(
        self, name: str, max_entries: int, *, max_age_seconds: float | None = None
    ) -> None:
        super().__init__(max_entries, max_age_seconds=max_age_seconds)
        self.name = name
        PROCESS_CACHES.register(self)


def cached_in_process(
    name: str, max_entries: int = 1, *, max_age_seconds: float | None = None
) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """Cache the results of a function by its arguments, which must be hashable.

    Parameters
    ----------
    name, max_entries, max_age_seconds
        As for `BoundedCache`. The default bound suits functions without arguments.
    """

    def decorate(function: Callable[P, Result]) -> Callable[P, Result]:
        cache: BoundedCache[Hashable, Result] = BoundedCache(
            name, max_entries, max_age_seconds=max_age_seconds
        )

        @functools.wraps(function)
        def cached(*args: P.args, **kwargs: P.kwargs) -> Result:
            key = (args, *sorted(kwargs.items()))
            return cache.get_or_make(key, lambda: function(*args, **kwargs))

        return cached

    return decorate
