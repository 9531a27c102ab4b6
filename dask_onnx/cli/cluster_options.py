"""The cluster that a command runs on: one of its own, or one at an address."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator

import dask.config
from distributed import Client, LocalCluster

from dask_onnx.cluster.placement import COMPRESSION, configure, wants_compression
from dask_onnx.core.errors import InputError

_CONNECT_SECONDS = 5
"""How long to try for a scheduler: the caller is told within ten seconds."""
_WORKERS_SECONDS = 30
"""How long a cluster that answers may take to have a worker."""


@contextlib.contextmanager
def connect(
    address: str | None,
    workers: int | None,
    threads: int | None,
    memory_limit: str | None,
    *,
    debug: bool = False,
) -> Iterator[Client]:
    """A client, set up for dask_onnx; its own cluster goes down with it.

    Without `debug` the processes of our own cluster keep their logs to themselves: what went wrong
    comes back as an error.

    Raises
    ------
    InputError
        The scheduler cannot be reached, or has no workers; options of a local cluster are given
        for a remote one.
    """
    if address is None:
        with _local(workers, threads, memory_limit, debug=debug) as client:
            configure(client)
            yield client
        return
    if workers is not None or threads is not None or memory_limit is not None:
        raise InputError(
            "--workers, --threads and --memory-limit shape a cluster of our own, and --scheduler "
            "names one that is there",
            "leave out one or the other",
        )
    with _remote(address) as client:
        configure(client)
        yield client


@contextlib.contextmanager
def _local(
    workers: int | None, threads: int | None, memory_limit: str | None, *, debug: bool
) -> Iterator[Client]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        # Processes take our settings when they start: later, only new connections would.
        compression = {COMPRESSION: "lz4"} if wants_compression() else {}
        with _deaf_children(), dask.config.set(compression):
            cluster = LocalCluster(
                n_workers=workers or cores or 1,
                threads_per_worker=threads or 1,
                memory_limit=memory_limit or "auto",
                dashboard_address=":0",
                silence_logs=logging.WARNING if debug else logging.CRITICAL,
            )
    except ValueError as error:  # from reading the memory limit
        raise InputError(
            f"no cluster can be started: {error}", "give --memory-limit like 4GiB"
        ) from error
    with cluster, Client(cluster) as client:
        yield client


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes started meanwhile ignore Ctrl-C, which a terminal sends to all of them.

    We alone answer it, by shutting them down; their tracebacks would bury what we say.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _remote(address: str) -> Iterator[Client]:
    try:
        client = Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise InputError(
            f"the scheduler {address} cannot be reached within {_CONNECT_SECONDS} s",
            "check the address, and that `dask scheduler` runs there",
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_WORKERS_SECONDS)
        except TimeoutError as error:
            raise InputError(
                f"the scheduler {address} had no worker within {_WORKERS_SECONDS} s",
                f"start one with `dask worker {address}`",
            ) from error
        yield client


def dashboard_line(client: Client) -> str:
    """Where to look, or why there is nothing to see."""
    if importlib.util.find_spec("bokeh") is None:
        return "dashboard: needs pip install 'dask-onnx[dashboard]'"
    return f"dashboard: {client.dashboard_link}"
