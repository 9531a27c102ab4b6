"""Plugins that publish what stages do on the ``/metrics`` of the scheduler and of the workers.

Without ``prometheus_client`` (``dask-onnx[prometheus]``) nothing is published, by Dask either.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin, WorkerPlugin

from dask_onnx.cluster.link_bytes import SentBytes
from dask_onnx.cluster.metric_families import Histogram, Series, series_of_digests
from dask_onnx.cluster.page_facts import WORKER_METRIC, sent_over_links
from dask_onnx.cluster.scheduler_plugin import PLUGIN_NAME, StagePlugin
from dask_onnx.cluster.stage_names import ShownStage, StageNames
from dask_onnx.core.dashboard_internals import TASK_STATES, scraped_scheduler, scraped_worker
from dask_onnx.core.dask_internals import digests_of
from dask_onnx.core.errors import StoreError
from dask_onnx.core.process_caches import PROCESS_CACHES
from dask_onnx.core.stage_runs import peak_bytes
from dask_onnx.runtime.session_cache import SESSION_CACHE
from dask_onnx.store.weight_store import Store

METRICS_NAME = "dask_onnx-metrics"
"""Name of both plugins."""
_MOST_LINKS = 400
"""Links up to which each has a series: Prometheus keeps every one for ever."""
_MOST_OPEN = 200_000
"""Tasks whose waiting is measured at a time."""


class MetricsSchedulerPlugin(SchedulerPlugin):
    """Counts attempts at tasks of stages, their seconds and those that they waited."""

    name = METRICS_NAME
    idempotent = True

    def __init__(self) -> None:
        self.scheduler: Any = None
        self.is_on = False
        """True if there is a client for Prometheus."""
        self.ready: dict[Any, float] = {}
        """Time at which all inputs of a task existed, for tasks that have not ended."""
        self.ended: Counter[tuple[str, str, str]] = Counter()
        """Number of attempts by stage, model and outcome."""
        self.seconds: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        """Seconds of tasks by stage and model."""
        self.waits: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)
        """Seconds that tasks waited, likewise."""

    async def start(self, scheduler: Any) -> None:
        """Register what is published on the scheduler's ``/metrics``."""
        self.scheduler = scheduler
        self.is_on = register_collectors()

    def restart(self, scheduler: Any) -> None:
        """Forget tasks that have not ended, as the scheduler does."""
        self.ready.clear()

    @property
    def names(self) -> StageNames:
        """Stages and models of groups of tasks; none before the plugin of stages is there."""
        plugin = self.scheduler.plugins.get(PLUGIN_NAME)
        return plugin.names if isinstance(plugin, StagePlugin) else StageNames()

    def transition(self, key: Any, start: str, finish: str, *args: Any, **facts: Any) -> None:
        """Count the end of an attempt at a task of a stage, and note when it could begin."""
        if not self.is_on:
            return
        if start == "waiting":
            if finish in ("processing", "queued", "no-worker") and len(self.ready) < _MOST_OPEN:
                self.ready[key] = time.time()
        elif start == "processing":
            self._ended(key, finish, self.ready.pop(key, None), facts)
        elif finish in ("released", "forgotten", "erred"):
            self.ready.pop(key, None)

    def _ended(self, key: Any, finish: str, ready: float | None, facts: dict[str, Any]) -> None:
        state = self.scheduler.tasks.get(key)
        stage = None if state is None else self.names.of_group(state.group.name)
        if stage is None:
            return
        outcome = {"memory": "completed", "erred": "erred"}.get(finish, "lost")
        self.ended[*stage, outcome] += 1
        steps = [s for s in facts.get("startstops") or () if s["action"] == "compute"]
        if finish == "memory" and steps:
            self.seconds[stage].add(max(steps[-1]["stop"] - steps[-1]["start"], 0.0))
            if ready is not None:
                self.waits[stage].add(max(steps[-1]["start"] - ready, 0.0))

    def series(self) -> Iterator[Series]:
        """Yield the value of every series but those of histograms."""
        scheduler = self.scheduler
        yield from series_of_digests(self.names.metrics(scheduler))
        for labels, count in self.ended.items():
            yield Series("tasks_ended", labels, count)
        for (stage, state), count in self._task_counts().items():
            yield Series("tasks", (*stage, state), count)
        groups = getattr(scheduler.plugins.get(PLUGIN_NAME), "worker_groups", None)
        if groups is not None:
            yield Series("worker_groups", ("placed",), len(groups.places))
            yield Series("worker_groups", ("waiting",), len(groups.waiting))
        for sender, receiver, moved in sent_over_links(scheduler):
            for form, number in (("memory", moved.plain), ("wire", moved.wire)):
                yield Series("link_bytes", (sender, receiver, form), number)
        links = scheduler.bandwidth_workers
        if len(links) <= _MOST_LINKS:
            # Workers tell what they received, and from whom.
            for (receiver, sender), rate in links.items():
                yield Series("link_bytes_per_second", (sender, receiver), rate)

    def _task_counts(self) -> Counter[tuple[ShownStage, str]]:
        """Return the number of tasks of each stage by state; 0 for those that have none now."""
        names = self.names
        found = Counter({(stage, state): 0 for stage in names.stages for state in TASK_STATES})
        for name, group in self.scheduler.task_groups.items():
            if stage := names.of_group(name):
                for state in TASK_STATES:
                    found[stage, state] += group.states[state]
        return found


class MetricsWorkerPlugin(WorkerPlugin):
    """Publishes what a worker does for stages, and what it keeps."""

    name = METRICS_NAME
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Register what is published on ``/metrics``, and what heartbeats tell the scheduler."""
        register_collectors()
        root, sent = _store_root(), SentBytes(worker)
        worker.metrics[WORKER_METRIC] = lambda _: {**_worker_facts(root), "sent": sent.read()}


def _store_root() -> str:
    """Return the folder of the host's store; empty if it cannot be used."""
    try:
        return str(Store().root)
    except StoreError:
        return ""


def _worker_facts(root: str) -> dict[str, Any]:
    """Return the sessions of a worker and its store, as heartbeats tell them."""
    facts: dict[str, Any] = {"sessions": len(SESSION_CACHE), "store": root}
    with contextlib.suppress(OSError):  # it is made by the first model
        facts["store_free_bytes"] = shutil.disk_usage(root).free
    return facts


def worker_series(worker: Any) -> Iterator[Series]:
    """Yield the value of every series of a worker; it knows stages, but not their models' names."""
    yield from series_of_digests(digests_of(worker).items())
    yield Series("sessions", (), len(SESSION_CACHE))
    for use in PROCESS_CACHES.usage():
        yield Series("cache_entries", (use.name,), use.entries)
    yield Series("peak_memory_bytes", (), peak_bytes())


def register_collectors() -> bool:
    """Register the collectors of this process, and return whether there is a client for them."""
    try:
        import prometheus_client  # noqa: F401 - only whether it is installed
    except ImportError:
        return False
    from dask_onnx.cluster.prometheus_collectors import Published, register

    def of_scheduler() -> Published | None:
        scheduler = scraped_scheduler()
        plugin = None if scheduler is None else scheduler.plugins.get(METRICS_NAME)
        if not isinstance(plugin, MetricsSchedulerPlugin):
            return None
        histograms = {"task_seconds": plugin.seconds, "wait_seconds": plugin.waits}
        return Published(plugin.series(), histograms)

    def of_worker() -> Published | None:
        worker = scraped_worker()
        if worker is None or METRICS_NAME not in worker.plugins:
            return None
        return Published(worker_series(worker), {})

    register(of_scheduler, of_worker)
    return True
