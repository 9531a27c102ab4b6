"""Lowered requests that run inside another task, as partitions of tables and bags do."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dask.local
import numpy as np
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from dask.task_spec import DataNode, Task, TaskRef

from dask_onnx.collections.prediction_request import Request
from dask_onnx.core.stage_tasks import Hints, Key, hints_of
from dask_onnx.lowering.lower import Feeds, lower
from dask_onnx.runtime.kernel import take_output


@dataclass(frozen=True, slots=True, eq=False)
class InlineGraph:
    """Stages of a request that run one after the other in the calling thread."""

    tasks: Mapping[Key, Task]
    """Tasks of the stages; names of inputs are the keys of their inputs."""
    outputs: Mapping[str, tuple[Key, int | None, int | None]]
    """Value to the key of its task, its position in the task's result, and its batch axis."""
    supplies: tuple[str, ...]
    """Keys of the tasks that bring the model to workers that cannot read it."""
    label: str
    """Label of the stages on Dask's dashboard."""
    input_axes: Mapping[str, int] = field(default_factory=dict)
    """Batch axis of each input that has another one than axis 0."""

    @property
    def hints(self) -> Hints:
        """Facts for Dask's scheduler about the task that runs the stages."""
        return next(hints for task in self.tasks.values() for hints in hints_of(task))

    def run(self, arrays: Mapping[str, Any], supplies: Sequence[Any]) -> dict[str, Any]:
        """Run the stages, and return values by name, with their batch axis first.

        Parameters
        ----------
        arrays : mapping of str to array
            Inputs by name, with their batch axis first.
        supplies : sequence
            Results of the tasks of `supply_collections`.
        """
        placed = {
            name: np.moveaxis(array, 0, self.input_axes[name]) if name in self.input_axes else array
            for name, array in arrays.items()
        }
        given = {**placed, **dict(zip(self.supplies, supplies, strict=True))}
        dsk = {**self.tasks, **{key: DataNode(key, value) for key, value in given.items()}}
        results = dask.local.get_sync(dsk, [key for key, _, _ in self.outputs.values()])
        return {
            name: rows_first(take_output(result, position, axis), axis)
            for (name, (_, position, axis)), result in zip(
                self.outputs.items(), results, strict=True
            )
        }


class InlineTask(abc.ABC):
    """Function of a task that runs an `InlineGraph`; the base class of those of partitions."""

    __slots__ = ()

    @property
    @abc.abstractmethod
    def inline(self) -> InlineGraph:
        """Stages that the function runs."""

    @property
    def __name__(self) -> str:
        """Name of the task on Dask's dashboard."""
        return self.inline.label

    @property
    def hints(self) -> Hints:
        """Facts for Dask's scheduler."""
        return self.inline.hints


def rows_first(value: Any, axis: int | None) -> Any:
    """Return an array, or a list of arrays, with the batch axis as axis 0; views of it."""
    if not axis:
        return value
    if isinstance(value, list):
        return [np.moveaxis(item, axis, 0) for item in value]
    return np.moveaxis(value, axis, 0)


def inline_graph(request: Request, inputs: Sequence[str], values: Sequence[str]) -> InlineGraph:
    """Return a request as a graph that runs in one task.

    Parameters
    ----------
    request : Request
        Checked request.
    inputs : sequence of str
        Names of the inputs that `InlineGraph.run` will be given.
    values : sequence of str
        Outputs that it returns.
    """
    feeds = Feeds(
        {name: (TaskRef(name),) for name in inputs}, request.batch.input_axes, "inline", 1
    )
    lowered = lower(
        request.model, request.stages, feeds, request.options, supplies=request.supplies
    )
    outputs = {}
    for value in values:
        found = lowered.outputs[value]
        key = found.layout.key(found.layer, 0)
        outputs[value] = (key, found.position, request.batch.output_axes[value])
    tasks = () if request.delivery is None else request.delivery.tasks
    labels = [stage.label for stage in request.stages.stages]
    label = labels[0] if len(labels) == 1 else f"{labels[0]}..{labels[-1]}"
    axes = {name: axis for name, axis in request.batch.input_axes.items() if axis}
    return InlineGraph(lowered.tasks, outputs, tuple(tasks), label, axes)


def supply_collections(request: Request) -> list[Delayed]:
    """Return the supplies of `InlineGraph.run`, for Dask to compute before that task."""
    tasks = {} if request.delivery is None else request.delivery.tasks
    return [
        Delayed(key, HighLevelGraph.from_collections(key, {key: task}))
        for key, task in tasks.items()
    ]
