"""Tasks of a request as a template: lowered once, and filled in with keys and values per input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dask.task_spec import Task, TaskRef

from dask_onnx.collections.output_forms import OutputForm
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import Wanted
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import Key, StageTask
from dask_onnx.lowering.lower import Feeds, Lowered, lower
from dask_onnx.runtime.kernel import run_stage, take_output
from dask_onnx.runtime.stage_calls import StageCall


@dataclass(frozen=True, slots=True)
class TaskValue:
    """A value that a task has left on the cluster, as an input of the next request."""

    key: Key
    """Key of the task."""
    position: int | None
    """Position of the value in the task's result; None if it is the result."""
    shape: tuple[int, ...]
    """Shape that the value is expected to have."""
    dtype: Any
    """Its dtype."""


@dataclass(frozen=True, slots=True)
class StageTemplate:
    """The task of one stage, but for its key and the values of its inputs."""

    label: str
    """Name of the stage on the dashboard."""
    call: StageCall
    """Call that every task of the stage carries."""
    arguments: tuple[str | int, ...]
    """For each argument the name of an input, or the position of an earlier stage."""
    supplies: tuple[Key, ...]
    """Keys of the tasks that bring the model to the worker."""


@dataclass(frozen=True, slots=True)
class OutputPlace:
    """Place of an output's value among the results of a request's tasks."""

    stage: int
    """Position of the stage that computes it."""
    position: int | None
    """Position in the result of the stage; None if it is the result."""
    axis: int | None
    """Batch axis of the output."""


@dataclass(frozen=True, slots=True)
class FrameTemplate:
    """Tasks of one request as a template, for inputs of one signature."""

    stages: tuple[StageTemplate, ...]
    """Stages in an order in which they can run."""
    outputs: Mapping[str, OutputPlace]
    """Value to its place."""
    specs: tuple[TensorSpec, ...]
    """Inputs that are fed."""
    retries: int
    """Times that Dask repeats a task that raised."""

    def keys(self, request: str, number: int) -> list[Key]:
        """Return the keys of the stages' tasks for one input.

        Parameters
        ----------
        request : str
            Token of the prepared request, unique on the cluster.
        number : int
            Number of the input.
        """
        return [(f"{stage.label}-{request}", number) for stage in self.stages]

    def tasks(self, keys: Sequence[Key], feeds: Mapping[str, Any]) -> dict[Key, Task]:
        """Return the tasks for one input.

        Parameters
        ----------
        keys : sequence of key
            Result of `keys`.
        feeds : mapping of str to array or TaskValue
            Inputs by name, converted to the model's types.
        """
        return {
            key: self._task(stage, key, keys, feeds)
            for stage, key in zip(self.stages, keys, strict=True)
        }

    def _task(
        self, stage: StageTemplate, key: Key, keys: Sequence[Key], feeds: Mapping[str, Any]
    ) -> Task:
        arguments: list[Any] = []
        picked: dict[int, int | None] = {}
        for place, source in enumerate(stage.arguments):
            value = TaskRef(keys[source]) if isinstance(source, int) else feeds[source]
            if isinstance(value, TaskValue):
                picked[place] = value.position
                value = TaskRef(value.key)
            arguments.append(value)
        call = stage.call
        if any(position is not None for position in picked.values()):
            picks = tuple((i, picked.get(i, position)) for i, position in call.picks)
            call = replace(call, picks=picks)
        return StageTask(key, run_stage, call, *arguments, *map(TaskRef, stage.supplies))

    def takes(
        self, values: Sequence[str], keys: Sequence[Key], request: str, number: int
    ) -> dict[Key, Task]:
        """Return a task for each of some values, whose result is that value alone.

        Parameters
        ----------
        values : sequence of str
            Outputs.
        keys, request, number
            As for `keys` and `tasks`.
        """
        tasks: dict[Key, Task] = {}
        for place, value in enumerate(values):
            at = self.outputs[value]
            key = (f"{self.stages[at.stage].label}_output_{place}-{request}", number)
            tasks[key] = Task(key, take_output, TaskRef(keys[at.stage]), at.position, at.axis)
        return tasks

    def take(self, value: str, result: Any) -> Any:
        """Return an output from the result of its stage's task."""
        at = self.outputs[value]
        return take_output(result, at.position, at.axis)

    def result_stages(self, values: Sequence[str]) -> list[int]:
        """Return the positions of the stages that compute some values, each once."""
        return list(dict.fromkeys(self.outputs[value].stage for value in values))


@dataclass(frozen=True, slots=True)
class ResultAssembly:
    """Assembly of a caller's result from the results of a request's tasks."""

    template: FrameTemplate
    wanted: Wanted
    """Outputs as the caller asked for them."""
    forms: Mapping[str, OutputForm]
    """Output to the values that hold it."""
    mask: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None
    """Function that masks rows of values by name; None for inputs without masks."""

    @property
    def values(self) -> list[str]:
        """Values that the result is made of."""
        return list(dict.fromkeys(v for form in self.forms.values() for v in form.values))

    def __call__(self, results: Sequence[Any]) -> Any:
        """Return the result from those of `FrameTemplate.result_stages`."""
        stages = self.template.result_stages(self.values)
        by_stage = dict(zip(stages, results, strict=True))
        outputs = self.template.outputs
        return self.of_values(
            [self.template.take(value, by_stage[outputs[value].stage]) for value in self.values]
        )

    def of_values(self, values: Sequence[Any]) -> Any:
        """Return the result from the values that it is made of."""
        found: Mapping[str, Any] = dict(zip(self.values, values, strict=True))
        if self.mask is not None:
            found = self.mask(found)
        return self.wanted.shape_result(
            {name: form.of_arrays(found) for name, form in self.forms.items()}
        )


@dataclass(frozen=True, slots=True)
class _Fed:
    """Mark of an input's value in the arguments of a lowered task."""

    name: str


def frame_template(
    request: Request, axes: Mapping[str, int | None], rows: float | None
) -> FrameTemplate:
    """Return the tasks of a request as a template. Nothing runs.

    Parameters
    ----------
    request : Request
        Checked request.
    axes : mapping of str to int or None
        Input to the axis that its rows are split on.
    rows : float or None
        Rows of an input.
    """
    specs = tuple(request.stages.inputs)
    marks = {spec.name: [_Fed(spec.name)] for spec in specs}
    feeds = Feeds(marks, axes, "frame", 1, rows)
    lowered = lower(request.model, request.stages, feeds, request.options, None, request.supplies)
    return FrameTemplate(
        tuple(_stages(lowered)),
        {
            name: OutputPlace(
                list(lowered.layers).index(place.layer),
                place.position,
                request.batch.output_axes[name],
            )
            for name, place in lowered.outputs.items()
        },
        specs,
        request.options.retries,
    )


def _stages(lowered: Lowered) -> Iterator[StageTemplate]:
    places: dict[Key, int] = {}
    for number, layer in enumerate(lowered.layers.values()):
        ((key, task),) = layer.items()
        places[key] = number
        call, *arguments = task.args
        count = len(arguments) - call.supplies
        yield StageTemplate(
            call.stage.label,
            call,
            tuple(a.name if isinstance(a, _Fed) else places[a.key] for a in arguments[:count]),
            tuple(supply.key for supply in arguments[count:]),
        )
