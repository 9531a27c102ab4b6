"""`CallableRequest`: the base class of prepared requests, which a caller calls or submits to."""

from __future__ import annotations

import abc
from concurrent.futures import Future as LocalFuture
from typing import Any

from dask_onnx.collections.request_steps import Step, finish_step, start_in_background


class CallableRequest(abc.ABC):
    """A request that is prepared once, and started for each of many inputs.

    Subclasses define `client` and `start`.
    """

    @property
    @abc.abstractmethod
    def client(self) -> Any:
        """Client of the cluster."""

    @abc.abstractmethod
    def start(self, frame: Any, *, priority: int = 0) -> Step:
        """Submit the tasks of one input, and return at once.

        Parameters
        ----------
        frame, priority
            As for `submit`.

        Returns
        -------
        Step
            Futures of the last tasks, and the function that makes a result of their values.

        Raises
        ------
        InputError
            The input does not fit the model.
        """

    def __call__(self, frame: Any) -> Any:
        """Start one input, wait for it, and return its result.

        Parameters
        ----------
        frame : array_like, mapping of str to array_like, or picture
            The one input, or inputs by name, in memory; of an `ImageModel` a picture.

        Returns
        -------
        ndarray, list, dict of str to these, or ImageResult
            As `predict` of the model returns it.

        Raises
        ------
        InputError
            The input does not fit the model.
        StageError, StoreError
            See `Model.predict`.

        Examples
        --------
        >>> request = model.prepare(client)
        >>> scores = request(frame)
        """
        return self.submit(frame).result()

    def submit(self, frame: Any, *, priority: int = 0) -> LocalFuture[Any]:
        """Start one input, and return a future of its result at once.

        Parameters
        ----------
        frame
            As for a call.
        priority : int
            Dask's priority; work of a larger one runs first.

        Returns
        -------
        concurrent.futures.Future
            Future of the standard library; `asyncio.wrap_future` makes it awaitable.

        Raises
        ------
        InputError
            The input does not fit the model.

        Examples
        --------
        >>> futures = [request.submit(frame) for frame in frames]
        """
        step = self.start(frame, priority=priority)
        return start_in_background(self.client, finish_step(self.client, step))
