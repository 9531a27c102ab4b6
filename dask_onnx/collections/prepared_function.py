"""Functions that are prepared for many small inputs: pictures through a model, or Python code."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dask.task_spec import Task, TaskRef

from dask_onnx.collections.callable_request import CallableRequest
from dask_onnx.collections.request_steps import Step, submit_graph
from dask_onnx.core.specs import TensorSpec


class PreparedFunction(CallableRequest):
    """A function that is applied to each of many inputs, one task each.

    Parameters
    ----------
    function : callable
        Takes an input, and the results of `supplies`. It is sent with every task.
    client : distributed.Client
        Client of the cluster.
    name : str
        Name of the tasks.
    token : str
        Digest of what the function does.
    inputs : tuple of TensorSpec
        Inputs of the model that it runs, if any.
    supplies : sequence of Future
        Futures of tasks whose results the function needs, such as those that bring a model.
    retries : int
        Times that Dask repeats a task that raised.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        client: Any,
        *,
        name: str,
        token: str,
        inputs: tuple[TensorSpec, ...] = (),
        supplies: Sequence[Any] = (),
        retries: int = 0,
    ) -> None:
        self._function, self._client, self._retries = function, client, retries
        self.name, self.token, self.inputs = name, token, inputs
        self._supplies = tuple(supplies)
        self._references = tuple(TaskRef(future.key) for future in supplies)
        self._request = uuid.uuid4().hex
        self._numbers = itertools.count()

    @property
    def client(self) -> Any:
        """Client of the cluster."""
        return self._client

    @property
    def requests(self) -> frozenset[str]:
        """Tokens with which the names of the request's groups of tasks end."""
        return frozenset({self._request})

    def start(self, frame: Any, *, priority: int = 0) -> Step:
        """Submit the task of one input, and return at once.

        Parameters
        ----------
        frame, priority
            As for `submit`.

        Returns
        -------
        Step
            To the result of the function.
        """
        return self._start(self._function, frame, priority)

    def _start(self, function: Callable[..., Any], argument: Any, priority: int) -> Step:
        """Submit a task that applies a function to one argument and the supplies."""
        key = (f"{self.name}-{self._request}", next(self._numbers))
        task = Task(key, function, argument, *self._references)
        futures = submit_graph(
            self._client,
            {key: task},
            [key],
            retries=self._retries,
            priority=priority,
            size=_array_bytes(argument),
        )
        return Step(futures, _only, self._supplies)


def _array_bytes(value: Any) -> int:
    """Return the bytes of an array, or of the arrays in a list, tuple or mapping."""
    if isinstance(value, Mapping):
        return sum(map(_array_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_array_bytes, value))
    return len(value) if isinstance(value, bytes) else int(getattr(value, "nbytes", 0))


def _only(results: Sequence[Any]) -> Any:
    return results[0]
