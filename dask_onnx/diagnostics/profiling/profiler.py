"""`dask_onnx.profile`: a block of code whose tasks, transfers and nodes are recorded."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import get_args

import distributed
from distributed import Client

from dask_onnx.cluster.client_observers import add_observer, remove_observer
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.profile_scheduler_plugin import SPAN
from dask_onnx.core.errors import ClusterError, InputError, Suggestion
from dask_onnx.core.meters import NodesMode
from dask_onnx.core.peers import is_inside_task
from dask_onnx.diagnostics.profiling.cluster_recorder import ClusterRecorder
from dask_onnx.diagnostics.profiling.finished_profile import FinishedProfile
from dask_onnx.diagnostics.profiling.local_recorder import LocalRecorder
from dask_onnx.diagnostics.profiling.profiled_streams import (
    Baseline,
    profiled_streams,
    stream_baseline,
)
from dask_onnx.diagnostics.profiling.run_profile import RunProfile
from dask_onnx.runtime.package_versions import installed_versions

log = logging.getLogger(__name__)

_MODES = get_args(NodesMode)


class Profiler(FinishedProfile):
    """Recorder of a block of code. Made by `dask_onnx.profile`; used once, by ``with``."""

    def __init__(self, nodes: NodesMode, client: Client | None) -> None:
        self._result = None
        self._nodes, self._client = nodes, client
        self._id = uuid.uuid4().hex[:12]
        self._recorder: ClusterRecorder | LocalRecorder | None = None
        self._has_begun = self._was_local = False
        self._span = contextlib.ExitStack()
        self._began = 0.0
        self._streams: Baseline = {}

    def __enter__(self) -> Profiler:
        if self._has_begun:
            raise InputError("a profile is used once", "call dx.profile() for another one")
        self._has_begun = True
        client = current_client() if self._client is None else self._client
        if client is None and is_inside_task():
            raise InputError(
                "a profile cannot begin inside a task of a cluster",
                "open it where the work is submitted",
            )
        self._began, self._streams = time.time(), stream_baseline()
        self._record(client)
        if client is None:
            self._was_local = True
            add_observer(self.attach)
        with _lock:
            _open_profiles.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with _lock:
            _open_profiles.remove(self)
        if self._was_local:
            remove_observer(self.attach)
        try:
            if self._recorder is not None:
                self._finish()
        except ClusterError:
            if kind is None:
                raise
            log.warning("the profile has no result", exc_info=True)  # the block's error counts
        finally:
            self._span.close()

    def attach(self, client: Client) -> None:
        """Record on the cluster of a client from now on, if the block began without one.

        Jobs that start a cluster for themselves do so.

        Parameters
        ----------
        client : distributed.Client
        """
        if self._was_local and isinstance(self._recorder, LocalRecorder):
            self._recorder.abandon()
            self._record(client)

    def detach(self, client: Client) -> None:
        """End the recording on a cluster that is about to be closed, if it was attached to it.

        Parameters
        ----------
        client : distributed.Client
        """
        recorder = self._recorder
        if self._was_local and isinstance(recorder, ClusterRecorder) and recorder.client is client:
            self._finish()

    def _record(self, client: Client | None) -> None:
        if client is None:
            self._recorder = LocalRecorder(self._id, self._nodes)
            return
        if client.asynchronous:
            raise InputError(
                "an asynchronous client cannot be profiled",
                "use a synchronous one: Client(address)",
                option="client",
            )
        span = self._span.enter_context(distributed.span(SPAN))
        self._recorder = ClusterRecorder(client, self._id, self._nodes, span)

    def _finish(self) -> None:
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            streams = profiled_streams(self._streams, self._began, time.time())
            self._result = replace(recorder.finish(), versions=_versions(), streams=streams)


_open_profiles: list[Profiler] = []
"""Profiles of this process whose blocks run."""
_lock = threading.Lock()


@contextlib.contextmanager
def profiled_cluster(client: Client) -> Iterator[None]:
    """Record the open profiles on a cluster that is about to work, and is then closed.

    Parameters
    ----------
    client : distributed.Client
    """
    with _lock:
        profiles = list(_open_profiles)
    for each in profiles:
        each.attach(client)
    try:
        yield
    finally:
        for each in profiles:
            each.detach(client)


def profile(nodes: NodesMode = "sample", client: Client | None = None) -> Profiler:
    """Record where the time and the bytes of a block of code go.

    Predictions, tables, streams and whatever else runs on Dask inside the block are recorded: on
    the cluster of the current client, or in this process. Profiles of several clients of a cluster
    are kept apart. Work goes on as without a profile, a little slower (about 1 %).

    Parameters
    ----------
    nodes : {"sample", "all", "none"}
        Tasks whose nodes are timed inside stages. "sample" keeps the inputs of a few tasks of each
        stage (64 MiB at most) and runs them again when the block ends, under ONNX Runtime's
        profiler; the times are scaled to all tasks. "all" times every run as it happens, which is
        slower.
    client : distributed.Client, optional
        By default the client that Dask would use.

    Returns
    -------
    Profiler
        A context manager. After the block it has `summary`, `table`, `rows`, `to_html`,
        `to_trace`, `save` and `compare`; in a notebook it shows its summary.

    Raises
    ------
    InputError
        There is no such mode; the client is asynchronous, or none at all.
    ClusterError
        The scheduler or a worker cannot import dask_onnx; the cluster was closed inside the block.

    Examples
    --------
    >>> with dx.profile() as prof:
    ...     model.predict(images).compute()
    >>> print(prof.summary())
    """
    if nodes not in _MODES:
        raise InputError(
            f"nodes is {nodes!r}",
            f"give one of {', '.join(_MODES)}",
            option="nodes",
            suggestions=[Suggestion("nodes", each) for each in _MODES],
        )
    if client is not None and not isinstance(client, Client):
        raise InputError(
            f"client is a {type(client).__name__}",
            "give a distributed.Client, or leave it out",
            option="client",
        )
    return Profiler(nodes, client)


def _versions() -> dict[str, str]:
    packages = installed_versions()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("dask", "distributed", "numpy")},
        "onnxruntime": packages.onnxruntime or "none",
    }


__all__ = ["Profiler", "RunProfile", "profile", "profiled_cluster"]
