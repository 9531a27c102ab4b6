"""Requests for several models that run apart, prepared once and started for many frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask_onnx.collections.callable_request import CallableRequest
from dask_onnx.collections.prepared_request import PreparedRequest
from dask_onnx.collections.request_checks import resolve_feeds
from dask_onnx.collections.request_steps import Step
from dask_onnx.core.specs import TensorSpec


class CompositeRequest(CallableRequest):
    """Request for several models, one of each, whose results become one.

    Parameters
    ----------
    name, token : str
        Those of the composite.
    requests : mapping of str to PreparedRequest
        Request of each model that has outputs that are wanted.
    inputs : tuple of TensorSpec
        Inputs of the composite.
    outputs : tuple of str
        Names of the outputs of a result, in their order.
    is_bare : bool
        True if a result is the one output rather than a mapping.
    """

    def __init__(
        self,
        name: str,
        token: str,
        requests: Mapping[str, PreparedRequest],
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[str, ...],
        *,
        is_bare: bool,
    ) -> None:
        self.name, self.token, self.outputs = name, token, outputs
        self._requests, self._all, self._is_bare = dict(requests), inputs, is_bare
        needed = {spec.name for request in requests.values() for spec in request.inputs}
        self.inputs = tuple(spec for spec in inputs if spec.name in needed)

    @property
    def client(self) -> Any:
        """Client of the cluster."""
        return next(iter(self._requests.values())).client

    @property
    def requests(self) -> frozenset[str]:
        """Tokens with which the names of the groups of tasks of all models end."""
        return frozenset().union(*(request.requests for request in self._requests.values()))

    def start(self, frame: Any, *, priority: int = 0) -> Step:
        """Submit the tasks of all models for one input, and return at once.

        Parameters
        ----------
        frame, priority
            As for `submit`.

        Raises
        ------
        InputError
            The input does not fit a model; nothing is left on the cluster.
        """
        feeds = resolve_feeds(frame, self._all, [spec.name for spec in self.inputs])
        steps: list[Step] = []
        try:
            for request in self._requests.values():
                own = {spec.name: feeds[spec.name] for spec in request.inputs}
                steps.append(request.start(own, priority=priority))
        except BaseException:
            for step in steps:
                step.release()
            raise
        futures = tuple(future for step in steps for future in step.futures)
        held = tuple(future for step in steps for future in step.held)
        return Step(futures, _Join(tuple(steps), self.outputs, self._is_bare), held)


@dataclass(frozen=True, slots=True)
class _Join:
    """From the values of all futures to the result of the composite."""

    steps: tuple[Step, ...]
    outputs: tuple[str, ...]
    is_bare: bool

    def __call__(self, values: Sequence[Any]) -> Any:
        found: dict[str, Any] = {}
        start = 0
        for step in self.steps:
            found |= step.then(values[start : start + len(step.futures)])
            start += len(step.futures)
        result = {name: found[name] for name in self.outputs}
        return result[self.outputs[0]] if self.is_bare else result
