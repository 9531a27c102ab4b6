"""Progress of a job: what it reports to its caller while blocks are computed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from distributed import Client, Future, KilledWorker

from dask_onnx.cluster.worker_deaths import killed_worker_error
from dask_onnx.core.errors import Suggestion


class JobProgress:
    """Receiver of a job's reports. This one passes warnings on and ignores everything else."""

    is_verbose = False
    """True if the processes of a local cluster log warnings."""

    def connected(self, client: Client) -> None:
        """Note the cluster that the job runs on."""

    def warn(self, message: str) -> None:
        """Tell the caller about an assumption that changes results or speed."""
        warnings.warn(message, UserWarning, stacklevel=3)

    def note(self, message: str) -> None:
        """Note what the job does where the caller has left it open."""

    def advanced(self, done: int, total: int, unit: str) -> None:
        """Note that `done` of `total` units ("rows", "parts" or "tiles") are complete."""

    def produced(self, count: int, noun: str) -> None:
        """Note how much this run's results hold so far, such as ``new_tokens``."""

    def stopping(self) -> None:
        """Note that the job failed or was interrupted, before its blocks are cancelled."""


def block_result(future: Future, suggestions: Sequence[Suggestion] = ()) -> Any:
    """Return the result of a task.

    Parameters
    ----------
    future : Future
    suggestions : sequence of Suggestion
        Options that reduce the memory of a task.

    Raises
    ------
    StageError
        Workers died while they ran it; besides, whatever the task raised.
    """
    try:
        return future.result()
    except KilledWorker as error:
        raise killed_worker_error(error, suggestions) from None
