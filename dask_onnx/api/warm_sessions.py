"""Sessions that a worker builds before work comes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dask_onnx.api.loading import load
from dask_onnx.api.plan import Plan
from dask_onnx.core.errors import PlanError
from dask_onnx.core.peers import ask_scheduler
from dask_onnx.core.specs import SessionSpec
from dask_onnx.lowering.lower import stage_ref
from dask_onnx.runtime.cores import available_cores, host_threads
from dask_onnx.runtime.stage_sessions import bring_stage, stage_session
from dask_onnx.store.publishing import publish


@dataclass(frozen=True, slots=True)
class WarmModel:
    """A model whose sessions were built in this process."""

    name: str
    """Name of the model."""
    token: str
    """Token of the model."""
    stages: int
    """Sessions, one for each stage of its plan."""
    threads: int
    """Threads of each session."""


@dataclass(frozen=True, slots=True)
class WarmRequest:
    """A model to be made warm, and how requests will use it."""

    path: str
    """Path or URL of the model."""
    strategy: str = "whole"
    """Strategy of its plan."""
    n_stages: int | None = None
    """Number of stages of the strategy."""
    providers: tuple[str, ...] = ()
    """Execution providers of the sessions; none for the default ones."""
    is_untrusted: bool = False
    """True if the model is tried in a subprocess first, as requests will ask for."""


def make_warm(request: WarmRequest, threads: int) -> WarmModel:
    """Bring a model's weights to this host, and build the sessions of its plan in this process.

    Equal requests then find their sessions: the same model, strategy, outputs of the model and
    options of sessions.

    Parameters
    ----------
    request : WarmRequest
    threads : int
        Threads of each session, as `threads_of_sessions` finds them.

    Raises
    ------
    ModelError, PlanError
        As for `load` and `Model.plan`.
    StageError, StoreError
        A stage cannot be built here, or the store cannot be written.
    """
    model = load(request.path, untrusted=request.is_untrusted)
    session = SessionSpec(providers=request.providers) if request.providers else None
    plan = model.plan(request.strategy, n_stages=request.n_stages, session=session)
    if not isinstance(plan, Plan):
        raise PlanError(
            f"strategy {request.strategy!r} makes shards, whose sessions follow from the request",
            "choose another strategy",
            option="strategy",
        )
    publish(plan.facts.onnx)
    spec = replace(plan.recipe.session, intra_op_num_threads=threads)
    for stage in plan.stages:
        reference = stage_ref(plan.facts.onnx.ref, stage, plan.facts.custom)
        bring_stage(reference)
        stage_session(reference, spec)
    return WarmModel(model.name, plan.facts.onnx.token, len(plan.stages), threads)


def threads_of_sessions(worker: Any, of_host: int | None = None) -> int:
    """Return the threads that sessions of a worker will have once its tasks run.

    Must not be called in the worker's event loop.

    Parameters
    ----------
    worker : distributed.Worker
        Worker, which its scheduler need not know yet.
    of_host : int, optional
        Dask threads of all workers of this host; by default those that the scheduler knows and,
        where it does not know this worker, its own.
    """
    if of_host is None:
        own = worker.state.nthreads
        of_host = ask_scheduler(worker, host_threads_with, worker.address, own) or own
    return max(1, available_cores() // max(1, of_host))


def host_threads_with(address: str, own: int, dask_scheduler: Any = None) -> int:
    """Return the Dask threads of a host's workers with those of one; runs on the scheduler.

    Parameters
    ----------
    address : str
        Address of the worker, which the scheduler may not know yet.
    own : int
        Its threads.
    dask_scheduler : distributed.Scheduler
        Given by Dask.
    """
    known = host_threads(address, dask_scheduler)
    if known:
        return known
    host = address.partition("://")[2].rpartition(":")[0]
    others = dask_scheduler.workers.values()
    beside: int = sum(each.nthreads for each in others if each.host == host)
    return own + beside
