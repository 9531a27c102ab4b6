"""Check that a cluster can import dask_onnx, before anything of it is sent there.

A scheduler without the package fails when it reads the graph. Workers without it die of our
plugins, one after the other, and a request would wait for ever.
"""

from __future__ import annotations

import logging
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from dask_onnx.cluster.links import workers_of
from dask_onnx.cluster.worker_answers import ask_workers
from dask_onnx.core.errors import ClusterError
from dask_onnx.core.process_caches import BoundedCache

log = logging.getLogger(__name__)

_VERSION = "dask_onnx:__version__"
"""Package that processes of a cluster are asked to import, by a function of Python's own."""
_SHOWN = 2

_checked: BoundedCache[str, frozenset[str]] = BoundedCache("clusters with the package", 256)
"""Addresses of the processes that can import the package, by the client's id."""


def check_packages(client: Any) -> None:
    """Check that the scheduler and all workers can import dask_onnx. Each is asked once.

    Parameters
    ----------
    client : distributed.Client
        Synchronous client of the cluster.

    Raises
    ------
    ClusterError
        One of them cannot; with the error of the import as `reason`, and the numbers of workers.
    """
    known = _checked.get(client.id) or frozenset()
    workers = frozenset(workers_of(client))
    scheduler = f"scheduler {client.scheduler.address}"
    if scheduler not in known:
        _check_scheduler(client)
    if new := workers - known:
        _check_workers(client, _ask(client, new))
    _checked.put(client.id, workers | {scheduler})


def _ask(client: Any, workers: Iterable[str]) -> Mapping[str, Any]:
    """Return the version of the package on each worker, or the error of its import."""
    return ask_workers(client, pkgutil.resolve_name, _VERSION, workers=sorted(workers))


def _check_scheduler(client: Any) -> None:
    try:
        client.run_on_scheduler(pkgutil.resolve_name, _VERSION)
    except ImportError as error:
        raise ClusterError(
            f"the scheduler at {client.scheduler.address} cannot import dask_onnx: {error}",
            "install dask-onnx in the scheduler's environment, with the versions of this process, "
            "and start it again",
            option="scheduler",
            reason=f"{type(error).__name__}: {error}",
        ) from error
    except Exception:  # a scheduler may refuse to run functions; its own errors say so later
        log.debug("the scheduler was not asked for dask_onnx", exc_info=True)


def _check_workers(client: Any, answers: Mapping[str, Any]) -> None:
    lacking = {
        address: answer for address, answer in answers.items() if isinstance(answer, ImportError)
    }
    if not lacking:
        return
    address, error = next(iter(sorted(lacking.items())))
    shown = ", ".join(sorted(lacking)[:_SHOWN])
    raise ClusterError(
        f"{len(lacking)} of {len(workers_of(client))} workers of the scheduler at "
        f"{client.scheduler.address} cannot import dask_onnx ({shown}"
        f"{', ...' if len(lacking) > _SHOWN else ''}): {error}",
        "install dask-onnx in the environment of the workers, with the versions of this process, "
        "and start them again",
        option="scheduler",
        reason=f"{address}: {type(error).__name__}: {error}",
        numbers={"workers": len(workers_of(client)), "workers_without_package": len(lacking)},
    )
