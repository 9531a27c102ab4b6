from __future__ import annotations

import importlib
import pkgutil
import threading
import time
from functools import _lru_cache_wrapper

import pytest

import dask_onnx.runtime
import dask_onnx.store
from dask_onnx.core import process_caches
from dask_onnx.core.process_caches import (
    PROCESS_CACHES,
    BoundedCache,
    CacheUse,
    KeyedLocks,
    ProcessCaches,
    cached_in_process,
)


def modules_of(package):
    for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        yield importlib.import_module(info.name)


# Imported here, since the fixture below replaces the registry that caches enter at import.
MODULES = [
    module for package in (dask_onnx.runtime, dask_onnx.store) for module in modules_of(package)
]


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    """A registry that holds only the caches of one test."""
    registry = ProcessCaches()
    monkeypatch.setattr(process_caches, "PROCESS_CACHES", registry)
    return registry


def run_threads(count, work):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_the_least_recently_used_entry_is_dropped():
    cache = BoundedCache("numbers", 2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert cache.items() == [("a", 1), ("c", 3)]
    assert cache.get("b") is None


def test_an_old_entry_counts_as_missing(monkeypatch):
    clock = iter([0.0, 9.0, 11.0])
    monkeypatch.setattr(process_caches.time, "monotonic", lambda: next(clock))
    cache = BoundedCache("ages", 2, max_age_seconds=10)
    cache.put("a", 1)
    assert cache.get("a") == 1
    assert cache.get("a") is None and len(cache) == 0


def test_threads_make_an_entry_once():
    cache, made = BoundedCache("slow values", 4), []

    def make():
        made.append(1)
        time.sleep(0.02)

    run_threads(8, lambda: cache.get_or_make("a", make))
    assert made == [1]
    assert len(cache) == 1  # None is a value too


def test_an_entry_that_failed_is_made_again():
    cache = BoundedCache("failing values", 4)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_make("a", lambda: 1 / 0)
    assert cache.get_or_make("a", lambda: 3) == 3


def test_updates_of_several_threads_are_all_kept():
    cache = BoundedCache("counts", 4)

    def count():
        for _ in range(500):
            cache.update("a", lambda old: (old or 0) + 1)

    run_threads(4, count)
    assert cache.get("a") == 2000


def test_a_lock_of_a_key_is_removed_after_its_last_user():
    locks, inside, most = KeyedLocks(), [], []

    def work():
        with locks.hold("a"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.002)
            inside.pop()

    run_threads(6, work)
    assert max(most) == 1
    assert locks._users == {}


def test_a_decorated_function_runs_once_per_argument():
    calls = []

    @cached_in_process("squares", 2)
    def square(x):
        calls.append(x)
        return x * x

    assert [square(2), square(2), square(3)] == [4, 4, 9]
    assert calls == [2, 3]


def test_the_registry_lists_and_clears_caches(registry):
    first, second = BoundedCache("first", 3), BoundedCache("second", 5)
    first.put("a", 1)
    second.put("a", 1)
    assert registry.usage() == (CacheUse("first", 1, 3), CacheUse("second", 1, 5))
    registry.clear("first")
    assert (len(first), len(second)) == (0, 1)
    registry.clear()
    assert len(second) == 0
    with pytest.raises(KeyError):
        registry.clear("third")
    with pytest.raises(ValueError, match="two caches"):
        BoundedCache("first", 1)


def test_modules_keep_state_in_registered_caches_only():
    """Neither `functools.cache` nor an empty container at module level escapes the registry."""
    found = [
        f"{module.__name__}.{name}"
        for module in MODULES
        for name, value in vars(module).items()
        if (isinstance(value, _lru_cache_wrapper) and value.__module__ == module.__name__)
        or (type(value).__name__ in ("OrderedDict", "defaultdict", "WeakKeyDictionary", "deque"))
    ]
    assert found == []


def test_every_cache_has_a_bound():
    assert {"sessions", "stage extractors", "kernel probe answers"} <= set(PROCESS_CACHES.names())
    assert all(use.max_entries > 0 for use in PROCESS_CACHES.usage())
