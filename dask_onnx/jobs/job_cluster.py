"""Cluster of a job: an existing one, or a local one that is started for it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import dask.config
from dask.utils import parse_bytes
from distributed import Client, LocalCluster, Security
from distributed.comm import get_address_host, parse_address
from distributed.comm.registry import get_backend

from dask_onnx.cluster.configuration import ensure_configured, own_cluster_settings
from dask_onnx.cluster.current_scheduler import current_client, explained_losses
from dask_onnx.cluster.placement import COMPRESSION, wants_compression
from dask_onnx.core.errors import ClusterError, InputError, StageError, Suggestion
from dask_onnx.diagnostics.profiling.profiler import profiled_cluster
from dask_onnx.jobs.option_checks import check_count
from dask_onnx.jobs.own_workers import WorkerLog, WorkerReplacement

_CONNECT_SECONDS = 5
"""Timeout of the connection to a scheduler: a wrong address is reported within ten seconds."""
_ADDRESS = re.compile(r"([a-z]+://.+)|([^/\s]+:\d+)")
"""Address with a protocol, or a host with a port."""
_ADDRESS_FORM = "give it as tcp://HOST:PORT, usually port 8786"
_ENCRYPTED = ("tls", "wss")
"""Protocols that need certificates."""
_WORKERS_SECONDS = 30
"""Time that a cluster may take to have its first worker."""


@dataclass(frozen=True, slots=True)
class JobCluster:
    """Description of the cluster of a job.

    Raises
    ------
    InputError
        A value that an option does not take; options of a local cluster together with a scheduler.
    """

    scheduler: Client | str | None = None
    """A client, the address of a scheduler, or None for the current client or a local cluster."""
    workers: int | None = None
    """Processes of a local cluster; one for each core by default."""
    threads: int | None = None
    """Threads of each process; 1 by default."""
    worker_memory_limit: int | str | None = None
    """Memory of each process, in bytes or as text; its share of the host by default."""
    is_verbose: bool = False
    """True if processes of a local cluster log warnings."""

    def __post_init__(self) -> None:
        if not isinstance(self.scheduler, Client | str | None):
            raise InputError(
                f"scheduler is {self.scheduler!r}",
                "pass a distributed.Client, or an address: 'tcp://HOST:PORT'",
                option="scheduler",
            )
        check_count(self.workers, "workers")
        check_count(self.threads, "threads")
        if not isinstance(self.worker_memory_limit, str):
            check_count(self.worker_memory_limit, "worker_memory_limit")
        if self.is_shaped and self.scheduler is not None:
            raise InputError(
                "workers, threads and worker_memory_limit describe a local cluster, but a "
                "scheduler was given",
                "leave out the scheduler, or the other options",
                option="scheduler",
            )
        if isinstance(self.worker_memory_limit, str) and self.worker_memory_limit != "auto":
            try:
                parse_bytes(self.worker_memory_limit)
            except ValueError as error:
                raise InputError(
                    f"the memory of a worker is {self.worker_memory_limit!r}, which is no size",
                    "give it as 4GiB or 800MB",
                    option="worker_memory_limit",
                    reason=str(error),
                ) from error

    @property
    def is_shaped(self) -> bool:
        """True if an option of a local cluster was given."""
        return (self.workers, self.threads, self.worker_memory_limit) != (None, None, None)

    @contextlib.contextmanager
    def connect(self) -> Iterator[Client]:
        """Return a client that is configured for dask_onnx; a local cluster is closed afterwards.

        Raises
        ------
        InputError
            The scheduler cannot be reached or has no workers; no local cluster can be started.
        ClusterError
            Workers end while they start, or the scheduler is lost while the body runs.
        """
        with contextlib.ExitStack() as stack:
            client = self.scheduler
            if client is None and not self.is_shaped:
                client = current_client()
            if client is None:
                client = stack.enter_context(self._start())
            elif isinstance(client, str):
                client = stack.enter_context(_client_at(client))
            step = "start the cluster again, and go on with resume=True (--resume)"
            resume = [Suggestion("resume", True)]
            stack.enter_context(explained_losses(client, step, resume))
            ensure_configured(client, None)
            stack.enter_context(profiled_cluster(client))
            yield client

    @contextlib.contextmanager
    def _start(self) -> Iterator[Client]:
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
        workers = self.workers or cores or 1
        with WorkerLog().attached() as ends:
            cluster = self._local_cluster(workers, ends)
            # Dask reads one of the settings whenever a worker is lost.
            settings = dask.config.set(own_cluster_settings())
            with cluster, Client(cluster) as client, settings:
                try:
                    with WorkerReplacement(cluster, workers).running():
                        yield client
                except (ClusterError, StageError) as error:
                    if ends.lines:
                        error.add_note(f"the last lines about workers: {'; '.join(ends.lines)}")
                    raise

    def _local_cluster(self, workers: int, ends: WorkerLog) -> LocalCluster:
        try:
            # Processes read the setting when they start; set later, it would only affect new
            # connections.
            compression = {COMPRESSION: "lz4"} if wants_compression() else {}
            settings = {**compression, **own_cluster_settings()}
            with _ignored_interrupts(), dask.config.set(settings):
                return LocalCluster(
                    n_workers=workers,
                    threads_per_worker=self.threads or 1,
                    memory_limit=self.worker_memory_limit or "auto",
                    dashboard_address=":0",
                    silence_logs=logging.WARNING if self.is_verbose else logging.CRITICAL,
                )
        except ValueError as error:
            raise InputError(
                f"no local cluster can be started: {error}",
                "check the number of workers and threads, and the memory of a worker",
                reason=str(error),
            ) from error
        except (RuntimeError, OSError) as error:
            cause = error.__cause__ or error
            raise ClusterError(
                f"the workers of a local cluster end while they start: {cause}",
                "look at the last lines about them; Dask's settings (distributed.worker.preload, "
                "nanny.environ) and the limits of the host apply to them",
                option="workers",
                reason="; ".join(ends.lines) or str(cause),
                numbers={"workers": workers},
            ) from error


@contextlib.contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Let processes that are started meanwhile ignore Ctrl-C, which a terminal sends to all.

    This process handles it and shuts the others down; their tracebacks would hide its message.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _connected(address: str, *, is_default: bool = True) -> Client:
    """Return a client, connected within a few seconds.

    Dask closes a client that cannot connect, but leaves one as the default whose address or
    settings it cannot use: these are checked before there is a client.
    """
    _check_address(address)
    _check_transport(address)
    try:
        return Client(address, timeout=_CONNECT_SECONDS, set_as_default=is_default)
    except (OSError, TimeoutError) as error:
        reason = _root_of(error)
        raise InputError(
            f"the scheduler {address} cannot be reached within {_CONNECT_SECONDS} s: {reason}",
            "check the address, and that `dask scheduler` runs there; with certificates, an "
            "address begins with tls://",
            option="scheduler",
            reason=reason,
        ) from error


def _check_address(address: str) -> None:
    """Refuse what is no address of a scheduler, such as that of its dashboard.

    Raises
    ------
    InputError
        It is none.
    """
    if address.startswith(("http://", "https://")):
        cause, step = (
            f"{address} is the address of a web page, such as a dashboard, and of no scheduler",
            "give the address of the scheduler, which the dashboard and the log of `dask "
            "scheduler` show: tcp://HOST:8786",
        )
    elif not _ADDRESS.fullmatch(address):
        cause, step = f"{address!r} is no address of a scheduler", _ADDRESS_FORM
    else:
        return
    raise InputError(cause, step, option="scheduler", reason=address)


def _check_transport(address: str) -> None:
    """Refuse an address whose protocol cannot be used here, or lacks its certificates.

    Raises
    ------
    InputError
        Dask does not know the protocol or cannot read the address; Dask's configuration names no
        certificates, or unreadable ones, for a protocol that needs them.
    """
    protocol, _ = parse_address(address)
    try:
        get_address_host(address)
        get_backend(protocol).get_connector()
    except (ImportError, TypeError, ValueError) as error:
        raise InputError(
            f"Dask cannot use the scheduler's address {address}: {error}",
            _ADDRESS_FORM,
            option="scheduler",
            reason=str(error),
        ) from error
    if protocol not in _ENCRYPTED:
        return
    settings = (
        "set distributed.comm.tls.ca-file, distributed.comm.tls.client.cert and "
        "distributed.comm.tls.client.key, as by DASK_DISTRIBUTED__COMM__TLS__CA_FILE; or pass "
        "a Client with its Security"
    )
    try:
        is_missing = Security().get_connection_args("client").get("ssl_context") is None
    except (OSError, TypeError, ValueError) as error:
        raise InputError(
            f"the certificates that Dask's configuration names cannot be read: {error}",
            settings,
            option="scheduler",
            reason=str(error),
        ) from error
    if is_missing:
        raise InputError(
            f"the scheduler {address} takes connections with certificates only, and Dask's "
            "configuration of this process names none",
            settings,
            option="scheduler",
            reason=protocol,
        )


def _root_of(error: BaseException) -> str:
    """Return the text of the first of the errors that led to one."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _client_at(address: str) -> Iterator[Client]:
    with _connected(address) as client:
        try:
            client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
        except TimeoutError as error:
            raise InputError(
                f"the scheduler {address} had no worker within {_WORKERS_SECONDS} s",
                f"start one with `dask worker {address}`",
                option="scheduler",
                numbers={"waited_seconds": _WORKERS_SECONDS},
            ) from error
        yield client


@contextlib.contextmanager
def observing_client(address: str) -> Iterator[Client]:
    """Return a client for looking at a cluster: nothing on it is configured or waited for.

    Raises
    ------
    InputError
        The scheduler cannot be reached.
    """
    with warnings.catch_warnings():
        # Differences of versions are among what one looks for.
        warnings.simplefilter("ignore")
        client = _connected(address, is_default=False)
    with client:
        yield client
