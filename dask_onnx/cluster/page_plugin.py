"""Scheduler plugin that adds the page ``/onnx`` to Dask's dashboard, where there is one."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from dask_onnx.cluster.page_facts import PAGE_NAME
from dask_onnx.core.dashboard_internals import PagesError, add_pages
from dask_onnx.core.stream_records import STREAMS_TOPIC
from dask_onnx.core.structured_logs import log_event

_MOST_STREAMS = 200
"""Streams of which there was news last that are kept."""
_MOST_GONE = 1000
"""Workers that left, of which the newest are kept."""

log = logging.getLogger(__name__)


class PagePlugin(SchedulerPlugin):
    """Adds pages when it is registered. Without Bokeh or a dashboard, it does nothing."""

    name = PAGE_NAME
    idempotent = True

    def __init__(self) -> None:
        self.is_shown = False
        """True if the page was added."""
        self.gone: deque[tuple[float, str]] = deque(maxlen=_MOST_GONE)
        """Time at which each worker left, and its address."""
        self.streams: dict[tuple[str, float], dict[str, Any]] = {}
        """Last records of the clients' streams, by name and begin; the oldest news first."""

    async def start(self, scheduler: Any) -> None:
        """Add the pages to the scheduler's dashboard."""
        try:
            from dask_onnx.cluster.onnx_page import pages
        except ImportError:  # no Bokeh
            return
        try:
            self.is_shown = add_pages(scheduler, "onnx", pages())
        except PagesError as error:
            # Predictions do not depend on a page.
            log_event(log, logging.WARNING, "no page /onnx on the dashboard", reason=str(error))

    def log_event(self, topic: str, msg: Any) -> None:
        """Keep what a client tells of its streams, and when."""
        if topic != STREAMS_TOPIC:
            return
        for told in msg:
            key = told["stream"], told["started"]
            self.streams.pop(key, None)
            self.streams[key] = {**told, "told": time.time()}
        while len(self.streams) > _MOST_STREAMS:
            del self.streams[next(iter(self.streams))]

    def remove_worker(self, scheduler: Any, worker: str, **_: Any) -> None:
        """Note that a worker has left."""
        self.gone.append((time.time(), worker))
