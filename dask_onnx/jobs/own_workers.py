"""Workers of a cluster that a job has started: what is known of their ends, and their replacement.

A nanny starts a worker again that dies. It gives up where the new one dies while it starts; then
somebody has to start another nanny.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from distributed.core import Status

log = logging.getLogger(__name__)

_LINES = 6
"""Lines about workers that an error repeats."""
_ENDS = "Worker process"
"""Beginning of a nanny's line about the end of a process, which is mere information to Dask."""
_FIRST_WAIT_SECONDS, _LONGEST_WAIT_SECONDS = 2.0, 60.0
"""Time until a nanny is replaced, doubled for each one until a worker runs again."""
_GONE = (Status.closed, Status.closing, Status.failed, Status.closing_gracefully)


class WorkerLog(logging.Handler):
    """The last lines that the nannies of this process have logged about workers that ended."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: deque[str] = deque(maxlen=_LINES)

    @property
    def lines(self) -> list[str]:
        """The lines, the oldest first."""
        return list(self._lines)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning, an error, or the end of a process."""
        text = record.getMessage()
        if record.levelno < logging.WARNING and not text.startswith(_ENDS):
            return
        error = record.exc_info[1] if record.exc_info else None
        if error is not None:
            text = f"{text}: {type(error).__name__}: {error}".lstrip(": ")
        self._lines.append(" ".join(text.split()))

    @contextlib.contextmanager
    def attached(self) -> Iterator[WorkerLog]:
        """Receive the lines as long as the body runs."""
        logger = logging.getLogger("distributed.nanny")
        logger.addHandler(self)
        try:
            yield self
        finally:
            logger.removeHandler(self)


@dataclass(slots=True)
class WorkerReplacement:
    """Thread that starts a nanny for each one of a local cluster that has given up."""

    cluster: Any
    """LocalCluster."""
    wanted: int
    """Workers that the cluster should have."""
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Replace nannies as long as the body runs."""
        thread = threading.Thread(target=self._run, name="dask-onnx-workers", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        wait = _FIRST_WAIT_SECONDS
        while not self._stop.wait(wait):
            nannies = list(self.cluster.workers.values())
            missing = self.wanted - sum(each.status not in _GONE for each in nannies)
            if missing <= 0:
                wait = _FIRST_WAIT_SECONDS
                continue
            specs = len(self.cluster.worker_spec)
            more = max(missing - (specs - len(nannies)), 0)  # others are about to start
            if more:
                log.info("%d of %d workers have given up, and are replaced", more, self.wanted)
            # Those that have given up still count for the cluster.
            self.cluster.scale(specs + more)
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)
