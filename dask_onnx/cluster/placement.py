"""Where stages run, as data; how a cluster is set up for it, and what it offers."""

from __future__ import annotations

import asyncio
import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask.config
import psutil
from distributed.diagnostics.plugin import WorkerPlugin

from dask_onnx.cluster.scheduler_plugin import StagePlugin, is_configured
from dask_onnx.core import config
from dask_onnx.core.errors import PlanError
from dask_onnx.core.stage_runs import NOTES_TOPIC, as_message, noted, peak_bytes
from dask_onnx.planning.plan_options import whole_number
from dask_onnx.planning.resources import LOADED, Cluster
from dask_onnx.runtime.cores import available_cores

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, slots=True)
class Placement:
    """Which stages share a worker. Apart from the stage graph: it changes no result."""

    worker_groups: tuple[int, ...]
    """WorkerGroup of each stage. A worker group is a worker's share; which worker, the scheduler
    says."""
    allow_other_workers: bool = False
    """An idle worker may take what another worker group has waiting, and load the stage for it: as
    many tasks as can be run where the stage's weights already are, none kept from a free worker."""

    def __post_init__(self) -> None:
        try:
            worker_groups = tuple(
                whole_number("a worker group", worker_group, least=0)
                for worker_group in self.worker_groups
            )
        except TypeError:
            raise PlanError(
                f"the worker groups are {self.worker_groups!r}",
                "give one for each stage, as dx.Placement((0, 1))",
            ) from None
        object.__setattr__(self, "worker_groups", worker_groups)

    @classmethod
    def one_each(
        cls, stages: int, workers: int | None = None, *, allow_other_workers: bool = False
    ) -> Placement:
        """A worker group for each stage, or as many as there are workers, in turns."""
        groups_at_most = whole_number("workers", stages if workers is None else workers)
        worker_groups = tuple(i % groups_at_most for i in range(whole_number("stages", stages)))
        return cls(worker_groups, allow_other_workers)

    @property
    def only_worker_groups(self) -> tuple[int, ...] | None:
        """The worker groups, if stages run nowhere else; None where any worker may get any
        stage."""
        return None if self.allow_other_workers else self.worker_groups


def effective_retries(retries: int | None) -> int:
    """The caller's number, or ``onnx.retries``."""
    return int(config.get("retries")) if retries is None else retries


COMPRESSION = "distributed.comm.compression"
"""Dask's setting: off by default, agreed upon by both ends of a connection, never used within a
host."""


def wants_compression() -> bool:
    """Whether nobody has said how Dask should compress: no file, no variable, no code here."""
    missing = object()
    if dask.config.get(COMPRESSION, missing, config=dask.config.collect()) is not missing:
        return False
    return not dask.config.get(COMPRESSION, False)


class CompressionPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed publishes no types
    """Switches lz4 on in a worker, for the connections that it makes from then on."""

    name = "dask_onnx-compression"
    idempotent = True

    def setup(self, worker: Any) -> None:
        if wants_compression():
            dask.config.set({COMPRESSION: "lz4"})


def cluster_facts(client: Any) -> Cluster:
    """What a cluster offers; without a client, this process alone.

    Raises
    ------
    PlanError
        It has no workers, or cannot be asked.
    """
    if client is not None and client.asynchronous:
        raise PlanError(
            "an asynchronous client cannot be asked for its workers here",
            "plan with a synchronous one: Client(address)",
        )
    if client is None:
        memory = psutil.virtual_memory()
        return Cluster(
            workers=1,
            threads=available_cores(),
            memory_limit=memory.total * _PAUSE,
            resident=memory.total - memory.available,
            is_local=True,
        )
    workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
    if not workers:
        raise PlanError("the cluster has no workers", "wait for them: client.wait_for_workers(1)")
    pause = dask.config.get("distributed.worker.memory.pause", _PAUSE) or math.inf
    limits = [(worker["memory_limit"] or math.inf) * pause for worker in workers]
    return Cluster(
        len(workers),
        max(worker["nthreads"] for worker in workers),
        min(limits),
        LOADED,
        limits=tuple(limits),
        total_threads=sum(worker["nthreads"] for worker in workers),
    )


def any_cluster(client: Any) -> Cluster:
    """The same; what this process offers where the client has no workers, or cannot be asked."""
    if client is None or client.asynchronous:
        return cluster_facts(None)
    try:
        return cluster_facts(client)
    except PlanError:
        return cluster_facts(None)


_PAUSE = 0.8
"""Share of its memory limit at which Dask pauses a worker, where nothing else is set."""


class NotesPlugin(WorkerPlugin):  # type: ignore[misc]  # distributed publishes no types
    """Leaves what a worker has noted of stages with the scheduler when the worker goes."""

    name = "dask_onnx-notes"
    idempotent = True

    def setup(self, worker: Any) -> None:
        self.worker = worker

    def teardown(self, worker: Any) -> None:
        if runs := noted():
            worker.log_event(NOTES_TOPIC, as_message(worker.address, runs, peak_bytes()))


def configure(client: Client) -> Any:
    """Set a cluster up for dask_onnx.

    Retries reach the tasks of lazy collections too; the stages of a plan whose weights must not be
    everywhere stay on their workers, and find others when these are lost; what loads micro-batches
    waits as they do; what workers that go have measured of stages is kept; and what workers send to
    other hosts is compressed with lz4 (``distributed.comm.compression``), on connections made from
    then on, unless that setting has been given where they run.

    Call it once for a cluster that you did not start through dask_onnx; calling it again does
    nothing. The scheduler must be able to import dask_onnx.

    Parameters
    ----------
    client : distributed.Client
        Connected to the cluster.

    Returns
    -------
    None; of an asynchronous client an awaitable
    """
    plugins = (StagePlugin(), CompressionPlugin(), NotesPlugin())
    registered = [client.register_plugin(plugin, name=plugin.name) for plugin in plugins]
    if client.asynchronous:
        return asyncio.gather(*registered)
    return None


def check_configured(client: Any, placement: Placement | None) -> None:
    """Whether the cluster keeps stages on their workers, where a placement wants that.

    Raises
    ------
    PlanError
        Its scheduler has not been told how.
    """
    if client is None or client.asynchronous or placement is None or placement.allow_other_workers:
        return
    if client in _configured:
        return
    try:
        knows = client.run_on_scheduler(is_configured)
    except Exception:  # whatever it says, dask_onnx is not there
        knows = False
    if not knows:
        raise PlanError(
            "the plan keeps stages on workers of their own, and the cluster's scheduler does not "
            "know how: each worker would load every stage",
            "call dx.configure(client) once, or let stages run anywhere: plan.with_placement(None)",
        )
    _configured.add(client)


_configured: weakref.WeakSet[Any] = weakref.WeakSet()
"""Clients of clusters that have been asked, and are."""
