"""Questions to all workers, some of which may be lost while they are asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from distributed.comm import CommClosedError

from dask_onnx.cluster.links import workers_of

_TRIES = 4
_PAUSE_SECONDS = 0.5
"""Time between two tries, in which the scheduler can notice that a worker is lost."""


def ask_workers(
    client: Any,
    function: Callable[..., Any],
    *arguments: Any,
    workers: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the answers of the workers that there are.

    A worker that is lost meanwhile is left out: its tasks run elsewhere, and another one in its
    place is asked with the next request.

    Parameters
    ----------
    client : distributed.Client
        Synchronous client.
    function : callable
        Runs in each worker's process.
    *arguments
        Its arguments.
    workers : sequence of str, optional
        Addresses of the workers to ask; all of them by default.

    Returns
    -------
    dict of str to object
        Address to what the function returned, or to the exception that it raised there. A worker
        that the scheduler still has, and that cannot be reached, has that exception.
    """
    answers: dict[str, Any] = client.run(function, *arguments, workers=workers, on_error="return")
    for _ in range(_TRIES - 1):
        broken = [worker for worker, answer in answers.items() if _is_unreached(answer)]
        if not broken:
            break
        time.sleep(_PAUSE_SECONDS)
        known = workers_of(client)
        for worker in broken:
            del answers[worker]
        again = [worker for worker in broken if worker in known]
        if again:
            answers |= client.run(function, *arguments, workers=again, on_error="return")
    return answers


def _is_unreached(answer: Any) -> bool:
    """Return whether Dask gave an error of the connection in place of an answer."""
    # Dask raises a bare OSError if a worker takes no connection; one of the function has a number.
    is_bare = type(answer) is OSError and answer.errno is None
    return is_bare or isinstance(answer, CommClosedError)
