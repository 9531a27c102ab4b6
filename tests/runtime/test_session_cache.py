from __future__ import annotations

import threading
import time

import dask.config
import pytest

from dask_onnx.core.specs import SessionSpec
from dask_onnx.runtime import session_cache
from dask_onnx.runtime.session import Session
from dask_onnx.runtime.session_cache import SessionCache


def made(size: int = 1) -> Session:
    return Session(None, (), (), size)


def key(name: str):
    return name, SessionSpec()


def keep(cache: SessionCache, name: str, weight_bytes: int) -> None:
    cache.get(key(name), lambda: (key(name), lambda: made(weight_bytes)))


def test_two_threads_build_a_session_once():
    cache, built = SessionCache(), []

    def build():
        built.append(1)
        time.sleep(0.05)
        return made()

    request = (key("a"), lambda: (key("a"), build))
    threads = [threading.Thread(target=cache.get, args=request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]
    assert cache.built == 1


def test_a_build_that_failed_is_tried_again():
    cache = SessionCache()

    def fail():
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.get(key("a"), lambda: (key("a"), fail))
    assert cache.get(key("a"), lambda: (key("a"), made)).weight_bytes == 1


def test_the_least_recently_used_session_goes_first():
    cache = SessionCache()
    with dask.config.set({"onnx.session.cache-bytes": 25}):
        for name in "ab":
            keep(cache, name, 10)
        keep(cache, "a", 1)
        keep(cache, "c", 10)
    assert [name for name, _ in cache.sessions] == ["a", "c"]


def test_a_session_larger_than_the_limit_is_kept_while_it_is_the_newest():
    cache = SessionCache()
    with dask.config.set({"onnx.session.cache-bytes": 25}):
        keep(cache, "a", 100)
        assert [name for name, _ in cache.sessions] == ["a"]
        keep(cache, "b", 10)
    assert [name for name, _ in cache.sessions] == ["b"]


def test_sessions_without_weights_have_a_bound_too():
    cache = SessionCache(max_entries=2)
    for name in "abc":
        keep(cache, name, 0)
    assert [name for name, _ in cache.sessions] == ["b", "c"]
    assert len(cache) == 2


def test_equal_stages_share_a_session_within_a_bound(monkeypatch):
    monkeypatch.setattr(session_cache, "_MAX_ALIASES", 3)
    cache = SessionCache()
    for name in "abcde":
        cache.get(key(name), lambda: (key("shared"), made))
    assert cache.built == 1
    assert [name for name, _ in cache.aliases] == ["c", "d", "e"]
    assert cache.drop_oldest() and not cache.aliases
