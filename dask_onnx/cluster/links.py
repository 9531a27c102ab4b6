"""How fast values get from one worker of a cluster to another: measured once, from the client."""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from dask_onnx.planning.resources import Link

_HOPS = 8
_BYTES = 16 * 2**20
_TIMES = 2
PRIORITY = 1000
"""Of tasks that measure: they are short, and somebody waits for them."""
TIMEOUT = 10.0
"""Seconds after which a cluster is too busy to be asked."""


_known: weakref.WeakKeyDictionary[Any, Link] = weakref.WeakKeyDictionary()


def link_of(client: Any) -> Link | None:
    """The link of a client's cluster; None where there are no two workers, or no time for it.

    It is measured when it is first asked for, which takes some tenths of a second, and only while
    the cluster has nothing else to do.
    """
    if client is None or client.asynchronous:
        return None
    if client not in _known:
        pair = _pair(workers_of(client))
        if pair is None or is_busy(client):
            return None
        found = _measure(client, *pair)
        if found is None:
            return None
        _known[client] = found
    return _known[client]


def _pair(workers: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
    if len(workers) < 2:
        return None
    first, *others = sorted(workers)
    host = workers[first]["host"]
    return first, next((a for a in others if workers[a]["host"] != host), others[0])


def _measure(client: Any, one: str, other: str) -> Link | None:
    try:
        _chain(client, one, other, 2)  # connections
        hop = min(_chain(client, one, other, _HOPS) / _HOPS for _ in range(_TIMES))
        sending = min(_send(client, one, other) for _ in range(_TIMES))
    except TimeoutError:
        return None
    return Link(hop, _BYTES / max(sending - hop, 1e-6))


def _chain(client: Any, one: str, other: str, hops: int) -> float:
    """Seconds of so many small tasks, each of which needs the one before it."""
    began = time.perf_counter()
    last: Any = None
    kept = []
    for number in range(hops):
        place = one if number % 2 else other
        last = submit(client, place, bool, last)  # a built-in: workers need import nothing
        kept.append(last)
    last.result(timeout=TIMEOUT)
    return time.perf_counter() - began


def _send(client: Any, one: str, other: str) -> float:
    """Seconds from one worker to the other, with the hop."""
    data = submit(client, one, os.urandom, _BYTES)
    submit(client, one, len, data).result(timeout=TIMEOUT)
    began = time.perf_counter()
    submit(client, other, len, data).result(timeout=TIMEOUT)
    return time.perf_counter() - began


def workers_of(client: Any) -> Mapping[str, Mapping[str, Any]]:
    """What the scheduler says of each worker, by address."""
    workers: Mapping[str, Mapping[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    return workers


def is_busy(client: Any) -> bool:
    """Whether what is measured now would say more of what else runs there."""
    return any(client.processing().values())


def submit(client: Any, worker: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """A task on one worker."""
    return client.submit(function, argument, key=new_key(), workers=[worker], priority=PRIORITY)


def new_key() -> str:
    """Of a task that measures."""
    return f"dask_onnx_measure-{uuid.uuid4().hex}"
