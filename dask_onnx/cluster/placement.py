"""Placement of stages as data; plugins of workers, and facts about a cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import dask.config
import psutil
from distributed.diagnostics.plugin import WorkerPlugin

from dask_onnx.core import config
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.stage_runs import RUNS_TOPIC, peak_bytes, recorded_runs, runs_to_message
from dask_onnx.planning.plan_options import parse_whole_number
from dask_onnx.planning.resources import PROCESS_BYTES, Cluster
from dask_onnx.runtime.cores import available_cores

COMPRESSION = "distributed.comm.compression"
"""Dask's compression setting.

Off by default, negotiated for each connection, and never used within a host.
"""
_DEFAULT_PAUSE = 0.8
"""Share of its memory limit at which Dask pauses a worker by default."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Worker groups of a plan's stages. It changes no result, and is no part of the stage graph.

    Raises
    ------
    PlanError
        `worker_groups` is no sequence of whole numbers of 0 or more.
    """

    worker_groups: tuple[int, ...]
    """Worker group of each stage. The scheduler assigns a worker to each worker group."""
    allow_other_workers: bool = False
    """True if an idle worker may take tasks of another worker group, and load their stage.

    As many tasks as possible then run where the stage's weights are, but no worker stays idle.
    """

    def __post_init__(self) -> None:
        try:
            worker_groups = tuple(
                parse_whole_number("worker_groups", worker_group, least=0)
                for worker_group in self.worker_groups
            )
        except TypeError:
            raise PlanError(
                f"the worker groups are {self.worker_groups!r}, which is no sequence",
                "give one for each stage, as dx.Placement((0, 1))",
                option="worker_groups",
                suggestions=[Suggestion("worker_groups", (0, 1))],
            ) from None
        object.__setattr__(self, "worker_groups", worker_groups)

    @classmethod
    def one_each(
        cls, stages: int, workers: int | None = None, *, allow_other_workers: bool = False
    ) -> Placement:
        """Return a placement with a worker group for each stage, or `workers` of them in turns.

        Parameters
        ----------
        stages : int
            Number of stages.
        workers : int, optional
            Most worker groups; by default as many as stages.
        allow_other_workers : bool
            As the field of this name.

        Raises
        ------
        PlanError
            A number is below 1.
        """
        count = parse_whole_number("stages", stages)
        most = parse_whole_number("workers", count if workers is None else workers)
        return cls(tuple(i % most for i in range(count)), allow_other_workers)

    @property
    def only_worker_groups(self) -> tuple[int, ...] | None:
        """Worker groups if stages run nowhere else; None where any worker may get any stage."""
        return None if self.allow_other_workers else self.worker_groups


def effective_retries(retries: int | None) -> int:
    """Return the caller's number of retries, or ``onnx.retries`` where that is None."""
    return int(config.get("retries")) if retries is None else retries


def wants_compression() -> bool:
    """Return whether Dask's compression may be switched on: nobody has set it."""
    return is_left_to_dask(COMPRESSION, False)


def is_left_to_dask(key: str, default: Any) -> bool:
    """Return whether nobody has set a key of Dask's configuration in this process.

    It counts as set if a configuration file or an environment variable has set it, even to its
    default, or code to another value.

    Parameters
    ----------
    key : str
        Key of the configuration.
    default : object
        Dask's own default.
    """
    missing = object()
    if dask.config.get(key, missing, config=dask.config.collect()) is not missing:
        return False
    return bool(dask.config.get(key, default) == default)


class CompressionPlugin(WorkerPlugin):
    """Switches lz4 on in a worker, for the connections that it makes from then on."""

    name = "dask_onnx-compression"
    idempotent = True

    def setup(self, worker: Any) -> None:
        """Switch compression on, unless the worker's configuration says otherwise."""
        # A worker in the caller's process has the caller's configuration, and uses no network.
        if wants_compression() and not worker.address.startswith("inproc://"):
            dask.config.set({COMPRESSION: "lz4"})


class RecordedRunsPlugin(WorkerPlugin):
    """Sends a worker's recorded runs of stages to the scheduler when the worker closes."""

    name = "dask_onnx-recorded-runs"
    idempotent = True

    def teardown(self, worker: Any) -> None:
        """Log the runs as an event, from which `collect` reads them."""
        if runs := recorded_runs():
            worker.log_event(RUNS_TOPIC, runs_to_message(worker.address, runs, peak_bytes()))


def cluster_facts(client: Any) -> Cluster:
    """Return the workers, threads and memory of a cluster.

    Parameters
    ----------
    client : distributed.Client or None
        Client of the cluster; None for this process alone.

    Raises
    ------
    PlanError
        The cluster has no workers, or the client is asynchronous.
    """
    if client is not None and client.asynchronous:
        raise PlanError(
            "an asynchronous client cannot be asked for its workers here",
            "plan with a synchronous one: Client(address)",
            option="client",
            suggestions=[Suggestion("client")],
        )
    if client is None:
        memory = psutil.virtual_memory()
        return Cluster(
            workers=1,
            threads=available_cores(),
            memory_limit=memory.total * _DEFAULT_PAUSE,
            resident=memory.total - memory.available,
            is_local=True,
        )
    workers = list(client.scheduler_info(n_workers=-1)["workers"].values())
    if not workers:
        raise PlanError(
            "the cluster has no workers",
            "wait for them: client.wait_for_workers(1)",
            option="client",
            numbers={"workers": 0},
        )
    pause = dask.config.get("distributed.worker.memory.pause", _DEFAULT_PAUSE) or math.inf
    limits = [(worker["memory_limit"] or math.inf) * pause for worker in workers]
    return Cluster(
        len(workers),
        max(worker["nthreads"] for worker in workers),
        min(limits),
        PROCESS_BYTES,
        limits=tuple(limits),
        total_threads=sum(worker["nthreads"] for worker in workers),
    )


def any_cluster(client: Any) -> Cluster:
    """Return the facts of a client's cluster, or of this process if it has no workers.

    The same holds for a client that cannot be asked: an asynchronous one, or one that has lost its
    scheduler.
    """
    if client is None or client.asynchronous or client.status != "running":
        return cluster_facts(None)
    try:
        return cluster_facts(client)
    except PlanError:
        return cluster_facts(None)
