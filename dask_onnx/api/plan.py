"""A model cut into stages, and what can be done with that."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from dask.delayed import Delayed
from dask.task_spec import Alias

from dask_onnx.analysis.report import assumed_shapes
from dask_onnx.cluster.delivery import current_client
from dask_onnx.cluster.overhead import with_overhead
from dask_onnx.cluster.placement import Placement, any_cluster
from dask_onnx.collections.delayed import as_delayed
from dask_onnx.collections.eager import predict_eager
from dask_onnx.collections.kinds import kind_of
from dask_onnx.collections.planned_model import PlannedModel
from dask_onnx.collections.request_checks import resolve_feeds
from dask_onnx.collections.run_options import BatchSize, RunOptions
from dask_onnx.core.errors import InputError, PlanError
from dask_onnx.core.formatting import format_shapes
from dask_onnx.diagnostics.compare import Compared, compare
from dask_onnx.diagnostics.drift import Drift, measure_drift
from dask_onnx.diagnostics.page import explain_html, explain_page
from dask_onnx.diagnostics.picture import to_svg
from dask_onnx.diagnostics.plan_text import (
    Outlook,
    course_of,
    explain_plan,
    measured_stages,
    memory_of,
    verdict_on,
)
from dask_onnx.diagnostics.summary import Summary, predicted_rows, rows_of, summarise
from dask_onnx.modelio.onnx_model import read_written, with_weights
from dask_onnx.planning.annotations import annotate
from dask_onnx.planning.choice import Verdict
from dask_onnx.planning.measured_stages import Measured
from dask_onnx.planning.plan_options import whole_number
from dask_onnx.planning.recipe import Recipe
from dask_onnx.planning.schedule import Mode, Schedule
from dask_onnx.planning.stages import Stage, StageGraph
from dask_onnx.planning.timeline import Timeline, timeline
from dask_onnx.planning.worker_memory import WorkerMemory
from dask_onnx.runtime.codec import Lossy


@dataclass(frozen=True, eq=False)
class Plan:
    """A model cut into stages. Made by `Model.plan`."""

    model: PlannedModel
    recipe: Recipe
    stage_graph: StageGraph
    drift: Drift | None = None
    """What `with_loss` measured; None if nothing may be lost."""
    verdict: Verdict | None = None
    """Why "auto" chose it; None if the caller did."""
    placement: Placement | None = None
    """Which stages stay on which share of the workers; None lets each run anywhere."""
    schedule: Schedule | None = None
    """How micro-batches follow one another; None leaves it to Dask where stages run anywhere."""
    _others: dict[tuple[str, ...], Plan] = field(default_factory=dict, repr=False)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In an order in which they can run."""
        return self.stage_graph.stages

    @property
    def bounds(self) -> Schedule | None:
        """The schedule that is kept: where stages stay on workers Dask's own queue holds back
        nothing, so that there is one even if none was asked for."""
        return self.schedule or (None if self.placement is None else Schedule())

    def explain(self, *, batches: int = 16) -> str:
        """The stages, their predicted cost, what travels between them, the critical path, the
        schedule of some micro-batches and its bubble, memory, rows of a run, and what other ways
        are predicted to take, as text.

        Where the plan has run, in this process or on the workers of the current client, also what
        its stages took, how far off the prediction is, and the peaks of the workers' memory.

        Parameters
        ----------
        batches : int
            Micro-batches of the schedule that is shown.
        """
        outlook = self._outlook(batches)
        return self._explain(self.measured(), outlook, self._judge(outlook))

    def summary(self) -> Summary:
        """What `explain` says of shapes, critical path, kernels, threads and rows, as data."""
        return summarise(self.model._facts, self.stage_graph, self.recipe)

    def timeline(self, *, batches: int = 16) -> Timeline:
        """When each stage is predicted to work on each of some micro-batches, on the workers of the
        current client or, without one, in this process."""
        course = course_of(self.model._facts, self.recipe, self._outlook(batches))
        return timeline(self.stage_graph, course)

    def judge(self, *, batches: int = 16) -> Verdict:
        """What the plan is predicted to take for some batches on the workers of the current client
        or, without one, in this process, beside the ways that "auto" would weigh; for a plan of
        "auto" why it was chosen.

        Parameters
        ----------
        batches : int
            Runs of the plan's shapes; one request with ``aim="latency"``.
        """
        return self._judge(self._outlook(batches))

    def _judge(self, outlook: Outlook) -> Verdict:
        if self.verdict is not None:
            return self.verdict
        return verdict_on(self.model._facts, self.stage_graph, self.recipe, outlook)

    def memory(self) -> list[WorkerMemory]:
        """What each worker's process is projected to hold at its peak, in bytes at the plan's
        shapes, for each worker group; one for any worker if stages run anywhere."""
        return memory_of(self.stage_graph, self._outlook(has_overhead=False))

    def measured(self) -> Measured | None:
        """What this process, and the workers of the current client, have noted of the stages when
        they ran; None if they have not. The newest 10,000 tasks of each process count."""
        client = current_client()
        return measured_stages(self.model._facts, self.stage_graph, self.recipe, client)

    def _outlook(self, batches: int = 16, *, has_overhead: bool = True) -> Outlook:
        """On the current cluster; how fast that is takes a moment to measure."""
        whole_number("batches", batches)
        client = current_client()
        cluster = any_cluster(client)
        if has_overhead:
            cluster = with_overhead(cluster, client)
        return Outlook(cluster, self.placement, self.bounds, batches)

    def _explain(self, measured: Measured | None, outlook: Outlook, verdict: Verdict) -> str:
        return explain_plan(
            self.model._facts,
            self.stage_graph,
            self.recipe,
            self.drift,
            outlook,
            measured,
            verdict,
        )

    @cached_property
    def rows(self) -> int | None:
        """Of the run that the stages' costs are for; None where no input has rows."""
        facts = self.model._facts
        return rows_of(facts, assumed_shapes(facts.onnx, self.recipe.shapes)[0])

    @cached_property
    def is_measured(self) -> bool:
        """Whether the stages' seconds rest on what this host has measured, of this model or of
        others."""
        return self.model._facts.is_measured

    @cached_property
    def rows_per_run(self) -> int:
        """What `batch_size="auto"` gives each run if there are several stages, which must agree."""
        return predicted_rows(self.model._facts, self.stage_graph, self.recipe)

    def visualize(self, path: str | os.PathLike[str]) -> None:
        """Write the plan to a file: to ``.html`` a page with all that `explain` says and a picture,
        to ``.svg`` the picture alone.

        Boxes are as wide as their stages are predicted to take long, and coloured by worker if the
        plan has a placement; lines are as thick as the logarithm of their bytes.

        Raises
        ------
        PlanError
            Another kind of file; the folder does not exist.
        """
        check_picture(path)
        if os.fspath(path).endswith(".html"):
            content = explain_page(self._repr_html_(), self._title)
        else:
            measured = self.measured()
            content = to_svg(
                self.stage_graph,
                self._title,
                worker_groups=self._worker_groups,
                measured=None if measured is None else measured.seconds,
            )
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)

    def diff(self, other: Plan) -> str:
        """How another plan differs, as text: numbers, stages and where their nodes went, values
        that only one of them sends between stages, workers. "no difference" if it does not.

        Parameters
        ----------
        other : Plan
            Of the same model; of another one only the numbers compare, which the text says.
        """
        if not isinstance(other, Plan):
            raise PlanError(
                f"a plan differs from plans, not from a {type(other).__name__}",
                "give what model.plan(...) made",
            )
        return compare(self._compared(), other._compared())

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        measured, outlook = self.measured(), self._outlook()
        verdict = self._judge(outlook)
        return explain_html(
            self.stage_graph,
            self._explain(measured, outlook, verdict),
            self._title,
            verdict=verdict,
            worker_groups=self._worker_groups,
            measured=None if measured is None else measured.seconds,
        )

    @property
    def _title(self) -> str:
        return f"{self.model.name}: {self.recipe.strategy}"

    @property
    def _worker_groups(self) -> tuple[int, ...] | None:
        return None if self.placement is None else self.placement.worker_groups

    def _compared(self) -> Compared:
        facts, recipe = self.model._facts, self.recipe
        asked = {
            "strategy": recipe.strategy,
            "shapes": format_shapes(recipe.shapes) if recipe.shapes else "assumed",
            "outputs": ", ".join(spec.name for spec in self.stage_graph.outputs),
            "loss": "none" if self.drift is None else self.drift.way,
        }
        if self.placement is not None and self.placement.allow_other_workers:
            asked["other workers"] = "allowed"
        asked |= {name: str(value) for name, value in dataclasses.asdict(recipe.session).items()}
        names = [node.name for node in facts.graph.nodes]
        return Compared(
            self.model.name, facts.onnx.token, asked, self.stage_graph, names, self._worker_groups
        )

    def with_loss(self, way: Lossy, sample: Any, *, budget: float) -> Plan:
        """The same plan, allowed to lose precision of what its stages send over slow links.

        What that does to the outputs is measured now and here, as if every value between stages
        were packed, and kept as `drift`.

        Parameters
        ----------
        way : {"float16", "int8"}
            Half precision; or 8 bits with a scale for each channel (axis 1).
        sample : ndarray, or a dict of them by input name
            A few rows that are like those to come.
        budget : float
            The largest difference that is allowed, relative to each output's largest value.

        Raises
        ------
        PlanError
            The outputs move further; the plan has one stage; there is no such way.
        """
        if way not in ("float16", "int8"):
            raise PlanError(f"there is no way {way!r} to pack with loss", "float16 or int8")
        if len(self.stages) == 1:
            raise PlanError("nothing travels in a plan of one stage", "cut it: n_stages=2 or more")
        names = [spec.name for spec in self.stage_graph.outputs]
        run = RunOptions(names, None, self)
        request, feeds, kind = self.model._request(sample, run, inline=True)
        if kind != "eager":
            raise InputError("the sample is lazy", "pass a few rows as numpy arrays")
        exact = predict_eager(dataclasses.replace(request, lossy=None), feeds, inline=True)
        packed = predict_eager(
            dataclasses.replace(request, lossy=way, always_lossy=True), feeds, inline=True
        )
        drift = measure_drift(way, budget, exact, packed)
        if max(drift.relative.values(), default=0.0) > budget:
            raise PlanError(
                drift.describe(), "allow more, choose float16, or cut where values are smaller"
            )
        return dataclasses.replace(self, drift=drift, _others={})

    def with_placement(self, placement: Placement | None) -> Plan:
        """The same stages, kept on worker groups of the cluster: ``Placement((0, 1, 0, 1))``
        shares four stages between two workers, neither of which loads what is the other's. With
        ``allow_other_workers=True`` an idle worker may all the same, so that none waits; weights
        then travel to few hosts rather than all, and late workers get work. None lets each run
        anywhere, which is the fastest where the weights fit every worker of one host. It needs
        `dask_onnx.configure` on the cluster.

        Raises
        ------
        PlanError
            Not one worker group for each stage.
        """
        if not isinstance(placement, Placement | None):
            raise PlanError(
                f"the placement is a {type(placement).__name__}", "give dx.Placement((0, 1, ...))"
            )
        if placement is not None and len(placement.worker_groups) != len(self.stages):
            raise PlanError(
                f"{len(placement.worker_groups)} worker groups for {len(self.stages)} stages",
                "name a worker group for each stage",
            )
        return dataclasses.replace(self, placement=placement, _others={})

    def with_schedule(self, mode: Mode | None = "async", *, in_flight: int | None = None) -> Plan:
        """The same stages, micro-batches following one another as said; results stay the same.

        Micro-batches are the chunks of what `predict` is given, or the batches that it makes of
        arrays in memory.

        Parameters
        ----------
        mode : {"async", "sync", "hybrid"}, optional
            "async": a micro-batch starts when the one that is `in_flight` places before it has been
            through all stages. "sync": a barrier after each stage of every `in_flight`
            micro-batches. "hybrid": a barrier every `in_flight` micro-batches. None: as if nothing
            had been said; then plans with a placement are "async", and others are left to Dask.
        in_flight : int, optional
            Micro-batches between their first and their last stage at most; by default two for each
            stage.

        Raises
        ------
        PlanError
            There is no such mode; fewer than one in flight.
        """
        schedule = None if mode is None else Schedule(mode, in_flight)
        return dataclasses.replace(self, schedule=schedule, _others={})

    def annotate(self, model: Any = None, *, configuration: str = "dask_onnx") -> onnx.ModelProto:
        """A model that says these stages itself, in ONNX's own annotations: each node its
        `pipeline_stage` in a device configuration, which has as many devices as the plan has
        worker groups, or else stages. `dask_onnx.from_annotations` reads them; ONNX Runtime
        ignores them.

        Parameters
        ----------
        model : path, ModelProto, or whatever `load` takes of a whole model; optional
            What the plan's model was loaded from: it is written as it is there, external data
            stay in their files, so save it beside them. By default the model as it was loaded,
            functions inlined, with all weights in it.
        configuration : str
            Replaces one of that name; others are kept.

        Returns
        -------
        ModelProto
            Of IR version 11 or the model's own, if that is higher; for ``onnx.save``.

        Raises
        ------
        PlanError
            `model` is another one; the plan cuts through a call of a function in it.
        ModelError
            `model` cannot be read; the weights are more than the 2 GiB that a proto holds.
        """
        facts = self.model._facts
        written = with_weights(facts.onnx) if model is None else read_written(model)
        worker_groups = (
            range(len(self.stages)) if self.placement is None else self.placement.worker_groups
        )
        annotate(
            written,
            facts.graph,
            self.stage_graph,
            name=configuration,
            devices=len(set(worker_groups)),
        )
        return written

    def for_outputs(self, outputs: tuple[str, ...]) -> Plan:
        """The same recipe for other outputs; itself if they are the same."""
        if outputs == tuple(spec.name for spec in self.stage_graph.outputs):
            return self
        if outputs not in self._others:
            cut = self.model._facts.cut(self.recipe, outputs)
            self._others[outputs] = self._with_stages(self.model, cut)
        return self._others[outputs]

    def on(self, model: PlannedModel) -> Plan:
        """The same recipe and outputs for another model that has these."""
        names = tuple(spec.name for spec in self.stage_graph.outputs)
        return self._with_stages(model, model._facts.cut(self.recipe, names))

    def _with_stages(self, model: PlannedModel, stages: StageGraph) -> Plan:
        placement = self.placement
        if placement is not None and len(placement.worker_groups) != len(stages.stages):
            placement = Placement.one_each(
                len(stages.stages),
                len(set(placement.worker_groups)),
                allow_other_workers=placement.allow_other_workers,
            )
        return dataclasses.replace(
            self, model=model, stage_graph=stages, placement=placement, _others={}
        )

    def graph(self, feeds: Any, *, batch_size: BatchSize = "auto") -> dict[Any, Any]:
        """The Dask graph itself, inputs included, for one request.

        Parameters
        ----------
        feeds : ndarray, dask.array or Delayed, or a dict of them by input name

        Returns
        -------
        dict of key to Task
            One Task for each stage and chunk. Without dask arrays each output is also there under
            its own name, so that ``dask.get(graph, name)`` gives it.
        """
        model = self.model._fed_with(feeds)
        if model is not self.model:
            return self.on(model).graph(feeds, batch_size=batch_size)
        names = [spec.name for spec in self.stage_graph.inputs]
        arrays = resolve_feeds(feeds, self.model.inputs, names)
        if kind_of(arrays) == "eager":
            outputs = [spec.name for spec in self.stage_graph.outputs]
            self.model.check({n: np.asarray(v) for n, v in arrays.items()}, outputs=outputs)
            arrays = {name: as_delayed(name, value) for name, value in arrays.items()}
        outputs = [spec.name for spec in self.stage_graph.outputs]
        results = self.model.predict(arrays, outputs=outputs, batch_size=batch_size, plan=self)
        tasks: dict[Any, Any] = {}
        for name, collection in results.items():
            tasks.update(collection.__dask_graph__())
            if isinstance(collection, Delayed):
                tasks[name] = Alias(name, collection.key)
        return tasks


def check_picture(path: str | os.PathLike[str]) -> None:
    """Whether `Plan.visualize` can write there; asked before there is a plan, too.

    Raises
    ------
    PlanError
        Another kind of file; the folder does not exist; it is a folder itself.
    """
    target = Path(path).absolute()
    if target.suffix not in (".svg", ".html"):
        raise PlanError(f"{path} is no .svg and no .html", "give a name that ends in one of these")
    if target.is_dir():
        raise PlanError(f"{path} is a folder", "give the name of a file in it")
    if not target.parent.is_dir():
        raise PlanError(f"the folder {target.parent} does not exist", "make it first")
