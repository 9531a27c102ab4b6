"""Links between the workers of a cluster: measured once, from the client, and remembered.

Measuring is a verb: `known_link` sends nothing, `measure_link` runs tasks on two workers.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.planning.resources import Link

_HOPS = 8
"""Tasks in a chain that alternates between the two workers."""
_BYTES = 16 * 2**20
"""Bytes of the value that is sent: enough for the hop to be a small part of its time."""
_REPEATS = 2
"""Times that each measurement is repeated; the fastest counts."""
PRIORITY = 1000
"""Priority of tasks that measure: they are short, and a caller waits for them."""
TIMEOUT = 10.0
"""Seconds without an answer after which a cluster counts as too busy to be measured."""

_known: BoundedCache[str, Link] = BoundedCache("links of clusters", 64)
"""Measured links, by the client's id."""
_measuring = threading.Lock()


def known_link(client: Any) -> Link | None:
    """Return the link of a client's cluster if it has been measured; send and measure nothing."""
    return None if client is None else _known.get(client.id)


def measure_link(client: Any) -> Link | None:
    """Measure the link between two workers of a client's cluster, and remember it.

    It takes some tenths of a second, and is done only while the cluster has nothing else to do.

    Parameters
    ----------
    client : distributed.Client or None
        Client of the cluster.

    Returns
    -------
    Link or None
        None if there are fewer than two workers, if the cluster is busy or does not answer, or if
        `client` is None or asynchronous.
    """
    if client is None or client.asynchronous:
        return None
    with _measuring:
        pair = _farthest_pair(workers_of(client))
        if pair is None or is_busy(client):
            return None
        found = _measure(client, *pair)
        if found is not None:
            _known.put(client.id, found)
        return found


def _farthest_pair(workers: Mapping[str, Mapping[str, Any]]) -> tuple[str, str] | None:
    """Return the addresses of two workers, on different hosts where there are several."""
    if len(workers) < 2:
        return None
    first, *others = sorted(workers)
    host = workers[first]["host"]
    return first, next((a for a in others if workers[a]["host"] != host), others[0])


def _measure(client: Any, one: str, other: str) -> Link | None:
    try:
        _chain(client, one, other, 2)  # opens the connections
        hop = min(_chain(client, one, other, _HOPS) / _HOPS for _ in range(_REPEATS))
        sending = min(_send(client, one, other) for _ in range(_REPEATS))
    except TimeoutError:
        return None
    return Link(hop, _BYTES / max(sending - hop, 1e-6))


def _chain(client: Any, one: str, other: str, hops: int) -> float:
    """Return the seconds of a chain of small tasks that alternates between two workers."""
    began = time.perf_counter()
    last: Any = None
    kept = []
    for number in range(hops):
        place = one if number % 2 else other
        last = submit(client, place, bool, last)  # a built-in: workers need to import nothing
        kept.append(last)
    last.result(timeout=TIMEOUT)
    return time.perf_counter() - began


def _send(client: Any, one: str, other: str) -> float:
    """Return the seconds that a large value takes from one worker to another, hop included."""
    data = submit(client, one, os.urandom, _BYTES)
    submit(client, one, len, data).result(timeout=TIMEOUT)
    began = time.perf_counter()
    submit(client, other, len, data).result(timeout=TIMEOUT)
    return time.perf_counter() - began


def workers_of(client: Any) -> Mapping[str, Mapping[str, Any]]:
    """Return what the scheduler knows of each worker, by address; no worker is asked."""
    workers: Mapping[str, Mapping[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    return workers


def is_busy(client: Any) -> bool:
    """Return whether tasks run on the cluster, which would distort a measurement."""
    return any(client.processing().values())


def submit(client: Any, worker: str, function: Callable[[Any], Any], argument: Any) -> Any:
    """Submit a task of a measurement to one worker, and return its future."""
    return client.submit(function, argument, key=new_key(), workers=[worker], priority=PRIORITY)


def new_key() -> str:
    """Return a unique key for a task of a measurement."""
    return f"dask_onnx_measure-{uuid.uuid4().hex}"
