"""State of a stream: outputs that are the next frame's inputs, kept on the cluster between frames.

A frame's task reads the state where the task before it has left it. Dask can run a task again only
as long as it knows all tasks before; so that this chain does not grow without end, the state is
copied to the client every so many frames, and the next frame starts a new chain from the copy.
After the death of a worker, Dask runs the frames since that copy again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dask_onnx.collections.frame_tasks import TaskValue
from dask_onnx.collections.linked_requests import LinkedStart
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.runtime.input_values import as_input

SMALL_BYTES = 64 * 1024
"""Bytes up to which the state may travel to the client with each result, which saves tasks."""


@dataclass(frozen=True, slots=True)
class _After:
    """State after a frame that has started."""

    values: Mapping[str, Any]
    """Input to its value for the next frame: an array, or a `TaskValue`."""
    futures: tuple[Any, ...]
    """Futures that keep the values on the cluster."""


@dataclass(slots=True)
class StateKeeper:
    """State of one stream, between the frame that started last and the one that starts next."""

    links: Mapping[str, str]
    """Output to the input that it is fed to."""
    every: int
    """Frames after which the state is copied to the client."""
    current: Mapping[str, Any]
    """Input to its value for the next frame."""
    checkpoints: int = 0
    """Copies that have arrived at the client."""
    _base: Mapping[str, Any] = field(default_factory=dict)
    """Values before the first frame of `_after`."""
    _after: dict[int, _After] = field(default_factory=dict)
    """State after each frame that has started, from the last finished one on."""
    _since: int = 0
    """Frames that have started since the last copy."""
    _awaited: int | None = None
    """Frame after which the state is being copied; the next one waits for that."""

    def __post_init__(self) -> None:
        self._base = self.current

    @property
    def is_waiting(self) -> bool:
        """True if no frame can start until a copy has arrived."""
        return self._awaited is not None

    @property
    def is_due(self) -> bool:
        """True if the state after the next frame is to be copied."""
        return self._since + 1 >= self.every

    @property
    def is_small(self) -> bool:
        """True if the state may travel with results."""
        return sum(_bytes_of(value) for value in self.current.values()) <= SMALL_BYTES

    def started(self, index: int, linked: LinkedStart) -> None:
        """Take the outputs of a frame that has started as the state of the next one."""
        values = {}
        for output, name in self.links.items():
            key, position = linked.places[output]
            before = self.current[name]
            values[name] = TaskValue(key, position, before.shape, before.dtype)
        if self.is_due:
            self._awaited = index
        self._since += 1
        self._after[index] = _After(values, linked.futures)
        self.current = values

    def finished(self, index: int, state: Mapping[str, Any]) -> None:
        """Note that a frame is done, with the state after it if that was to be copied."""
        for old in [each for each in self._after if each < index]:
            del self._after[old]
        if index == self._awaited:
            self.current = {name: state[output] for output, name in self.links.items()}
            self._after[index] = _After(self.current, ())
            self._since, self._awaited = 0, None
            self.checkpoints += 1

    def release(self) -> None:
        """Give up the state: nothing of it stays on the cluster."""
        self._after.clear()

    def rewind(self, index: int) -> None:
        """Go back to the state before a frame that failed; later frames have to start again."""
        gone = [each for each in self._after if each >= index]
        for each in gone:
            del self._after[each]
        self._since -= len(gone)
        if self._awaited is not None and self._awaited >= index:
            self._awaited = None
        last = next(reversed(self._after.values()), None)
        self.current = self._base if last is None else last.values


def initial_state(
    links: Mapping[str, str], initial: Mapping[str, Any], inputs: Mapping[str, TensorSpec]
) -> dict[str, Any]:
    """Return the state before the first frame, by input.

    Parameters
    ----------
    links : mapping of str to str
        Output to input.
    initial : mapping of str to array_like
        Values by input; zeros for the others.
    inputs : mapping of str to TensorSpec
        Inputs of the model by name.

    Raises
    ------
    InputError
        A value has no place, a wrong shape or dtype; or it is missing and the model does not tell
        its shape.
    """
    unknown = [name for name in initial if name not in links.values()]
    if unknown:
        raise InputError(
            f"initial has a value for {unknown[0]!r}, which is no input with a state",
            f"name one of {', '.join(map(repr, links.values()))}",
            option="initial",
            input=unknown[0],
        )
    return {
        name: _checked(initial[name], inputs[name]) if name in initial else _zeros(inputs[name])
        for name in links.values()
    }


def _checked(value: Any, spec: TensorSpec) -> np.ndarray:
    array: np.ndarray = as_input(value, spec)
    sizes = spec.shape
    fits = sizes is None or (
        array.ndim == len(sizes)
        and all(
            not isinstance(size, int) or size == own
            for size, own in zip(sizes, array.shape, strict=True)
        )
    )
    if not fits:
        raise InputError(
            f"the initial state {spec.name!r} has shape {array.shape}; the model takes {spec}",
            "give an array of that shape",
            option="initial",
            input=spec.name,
            numbers={"rank": array.ndim, "expected_rank": spec.rank or 0},
        )
    return array


def _zeros(spec: TensorSpec) -> np.ndarray:
    sizes = [size for size in spec.shape or () if isinstance(size, int)]
    if spec.dtype is None or spec.shape is None or len(sizes) < len(spec.shape):
        raise InputError(
            f"the state {spec} has no initial value, and its shape is open",
            f"give one: initial={{{spec.name!r}: numpy.zeros(...)}}",
            option="initial",
            input=spec.name,
            suggestions=[Suggestion("initial")],
        )
    return np.zeros(sizes, spec.dtype)


def _bytes_of(value: Any) -> int:
    return int(np.prod(value.shape, dtype=np.int64)) * int(np.dtype(value.dtype).itemsize)
