"""Functions that are prepared for many small inputs: pictures through a model, or Python code."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future as LocalFuture
from typing import Any

from dask.task_spec import Task, TaskRef

from dask_onnx.collections.request_steps import (
    Step,
    finish_step,
    start_in_background,
    submit_graph,
)
from dask_onnx.core.specs import TensorSpec


class PreparedFunction:
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

    def __call__(self, frame: Any) -> Any:
        """Apply the function to one input, and return the result.

        Raises
        ------
        DaskOnnxError
            Those of the function.

        Examples
        --------
        >>> result = image_model.prepare(client)(picture)  # doctest: +SKIP
        """
        return self.submit(frame).result()

    def submit(self, frame: Any, *, priority: int = 0) -> LocalFuture[Any]:
        """Start the function on one input, and return a future of the result at once.

        Parameters
        ----------
        frame : object
            The input.
        priority : int
            Dask's priority; work of a larger one runs first.

        Returns
        -------
        concurrent.futures.Future

        Examples
        --------
        >>> futures = [request.submit(picture) for picture in pictures]  # doctest: +SKIP
        """
        step = self.start(frame, priority=priority)
        return start_in_background(self._client, finish_step(self._client, step))

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
        key = (f"{self.name}-{self._request}", next(self._numbers))
        task = Task(key, self._function, frame, *self._references)
        futures = submit_graph(
            self._client,
            {key: task},
            [key],
            retries=self._retries,
            priority=priority,
            size=int(getattr(frame, "nbytes", 0)),
        )
        return Step(futures, _only, self._supplies)


def _only(results: Sequence[Any]) -> Any:
    return results[0]
