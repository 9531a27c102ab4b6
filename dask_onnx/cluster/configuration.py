"""Preparation of a cluster: plugins, registered once, and measurements on request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from distributed import Client

from dask_onnx.cluster.client_observers import tell_observers
from dask_onnx.cluster.cluster_packages import check_packages
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.links import measure_link, workers_of
from dask_onnx.cluster.no_workers import no_workers_seconds
from dask_onnx.cluster.overhead import measure_overhead
from dask_onnx.cluster.page_plugin import PagePlugin
from dask_onnx.cluster.placement import (
    CompressionPlugin,
    Placement,
    RecordedRunsPlugin,
    is_left_to_dask,
)
from dask_onnx.cluster.prometheus_plugins import MetricsSchedulerPlugin, MetricsWorkerPlugin
from dask_onnx.cluster.scheduler_plugin import StagePlugin, is_configured
from dask_onnx.core import config
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.peers import is_inside_task
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.structured_logs import log_event

log = logging.getLogger(__name__)

_configured: BoundedCache[str, bool] = BoundedCache("configured clusters", 256)
"""True if the cluster of a client has our plugins, by the client's id."""


WORKER_TTL = "distributed.scheduler.worker-ttl"
"""Dask's setting: time after which a worker that does not answer is given up."""
LOST_WORKER_TIMEOUT = "distributed.deploy.lost-worker-timeout"
"""Dask's setting: time after which a local cluster no longer expects a lost worker back."""
PROFILER = "distributed.worker.profile.enabled"
"""Dask's setting: whether workers and schedulers note what their threads do."""
TICK = "distributed.admin.tick.interval"
"""Dask's setting: how often each process looks whether its event loop is late."""
_OWN_TTL_SECONDS = 30
_OWN_SETTINGS: dict[str, tuple[Any, Any]] = {
    WORKER_TTL: ("5 minutes", f"{_OWN_TTL_SECONDS}s"),
    LOST_WORKER_TIMEOUT: ("15s", "600s"),
    PROFILER: (True, False),
    TICK: ("20ms", "500ms"),
}
"""Dask's defaults, and the values in clusters that dask_onnx starts."""


def own_cluster_settings() -> dict[str, Any]:
    """Return settings of Dask for a cluster that dask_onnx starts, as far as nobody has set them.

    A worker that hangs is given up after half a minute to a minute, so that its tasks run
    elsewhere: Dask looks as often as the setting says. A nanny whose worker dies twice in short
    order is kept. Dask's statistical profiler is off: what it keeps grows for an hour, and
    `dask_onnx.profile` tells more of a job. Event loops look at themselves twice a second, not
    fifty times. The settings must hold as long as the cluster does.

    Returns
    -------
    dict of str to value
        For `dask.config.set`.
    """
    return {
        key: own for key, (default, own) in _OWN_SETTINGS.items() if is_left_to_dask(key, default)
    }


def configure(client: Client) -> Any:
    """Prepare a cluster for dask_onnx, and measure it.

    - Retries reach the tasks of lazy collections too.
    - Stages whose weights must not be on every worker stay on their workers, and move to others
      when these are lost.
    - Tasks that load a micro-batch's input wait for the micro-batch's turn.
    - The measured runs of workers that close are kept.
    - What stages do is published on Dask's own ``/metrics``, if ``prometheus_client`` is installed.
    - Dask's dashboard gets a page ``/onnx``, if the scheduler has one.
    - Values sent to other hosts are compressed with lz4 (``distributed.comm.compression``) on
      connections made from then on, unless that setting has been given on the workers.
    - `calibrate` measures the cluster, about a second, unless ``onnx.plan.calibrate`` is off.

    If the scheduler gives up workers that hang only after more than a minute, that is logged: its
    own configuration decides (``distributed.scheduler.worker-ttl``), when it starts. Requests whose
    workers are all lost end with an error after ``onnx.no-workers-timeout``.

    The first prediction on a client does the same, without measuring, unless
    ``onnx.auto-configure`` is off. Another call only measures again.

    Parameters
    ----------
    client : distributed.Client
        Client of the cluster. Its scheduler must be able to import dask_onnx.

    Returns
    -------
    None or awaitable
        An awaitable for an asynchronous client, which is not measured.

    Raises
    ------
    ClusterError
        The scheduler or a worker cannot import dask_onnx.
    PlanError
        The scheduler refuses plugins.

    Examples
    --------
    >>> dx.configure(client)
    """
    if client.asynchronous:
        return asyncio.gather(*_register(client))
    check_packages(client)
    try:
        _register(client)
    except Exception as error:  # any type: it was raised while the scheduler unpickled a plugin
        raise _not_importable(error) from error
    _configured.put(client.id, True)
    _tell_worker_ttl(client)
    if config.get("plan.calibrate"):
        calibrate(client)
    return None


def calibrate(client: Client | None = None) -> None:
    """Measure a cluster: the speed of its workers relative to this process, and its links.

    Plans made from then on are predicted with these numbers, and `Plan.explain` shows them. It
    takes about a second, runs small tasks on every worker, and does nothing while the cluster is
    busy.

    Parameters
    ----------
    client : distributed.Client, optional
        By default the client that Dask would use; without one, this process is measured.

    Examples
    --------
    >>> dx.calibrate(client)
    """
    client = current_client() if client is None else client
    if client is not None and not client.asynchronous and not workers_of(client):
        log.info("the cluster at %s has no workers to measure yet", client.scheduler.address)
        return
    measure_overhead(client)
    measure_link(client)


def ensure_configured(client: Any, placement: Placement | None) -> None:
    """Configure a cluster before its first prediction, without measuring it.

    Does nothing if the cluster was configured before, for asynchronous clients, and inside tasks.
    With ``onnx.auto-configure`` off it only asks whether the scheduler is configured.

    Parameters
    ----------
    client : distributed.Client or None
        Client of the cluster; None for no cluster.
    placement : Placement or None
        Placement of the plan that is about to run.

    Raises
    ------
    ClusterError
        The scheduler or a worker cannot import dask_onnx.
    PlanError
        The placement restricts stages to workers, but the scheduler has no `StagePlugin` and
        cannot get one.
    """
    if client is None or client.asynchronous or is_inside_task():
        return
    check_packages(client)
    tell_observers(client)
    is_needed = placement is not None and not placement.allow_other_workers
    known = _configured.get(client.id)
    if known or (known is not None and not is_needed):
        return
    try:
        if config.get("auto-configure"):
            _register(client)
            log_event(log, logging.INFO, "cluster configured", scheduler=client.scheduler.address)
            found = True
        else:
            found = bool(client.run_on_scheduler(is_configured))
    except Exception as error:  # dask_onnx cannot be imported there, or the cluster is gone
        log.debug("the cluster was not configured", exc_info=True)
        _configured.put(client.id, False)
        if is_needed:
            raise _not_importable(error) from error
        return
    _configured.put(client.id, found)
    if is_needed and not found:
        raise PlanError(
            "the plan restricts stages to workers, but the cluster's scheduler is not configured "
            "for that: each worker would load every stage",
            "call dx.configure(client) once, or let stages run anywhere: plan.with_placement(None)",
            option="placement",
            suggestions=[Suggestion("placement")],
        )


def _tell_worker_ttl(client: Client) -> None:
    """Log how long a hanging worker holds up a request, if it is long."""
    seconds = client.run_on_scheduler(worker_ttl_seconds)
    if seconds is None:
        log.warning(
            "workers of %s that hang are never given up; set %s to '%d s' where it starts",
            *(client.scheduler.address, WORKER_TTL, _OWN_TTL_SECONDS),
        )
    elif seconds > _OWN_TTL_SECONDS:
        log.info(
            "a worker of %s that hangs is given up after %d s; set %s where it starts",
            *(client.scheduler.address, seconds, WORKER_TTL),
        )


def worker_ttl_seconds(dask_scheduler: Any) -> float | None:
    """Return the seconds after which a scheduler gives up a worker that does not answer.

    Returns
    -------
    float or None
        None if it never does.
    """
    seconds: float | None = dask_scheduler.worker_ttl
    return seconds or None


def scheduler_plugins() -> tuple[StagePlugin | MetricsSchedulerPlugin | PagePlugin, ...]:
    """Return the plugins of the scheduler that `configure` registers."""
    return StagePlugin(no_workers_seconds()), MetricsSchedulerPlugin(), PagePlugin()


def _register(client: Client) -> list[Any]:
    plugins = (
        *scheduler_plugins(),
        CompressionPlugin(),
        RecordedRunsPlugin(),
        MetricsWorkerPlugin(),
    )
    return [client.register_plugin(plugin, name=plugin.name) for plugin in plugins]


def _not_importable(error: Exception) -> PlanError:
    return PlanError(
        "the cluster's scheduler could not be configured for dask_onnx",
        "install dask-onnx in the scheduler's environment too, or let stages run anywhere: "
        "plan.with_placement(None)",
        reason=f"{type(error).__name__}: {error}",
    )
