"""Preload of Dask's workers, which makes models warm before work comes.

    dask worker tcp://scheduler:8786 --preload dask_onnx.worker --model detector.onnx

The weights are brought to the host's store, and the sessions are built, before the scheduler knows
the worker; a worker that its nanny restarts does so again. A model that cannot be made warm is
logged, and the worker starts without it. ``dask_teardown`` drops the sessions.

Dask takes the options from the command line if the scheduler's address is on it. With
``--scheduler-file`` they are given by the setting ``distributed.worker.preload-argv``, or models by
the environment variable ``DASK_ONNX_WARM_MODELS``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import click

from dask_onnx.api.warm_sessions import WarmRequest, make_warm, threads_of_sessions
from dask_onnx.core.dask_internals import offload
from dask_onnx.core.errors import DaskOnnxError
from dask_onnx.core.structured_logs import log_event
from dask_onnx.runtime.session_cache import SESSION_CACHE

_LOOK_SECONDS = 2.0
"""Time between looks at the other workers of the host."""
_LOOKS = 30
"""Looks after the start: later workers of the host change the threads of sessions."""

log = logging.getLogger(__name__)
_watches: dict[Any, asyncio.Task[None]] = {}
"""Task that looks at the other workers of its host, by worker."""


@click.command("dask_setup")
@click.option(
    "--model",
    "models",
    multiple=True,
    envvar="DASK_ONNX_WARM_MODELS",
    metavar="PATH",
    help="Path or URL of a model as this worker sees it; may be repeated. By default those of "
    "DASK_ONNX_WARM_MODELS, separated by spaces.",
)
@click.option("--strategy", default="whole", show_default=True, help="Strategy of its plans.")
@click.option("--n-stages", type=click.IntRange(min=1), metavar="N", help="Of the strategy.")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    metavar="NAME",
    help="Execution provider of ONNX Runtime; may be repeated, in order of preference.",
)
@click.option(
    "--untrusted", is_flag=True, help="For requests that load the model with untrusted=True."
)
@click.option(
    "--host-threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Dask threads of all workers of this host; asked of the scheduler by default.",
)
async def dask_setup(
    worker: Any,
    models: tuple[str, ...],
    strategy: str,
    n_stages: int | None,
    providers: tuple[str, ...],
    untrusted: bool,
    host_threads: int | None,
) -> None:
    """Make models warm: bring their weights to this host, and build their sessions."""
    requests = [WarmRequest(path, strategy, n_stages, providers, untrusted) for path in models]
    threads = await offload(threads_of_sessions, worker, host_threads)
    made = [request for request in requests if await offload(_try, request, threads)]
    if made and host_threads is None:
        _watches[worker] = asyncio.create_task(_follow(worker, made, threads))


async def dask_teardown(worker: Any) -> None:
    """Stop looking at the other workers, and drop all sessions."""
    watch = _watches.pop(worker, None)
    if watch is not None:
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch
    SESSION_CACHE.clear()


def _try(request: WarmRequest, threads: int) -> bool:
    """Make a model warm; log the reason and return False if that is not possible."""
    began = time.perf_counter()
    try:
        made = make_warm(request, threads)
    except DaskOnnxError as error:
        reason = f"{type(error).__name__}: {error}"
        log_event(log, logging.ERROR, "model not warm", model=request.path, reason=reason)
        return False
    log_event(
        log,
        logging.INFO,
        "model warm",
        model=made.name,
        token=made.token,
        stages=made.stages,
        threads=made.threads,
        seconds=time.perf_counter() - began,
    )
    return True


async def _follow(worker: Any, requests: list[WarmRequest], threads: int) -> None:
    """Build sessions anew when workers that join the host change the threads that they have."""
    for _ in range(_LOOKS):
        await asyncio.sleep(_LOOK_SECONDS)
        now = await offload(threads_of_sessions, worker)
        if now != threads:
            threads = now
            for request in requests:
                await offload(_try, request, threads)
