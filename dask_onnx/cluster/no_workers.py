"""Requests whose cluster has lost all workers: they wait for a while, and end with an error."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dask_onnx.core import config
from dask_onnx.core.dask_internals import fail_waiting
from dask_onnx.core.errors import ClusterError
from dask_onnx.core.stage_tasks import Key

if TYPE_CHECKING:
    from distributed import Scheduler

log = logging.getLogger(__name__)

OPTION = "onnx.no-workers-timeout"


def no_workers_seconds() -> float | None:
    """Return the configured seconds that tasks wait without workers; None for ever.

    Raises
    ------
    InputError
        The value is no time above 0.
    """
    return config.seconds("no-workers-timeout")


@dataclass(slots=True)
class NoWorkers:
    """Watch of a scheduler for the loss of all of its workers.

    Only tasks that were there when the last worker was lost fail: a cluster may have none yet when
    a graph arrives, and get some hours later.
    """

    seconds: float | None
    """Time that tasks wait; None for ever."""
    lost_at: float = 0.0
    """Time of the latest loss, in seconds of `time.monotonic`."""

    def removed(self, scheduler: Scheduler, keys: Iterable[Key]) -> None:
        """Note that a worker was removed; called in the scheduler's event loop.

        Parameters
        ----------
        scheduler : Scheduler
        keys : iterable of key
            Tasks of our graphs.
        """
        if scheduler.workers:
            return
        waiting = [state for key in keys if (state := _unfinished(scheduler, key)) is not None]
        if not waiting:
            return
        self.lost_at = lost_at = time.monotonic()
        if self.seconds is None:
            _tell(scheduler, f"all workers of {scheduler.address} were lost; waiting for others")
            return
        _tell(
            scheduler,
            f"all workers of {scheduler.address} were lost; {len(waiting)} tasks wait up to "
            f"{self.seconds:g} s for others ({OPTION})",
        )
        loop = asyncio.get_running_loop()
        loop.call_later(self.seconds, self._end, scheduler, waiting, lost_at)

    def _end(self, scheduler: Scheduler, waiting: list[Any], lost_at: float) -> None:
        """Let tasks fail that have waited all the time."""
        if scheduler.workers or lost_at != self.lost_at:
            return
        error = no_workers_error(scheduler.address, self.seconds or 0.0)
        stimulus_id = f"dask-onnx-no-workers-{time.time()}"
        count = fail_waiting(scheduler, waiting, error, stimulus_id)
        log.warning("%s tasks of %s failed: %s", count, scheduler.address, error.cause)


def no_workers_error(address: str, seconds: float) -> ClusterError:
    """Return the error about a request whose cluster has no workers any more.

    Parameters
    ----------
    address : str
        Address of the scheduler.
    seconds : float
        Time that it has waited.
    """
    return ClusterError(
        f"all workers of the scheduler at {address} were lost, and none came back within "
        f"{seconds:g} s",
        "the logs of the workers tell why; start workers, and go on: what a checkpoint= or an "
        f"output that can be resumed has is kept. To wait longer, set {OPTION}",
        option=OPTION,
        numbers={"waited_seconds": seconds, "workers": 0},
    )


def _unfinished(scheduler: Scheduler, key: Key) -> Any:
    state = scheduler.tasks.get(key)
    return state if state is not None and state.state not in ("memory", "erred") else None


def _tell(scheduler: Scheduler, message: str) -> None:
    """Log a message here, and warn the clients."""
    log.warning(message)
    scheduler.log_event(
        "warn", {"message": pickle.dumps(message), "category": pickle.dumps(RuntimeWarning)}
    )
