"""From a stage graph to Dask tasks: the only place where planning meets the runtime."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from dask.task_spec import Task, TaskRef

from dask_onnx.cluster.barriers import BarrierTasks
from dask_onnx.cluster.placement import Placement
from dask_onnx.core.specs import SessionSpec
from dask_onnx.core.stage_tasks import Hints, Key, StageTask, digest
from dask_onnx.modelio.onnx_model import ModelRef
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import Stage, StageGraph
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.codec import Lossy
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.runtime.kernel import StageCall, StageRef, as_ranges, own_versions, run_stage

_NAME_LENGTH = 24
"""How much of an output's name a key shows."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the chunk number stands in a task's key: an array's keys have a place for each axis."""

    ndim: int = 1
    axis: int = 0

    def key(self, name: str, chunk: int) -> Key:
        return (name, *(chunk if i == self.axis else 0 for i in range(self.ndim)))


@dataclass(frozen=True, slots=True)
class Feeds:
    """The inputs of a lowered graph."""

    references: Mapping[str, Sequence[Any]]
    """Input to one argument for each chunk (TaskRef, or a value); one alone is given to all."""
    axes: Mapping[str, int | None]
    """Input to its batch axis."""
    token: str
    """Content of the inputs: the same request has the same keys."""
    chunks: int
    rows: float | None = None
    """Of a chunk, as far as that is known before it is there."""

    def argument(self, name: str, chunk: int) -> Any:
        references = self.references[name]
        return references[chunk] if len(references) > 1 else references[0]


@dataclass(frozen=True, slots=True)
class Options:
    """What may differ between two runs of one stage graph."""

    session: SessionSpec
    batching: Batching
    output_axes: Mapping[str, int | None]
    """Output to its batch axis."""
    retries: int
    lossy: Lossy | None = None
    """What may be lost of values between stages, on slow links."""
    always_lossy: bool = False
    custom: CustomKernels | None = None
    """The caller's kernels."""
    salt: str = ""
    """Tells apart requests whose results differ though they ask for the same."""
    placement: Placement | None = None
    """Which share of the workers each stage is for; None for all."""
    schedule: Schedule | None = None
    """What bounds the chunks that are in flight; None for nothing."""
    rows: int | None = None
    """Rows that the stages' costs are for; None where no input has rows."""
    expects: bool = False
    """The costs are good enough to tell Dask's scheduler."""


@dataclass(frozen=True, slots=True)
class Output:
    """Where an output is among the tasks."""

    layer: str
    layout: Layout
    position: int | None
    """Its place in the task's result; None if the result is the output."""
    is_apart: bool
    """The result may be `Runs`, since other stages read it too."""

    @property
    def is_bare(self) -> bool:
        """The task's result is the output as the caller wants it."""
        return self.position is None and not self.is_apart

    def own_layer(self, name: str) -> str:
        """What to call the layer that takes the output out of the task's result."""
        label = self.layer.partition("-")[0]
        readable = re.sub(r"[^0-9A-Za-z_.]", "_", name)[-_NAME_LENGTH:]
        return f"{label}_{readable}-{digest(self.layer, name)}"


@dataclass(frozen=True, slots=True)
class Lowered:
    """The tasks of a stage graph, by layer, and where its outputs are among them."""

    layers: Mapping[str, Mapping[Key, Task]]
    dependencies: Mapping[str, frozenset[str]]
    """Layer to the layers that it needs."""
    outputs: Mapping[str, Output]
    barrier_tasks: BarrierTasks | None = None
    """What the schedule adds to the tasks, through which layers need each other in circles."""

    @property
    def name(self) -> str:
        """Of all tasks together, where they must be one layer: the last stage's."""
        return list(self.layers)[-1]

    def layer_of(self, output: Output) -> str:
        """The layer that an output's tasks are in."""
        return output.layer if self.barrier_tasks is None else self.name

    @property
    def stage_tasks(self) -> dict[Key, Task]:
        """Without gates; in an order in which they can run."""
        return {key: task for layer in self.layers.values() for key, task in layer.items()}

    @property
    def tasks(self) -> dict[Key, Task]:
        return (
            self.stage_tasks
            if self.barrier_tasks is None
            else self.barrier_tasks.apply(self.stage_tasks)
        )


def stage_ref(model: ModelRef, stage: Stage, custom: CustomKernels | None = None) -> StageRef:
    """What a task carries of a stage; `custom` are the caller's kernels."""
    custom = custom if stage.kernel == "custom" else None
    nodes = as_ranges(stage.nodes)
    specs = [
        [(spec.name, str(spec.dtype), spec.shape, spec.kind) for spec in side]
        for side in (stage.inputs, stage.outputs)
    ]
    return StageRef(
        model=model,
        label=stage.label,
        nodes=nodes,
        inputs=stage.inputs,
        outputs=stage.outputs,
        token=digest(model.token, nodes, specs, stage.kernel, custom and custom.token),
        versions=own_versions(),
        kernel=stage.kernel,
        custom=custom,
    )


def lower(
    model: ModelRef,
    stages: StageGraph,
    feeds: Feeds,
    options: Options,
    layouts: Mapping[str, Layout] | None = None,
    supplies: Sequence[Sequence[Key]] | None = None,
) -> Lowered:
    """One task for each stage and chunk.

    Parameters
    ----------
    layouts : mapping of output to Layout
        Where an output is the only one of its stage, its tasks' keys are laid out like this, so
        that a dask.array can use them as they are.
    """
    return _Lowering(model, stages, feeds, options, layouts or {}, supplies).run()


class _Lowering:
    """One call of `lower`, with the look-ups that every stage needs."""

    def __init__(
        self,
        model: ModelRef,
        stages: StageGraph,
        feeds: Feeds,
        options: Options,
        layouts: Mapping[str, Layout],
        supplies: Sequence[Sequence[Key]] | None,
    ) -> None:
        self.supplies = supplies or [()] * len(stages.stages)
        self.model, self.stages, self.feeds, self.options = model, stages, feeds, options
        self.layouts = [_layout(stage, layouts) for stage in stages.stages]
        self.calls: list[StageCall] = []
        self.names: list[str] = []
        self.final = {spec.name for spec in stages.outputs}
        self.travels = {edge.value for edge in stages.edges}
        self.made = {
            spec.name: (number, position if len(stage.outputs) > 1 else None)
            for number, stage in enumerate(stages.stages)
            for position, spec in enumerate(stage.outputs)
        }

    def run(self) -> Lowered:
        layers: dict[str, Mapping[Key, Task]] = {}
        dependencies: dict[str, frozenset[str]] = {}
        for number, stage in enumerate(self.stages.stages):
            call, sources = self._call(number, stage, len(self.supplies[number]))
            name = f"{stage.label}-{self._token(call, sources)}"
            self.names.append(name)
            tasks = (self._task(number, call, sources, i) for i in range(self.feeds.chunks))
            layers[name] = {task.key: task for task in tasks}
            dependencies[name] = frozenset(self.names[s] for s in sources if isinstance(s, int))
        outputs = {name: self._output(name) for name in self.final}
        return Lowered(layers, dependencies, outputs, self._barrier_tasks(layers))

    def _barrier_tasks(self, layers: Mapping[str, Mapping[Key, Task]]) -> BarrierTasks | None:
        schedule, count = self.options.schedule, len(self.names)
        if schedule is None or count < 2 or not schedule.binds(count, self.feeds.chunks):
            return None
        places = {
            key: (chunk, number)
            for number, name in enumerate(self.names)
            for chunk, key in enumerate(layers[name])
        }
        return BarrierTasks(schedule, count, places, digest(self.names, schedule))

    def _token(self, call: StageCall, sources: Sequence[int | str]) -> str:
        # Where its inputs come from is part of a key: another cut before the stage is other tasks,
        # and may be other last digits.
        return digest(
            [self.names[source] if isinstance(source, int) else source for source in sources],
            call.stage.token,
            call.session,
            call.batching,
            call.row_axes,
            call.join_axes,
            call.lossy,
            call.always_lossy,
            self.feeds.token,
            self.options.salt,
        )

    def _task(self, number: int, call: StageCall, sources: Sequence[int | str], chunk: int) -> Task:
        arguments = (
            TaskRef(self.layouts[source].key(self.names[source], chunk))
            if isinstance(source, int)
            else self.feeds.argument(source, chunk)
            for source in sources
        )
        key = self.layouts[number].key(self.names[number], chunk)
        return StageTask(key, run_stage, call, *arguments, *map(TaskRef, self.supplies[number]))

    def _call(self, number: int, stage: Stage, supplies: int) -> tuple[StageCall, list[int | str]]:
        """The call of a stage, and for each argument the stage or the input that it is."""
        arguments: dict[int | str, int] = {}
        picks = []
        for spec in stage.inputs:
            source: int | str
            position: int | None
            if spec.name in self.feeds.references:
                source, position = spec.name, None
            else:
                source, position = self.made[spec.name]
            picks.append((arguments.setdefault(source, len(arguments)), position))
        call = StageCall(
            stage=stage_ref(self.model, stage, self.options.custom),
            session=self.options.session,
            picks=tuple(picks),
            row_axes=tuple(
                self.feeds.axes.get(s.name) if s.name in self.feeds.references else None
                for s in stage.inputs
            ),
            batching=self.options.batching,
            join_axes=tuple(self._join_axis(spec.name) for spec in stage.outputs),
            lossy=self.options.lossy,
            always_lossy=self.options.always_lossy,
            hints=self._hints(number, stage),
            supplies=supplies,
        )
        return call, list(arguments)

    def _hints(self, number: int, stage: Stage) -> Hints:
        hints = Hints(
            self.options.retries,
            self.request,
            stage.cost.seconds * self.scale,
            self.stages.seconds_left[number],
        )
        if self.options.placement is None:
            return hints
        worker_group = self.options.placement.worker_groups[number]
        return replace(
            hints,
            worker_group=(self.plan, worker_group),
            is_loose=self.options.placement.allow_other_workers,
            group_bytes=self.group_bytes[worker_group],
        )

    @cached_property
    def group_bytes(self) -> Mapping[int, int]:
        """WorkerGroup to the weights of all its stages."""
        held: defaultdict[int, int] = defaultdict(int)
        worker_groups = (
            () if self.options.placement is None else self.options.placement.worker_groups
        )
        for stage, worker_group in zip(self.stages.stages, worker_groups, strict=True):
            held[worker_group] += stage.cost.parameter_bytes
        return held

    @cached_property
    def plan(self) -> str:
        """The same for every request of a plan: a worker keeps the worker groups that it has."""
        labels = [stage.label for stage in self.stages.stages]
        return digest(self.model.token, labels, self.options.placement)

    @cached_property
    def request(self) -> str:
        return digest(self.plan, self.feeds.token, self.options.salt)

    @cached_property
    def scale(self) -> float:
        """From the run that costs are for to a whole chunk; 0 if its rows are not known, or the
        costs not to be trusted: clusters that scale would go by them."""
        if not self.options.expects:
            return 0.0
        if self.options.rows is None:
            return 1.0
        return (self.feeds.rows or 0.0) / self.options.rows

    def _join_axis(self, value: str) -> int | Literal["apart"] | None:
        if value in self.travels or value not in self.final:
            return "apart"
        return self.options.output_axes.get(value)

    def _output(self, value: str) -> Output:
        number, position = self.made[value]
        is_apart = value in self.travels
        return Output(self.names[number], self.layouts[number], position, is_apart)


def _layout(stage: Stage, layouts: Mapping[str, Layout]) -> Layout:
    if len(stage.outputs) == 1:
        return layouts.get(stage.outputs[0].name, Layout())
    return Layout()
