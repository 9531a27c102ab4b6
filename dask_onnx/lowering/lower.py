"""Lowering of a stage graph to Dask tasks: the only place where planning meets the runtime."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from dask.task_spec import Task, TaskRef

from dask_onnx.cluster.barriers import BarrierTasks
from dask_onnx.cluster.placement import Placement
from dask_onnx.core.stage_tasks import Hints, Key, StageTask, digest
from dask_onnx.core.tracing import current_carrier
from dask_onnx.lowering.lowered_plans import note_plan
from dask_onnx.modelio.onnx_model import ModelRef
from dask_onnx.planning.schedule import Schedule
from dask_onnx.planning.stages import Stage, StageGraph
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.runtime.kernel import run_stage
from dask_onnx.runtime.package_versions import installed_versions
from dask_onnx.runtime.stage_calls import RunAxes, StageCall
from dask_onnx.runtime.stage_options import StageOptions
from dask_onnx.runtime.stage_refs import StageRef, as_ranges

_NAME_LENGTH = 24
"""Last characters of an output's name that a key shows."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Position of the chunk number in a task's key.

    Keys of an array have a number for each axis.
    """

    ndim: int = 1
    """Number of axes."""
    axis: int = 0
    """Axis that is chunked; -1 if none is."""

    def key(self, name: str, chunk: int) -> Key:
        """Return the key of a chunk in a layer."""
        return (name, *(chunk if i == self.axis else 0 for i in range(self.ndim)))


@dataclass(frozen=True, slots=True)
class Feeds:
    """Inputs of a lowered graph."""

    references: Mapping[str, Sequence[Any]]
    """Input to one argument (TaskRef, or a value) for each chunk, or to one for all chunks."""
    axes: Mapping[str, int | None]
    """Input to its batch axis."""
    token: str
    """Digest of the content of the inputs, so that equal requests have equal keys."""
    chunks: int
    """Number of chunks."""
    rows: float | None = None
    """Rows of the largest chunk; None if unknown while the graph is built."""

    def argument(self, name: str, chunk: int) -> Any:
        """Return the argument of a task for an input and a chunk."""
        references = self.references[name]
        return references[chunk] if len(references) > 1 else references[0]


@dataclass(frozen=True, slots=True)
class LoweringOptions:
    """Options of one request: of the runs of its stages, and of their tasks in Dask."""

    run: StageOptions
    """Options that go into every task."""
    output_axes: Mapping[str, int | None]
    """Output to its batch axis."""
    retries: int
    """Times that Dask repeats a task that raised."""
    edge_axes: Mapping[str, int | None] | None = None
    """Value between stages to its batch axis; None if not all of them are proven to have rows that
    may be cut apart."""
    custom: CustomKernels | None = None
    """Custom kernels."""
    salt: str = ""
    """Part of all keys that keeps equal requests apart if their results differ by chance."""
    placement: Placement | None = None
    """Worker group of each stage; None if every worker may run every stage."""
    schedule: Schedule | None = None
    """Limit on the chunks in flight; None for no limit."""
    rows: int | None = None
    """Rows that the stages' costs are predicted for; None if no input has rows."""
    expects: bool = False
    """True if costs are precise enough for Dask's scheduler to rely on."""
    model_name: str = ""
    """Name of the model, for people who look at the cluster."""
    input_axes: Mapping[str, int | None] = field(default_factory=dict)
    """Input to its batch axis, by which rows are counted, also where they are not split."""


@dataclass(frozen=True, slots=True)
class Output:
    """Location of an output among the tasks."""

    layer: str
    """Name of the layer of its tasks."""
    layout: Layout
    """Layout of their keys."""
    position: int | None
    """Position of the output in the task's result; None if the result is the output."""
    may_be_split: bool
    """True if the result may be `MicroBatches`, since other stages read it too."""

    @property
    def is_bare(self) -> bool:
        """True if the task's result is the output in the form that the caller wants."""
        return self.position is None and not self.may_be_split

    def own_layer(self, name: str) -> str:
        """Return the name of a layer whose tasks select the output from the results.

        Parameters
        ----------
        name : str
            Name of the output.
        """
        label = self.layer.partition("-")[0]
        readable = re.sub(r"[^0-9A-Za-z_.]", "_", name)[-_NAME_LENGTH:]
        return f"{label}_{readable}-{digest(self.layer, name)}"


@dataclass(frozen=True, slots=True)
class Lowered:
    """Tasks of a stage graph by layer, and the locations of its outputs."""

    layers: Mapping[str, Mapping[Key, Task]]
    """Name of each layer, one for each stage, to its tasks."""
    dependencies: Mapping[str, frozenset[str]]
    """Layer to the layers that it depends on."""
    outputs: Mapping[str, Output]
    """Output to its location."""
    barrier_tasks: BarrierTasks | None = None
    """Barriers of the schedule. With them layers depend on each other in cycles, so that all tasks
    must be one layer."""

    @property
    def name(self) -> str:
        """Name of the layer of all tasks, where they must be one layer: that of the last stage."""
        return list(self.layers)[-1]

    def layer_of(self, output: Output) -> str:
        """Return the name of the layer that holds an output's tasks."""
        return output.layer if self.barrier_tasks is None else self.name

    @property
    def stage_tasks(self) -> dict[Key, Task]:
        """Tasks of all stages without barriers, in an order in which they can run."""
        return {key: task for layer in self.layers.values() for key, task in layer.items()}

    @property
    def tasks(self) -> dict[Key, Task]:
        """Tasks of all stages, with barriers."""
        tasks = self.stage_tasks
        return tasks if self.barrier_tasks is None else self.barrier_tasks.apply(tasks)


def stage_ref(model: ModelRef, stage: Stage, custom: CustomKernels | None = None) -> StageRef:
    """Return the reference of a stage that its tasks carry.

    Parameters
    ----------
    model : ModelRef
        Reference of the model.
    stage : Stage
        Stage of its graph.
    custom : CustomKernels, optional
        Custom kernels of the model.
    """
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
        versions=installed_versions(),
        kernel=stage.kernel,
        custom=custom,
    )


def lower(
    model: ModelRef,
    stages: StageGraph,
    feeds: Feeds,
    options: LoweringOptions,
    layouts: Mapping[str, Layout] | None = None,
    supplies: Sequence[Sequence[Key]] | None = None,
) -> Lowered:
    """Return one task for each stage and chunk.

    Parameters
    ----------
    model : ModelRef
        Reference of the model.
    stages : StageGraph
        Stages to run.
    feeds : Feeds
        Inputs of the graph.
    options : LoweringOptions
        Options of the request.
    layouts : mapping of str to Layout, optional
        Output to the layout of its tasks' keys, so that a dask.array can use them unchanged.
        Applies to outputs that are their stage's only one.
    supplies : sequence of sequence of str, optional
        For each stage the keys of tasks that bring its weights to the worker.

    Returns
    -------
    Lowered
        Layers of tasks; nothing has run.
    """
    return _Lowering(model, stages, feeds, options, layouts or {}, supplies).run()


class _Lowering:
    """State of one call of `lower`: lookup tables that the lowering of each stage needs."""

    def __init__(
        self,
        model: ModelRef,
        stages: StageGraph,
        feeds: Feeds,
        options: LoweringOptions,
        layouts: Mapping[str, Layout],
        supplies: Sequence[Sequence[Key]] | None,
    ) -> None:
        self.supplies = supplies or [()] * len(stages.stages)
        self.model, self.stages, self.feeds, self.options = model, stages, feeds, options
        self.layouts = [_layout(stage, layouts) for stage in stages.stages]
        self.trace = current_carrier()
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
        tokens = []
        for number, stage in enumerate(self.stages.stages):
            call, sources = self._call(number, stage, len(self.supplies[number]))
            name = f"{stage.label}-{self._token(call, sources)}"
            self.names.append(name)
            tokens.append(call.stage.token)
            tasks = (self._task(number, call, sources, i) for i in range(self.feeds.chunks))
            layers[name] = {task.key: task for task in tasks}
            dependencies[name] = frozenset(self.names[s] for s in sources if isinstance(s, int))
        outputs = {name: self._output(name) for name in self.final}
        note_plan(tokens, self.stages, self.options.placement, self.options.schedule)
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
        # The sources of the inputs are part of a key: with other stages before this one, its inputs
        # come from other tasks, and may differ in rounding.
        return digest(
            [self.names[source] if isinstance(source, int) else source for source in sources],
            call.stage.token,
            call.options,
            call.row_axes,
            call.join_axes,
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
        """Return the call of a stage, and the source of each argument: a stage or an input."""
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
            options=self.options.run,
            picks=tuple(picks),
            row_axes=tuple(
                self.feeds.axes.get(s.name) if s.name in self.feeds.references else None
                for s in stage.inputs
            ),
            join_axes=tuple(self._join_axis(spec.name) for spec in stage.outputs),
            run_axes=self._run_axes(stage),
            count_axes=tuple(self.options.input_axes.get(spec.name) for spec in stage.inputs),
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
            stage=stage.label,
            model=self.options.model_name,
            trace=self.trace,
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
        """Worker group to the bytes of the weights of all its stages."""
        held: defaultdict[int, int] = defaultdict(int)
        worker_groups = (
            () if self.options.placement is None else self.options.placement.worker_groups
        )
        for stage, worker_group in zip(self.stages.stages, worker_groups, strict=True):
            held[worker_group] += stage.cost.parameter_bytes
        return held

    @cached_property
    def plan(self) -> str:
        """Digest of the plan, by which workers keep their worker groups from request to request."""
        labels = [stage.label for stage in self.stages.stages]
        return digest(self.model.token, labels, self.options.placement)

    @cached_property
    def request(self) -> str:
        """Digest of the request."""
        return digest(self.plan, self.feeds.token, self.options.salt)

    @cached_property
    def scale(self) -> float:
        """Rows of a chunk, as a multiple of the rows that costs are predicted for.

        0 if its rows are unknown or costs are imprecise, since adaptive clusters scale by them.
        """
        if not self.options.expects:
            return 0.0
        if self.options.rows is None:
            return 1.0
        return (self.feeds.rows or 0.0) / self.options.rows

    def _join_axis(self, value: str) -> int | Literal["split"] | None:
        if value in self.travels or value not in self.final:
            return "split"
        return self.options.output_axes.get(value)

    def _run_axes(self, stage: Stage) -> RunAxes | None:
        """Return the axes of one micro-batch, for a stage that gets or gives any."""
        edges = self.options.edge_axes
        if edges is None:
            return None
        axes = {**self.feeds.axes, **self.options.output_axes, **edges}
        inputs = tuple(axes.get(spec.name) for spec in stage.inputs)
        return RunAxes(inputs, tuple(axes.get(spec.name) for spec in stage.outputs))

    def _output(self, value: str) -> Output:
        number, position = self.made[value]
        may_be_split = value in self.travels
        return Output(self.names[number], self.layouts[number], position, may_be_split)


def _layout(stage: Stage, layouts: Mapping[str, Layout]) -> Layout:
    if len(stage.outputs) == 1:
        return layouts.get(stage.outputs[0].name, Layout())
    return Layout()
