"""Steps of a prepared request: futures of Dask to wait for, and what follows from their values."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future as LocalFuture
from dataclasses import dataclass
from typing import Any, Protocol

from dask_onnx.cluster.current_scheduler import current_client, ensure_connected
from dask_onnx.core.dask_internals import unhashed_graph
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import Key

_LARGE_BYTES = 2**20
"""Bytes of arrays in a graph from which on Dask's warning about large graphs may come."""


@dataclass(frozen=True, slots=True)
class Step:
    """Work that a cluster does for one request, and what to do with its results."""

    futures: tuple[Any, ...]
    """Futures of Dask whose values are gathered."""
    then: Callable[[Sequence[Any]], Any]
    """From these values, in their order, to the result of the request, or to another `Step`. It is
    called in a thread that serves all requests, and has to be quick."""
    held: tuple[Any, ...] = ()
    """Futures that must exist until the step is done, beside those above."""

    def release(self) -> None:
        """Tell the scheduler that nobody wants the results, without waiting; tasks are dropped."""
        for future in self.futures:
            future.release()


class Prepared(Protocol):
    """A request that is checked once and started many times; what streams ask of a model."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def token(self) -> str:
        """Token of the model."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Inputs that a frame must have."""

    @property
    def client(self) -> Any:
        """Client of the cluster that runs it."""

    @property
    def requests(self) -> frozenset[str]:
        """Tokens with which the names of its groups of tasks end."""

    def start(self, frame: Any, *, priority: int = 0) -> Step:
        """Submit the tasks of one input, and return at once.

        Raises
        ------
        InputError
            The input does not fit the model.
        """


def submit_graph(
    client: Any,
    tasks: Mapping[Key, Any],
    keys: Sequence[Key],
    *,
    retries: int = 0,
    priority: int = 0,
    size: int = 0,
) -> tuple[Any, ...]:
    """Submit a small graph whose tasks contain arrays, and return the futures of some keys.

    Parameters
    ----------
    client : distributed.Client
    tasks : mapping of key to Task
    keys : sequence of key
        Keys whose results are wanted.
    retries : int
        Times that a task is repeated that raised.
    priority : int
        Dask's priority: larger ones first.
    size : int
        Bytes of the arrays in the tasks.
    """

    def submit() -> list[Any]:
        futures: list[Any] = client.get(
            unhashed_graph(tasks),
            list(keys),
            sync=False,
            retries=retries or None,
            priority=priority,
        )
        return futures

    if size < _LARGE_BYTES:
        return tuple(submit())
    with warnings.catch_warnings():
        # A frame belongs into its graph: Dask can then run its tasks again after a worker's death.
        warnings.filterwarnings("ignore", "Sending large graph")
        return tuple(submit())


async def finish_step(client: Any, step: Step) -> Any:
    """Return the result of a step and of those that follow; runs in the loop of the client."""
    following: Any = step
    while isinstance(following, Step):
        values = await client.gather(list(following.futures), asynchronous=True)
        following = following.then(values)
    return following


def start_in_background(client: Any, coroutine: Any) -> LocalFuture[Any]:
    """Run a coroutine in the event loop of a client, and return its future at once."""
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, client.loop.asyncio_loop)
    except RuntimeError:  # the loop has ended
        coroutine.close()
        raise


def synchronous_client(client: Any) -> Any:
    """Return a client that requests can be prepared for: the given one, or the one of Dask.

    Raises
    ------
    ClusterError
        Its connection to the cluster is lost.
    InputError
        There is none, or it is asynchronous.
    """
    client = current_client() if client is None else client
    if client is None or client.asynchronous:
        what = "there is no client" if client is None else "the client is asynchronous"
        raise InputError(
            f"a prepared request needs a synchronous client of a cluster; {what}",
            "connect one: distributed.Client(address), or distributed.Client(processes=False) "
            "for threads of this process",
            option="client",
            suggestions=[Suggestion("client")],
        )
    ensure_connected(client)
    return client
