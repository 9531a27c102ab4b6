"""`Plan`: a model cut into stages, and the verbs that explain, compare, place and run it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.overhead import with_known_overhead
from dask_onnx.cluster.placement import Placement, any_cluster
from dask_onnx.collections.predictions import predict, task_graph
from dask_onnx.collections.run_options import (
    BatchSize,
    Outputs,
    RowOptions,
    RunOptions,
    TableOptions,
)
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import format_count, format_shapes
from dask_onnx.diagnostics.compare import Compared, compare
from dask_onnx.diagnostics.drift import Drift
from dask_onnx.diagnostics.outlook import (
    Outlook,
    course_of,
    measured_stages,
    memory_of,
    verdict_on,
)
from dask_onnx.diagnostics.page import MOST_DRAWN, explain_html, explain_page
from dask_onnx.diagnostics.picture import to_svg
from dask_onnx.diagnostics.plan_text import plan_sections
from dask_onnx.diagnostics.precision_loss import measure_loss
from dask_onnx.diagnostics.sections import Section, render_text
from dask_onnx.diagnostics.summary import Summary, summarise
from dask_onnx.facts.staged_model import StagedModel
from dask_onnx.modelio.model_files import read_stored_proto
from dask_onnx.modelio.onnx_model import with_weights
from dask_onnx.planning.alternatives import Verdict
from dask_onnx.planning.annotations import annotate, digest_without_annotations
from dask_onnx.planning.measured_stages import Measured
from dask_onnx.planning.plan_options import parse_whole_number
from dask_onnx.planning.schedule import Mode, Schedule
from dask_onnx.planning.timeline import Timeline, timeline
from dask_onnx.planning.worker_memory import WorkerMemory
from dask_onnx.runtime.codec import Lossy

_PICTURE_SUFFIXES = (".svg", ".html", ".onnx")
_SHOWN_BATCHES = 16
"""Default number of micro-batches for which a plan is explained."""


@dataclass(frozen=True, eq=False)
class Plan(StagedModel):
    """A model cut into stages. Made by `Model.plan`; immutable.

    `explain`, `visualize` and `diff` show the plan; `with_placement`, `with_schedule` and
    `with_loss` return changed copies; `predict` runs it.

    Examples
    --------
    >>> plan = model.plan(dx.Pipeline(n_stages=4))  # doctest: +SKIP
    >>> print(plan.explain())  # doctest: +SKIP
    >>> maps = plan.predict(images)  # doctest: +SKIP
    """

    drift: Drift | None = None
    """Differences that `with_loss` measured; None if nothing may be lost."""
    verdict: Verdict | None = None
    """Reason for which "auto" chose the plan; None for any other strategy."""

    def explain(self, *, batches: int = _SHOWN_BATCHES) -> str:
        """Return the plan as text. Runs and measures nothing, and asks no worker.

        The text has the stages with their predicted cost, the values between them, the critical
        path, the schedule of some micro-batches with its bubble, projected memory, the rows of a
        run, and the predicted seconds of other strategies. If stages have run in this process, or
        `measured` was called, it has their measured seconds beside the predicted ones, and the
        peak memory of workers.

        Parameters
        ----------
        batches : int
            Number of micro-batches in the schedule that is shown.

        Raises
        ------
        PlanError
            `batches` is not a whole number above 0.

        Examples
        --------
        >>> print(plan.explain(batches=4))  # doctest: +SKIP
        """
        return render_text(self.sections(batches=batches))

    def sections(self, *, batches: int = _SHOWN_BATCHES) -> tuple[Section, ...]:
        """Return the content of `explain` as data: sections of notes and tables.

        Parameters
        ----------
        batches : int
            Number of micro-batches in the schedule.

        Raises
        ------
        PlanError
            `batches` is not a whole number above 0.

        Examples
        --------
        >>> [section.title for section in plan.sections()]  # doctest: +SKIP
        """
        return self._sections(self._known_runs(), self._outlook(batches))

    def summary(self) -> Summary:
        """Return shapes, critical path, kernels, threads and rows of a run, as data.

        Examples
        --------
        >>> plan.summary().shapes  # doctest: +SKIP
        {'x': (1, 3, 224, 224)}
        """
        return summarise(self.facts, self.stage_graph, self.recipe)

    def timeline(self, *, batches: int = _SHOWN_BATCHES) -> Timeline:
        """Return the predicted start and end of each stage for each of some micro-batches.

        The prediction is for the workers of the current client or, without one, this process.

        Parameters
        ----------
        batches : int
            Number of micro-batches.

        Raises
        ------
        PlanError
            `batches` is not a whole number above 0.

        Examples
        --------
        >>> plan.timeline(batches=32).seconds  # doctest: +SKIP
        """
        course = course_of(self.facts, self.recipe, self._outlook(batches))
        return timeline(self.stage_graph, course)

    def judge(self, *, batches: int = _SHOWN_BATCHES) -> Verdict:
        """Compare the plan's predicted time and memory with those of other strategies.

        The prediction is for the workers of the current client or, without one, this process. For
        a plan of "auto", the comparison that chose it is returned.

        Parameters
        ----------
        batches : int
            Number of runs of the plan's shapes; 1 for a plan with ``aim="latency"``.

        Raises
        ------
        PlanError
            `batches` is not a whole number above 0.

        Examples
        --------
        >>> print(plan.judge().sentence)  # doctest: +SKIP
        """
        return self._judge(self._outlook(batches))

    def memory(self) -> list[WorkerMemory]:
        """Return the projected peak memory of the workers' processes, at the plan's shapes.

        Returns
        -------
        list of WorkerMemory
            In bytes, one for each worker group; one that holds for any worker if stages run
            anywhere.

        Examples
        --------
        >>> plan.memory()  # doctest: +SKIP
        """
        return memory_of(self.stage_graph, self._outlook(has_overhead=False))

    def measured(self) -> Measured | None:
        """Ask this process, and the workers of the current client, for their runs of the stages.

        `explain`, `visualize` and the HTML of a notebook show the answer from then on. Without this
        call they know only the runs of this process.

        Returns
        -------
        Measured or None
            Seconds, runs and peak memory, from the newest 10,000 tasks of each process; None if no
            stage has run.

        Examples
        --------
        >>> maps = model.predict(images, plan=plan).compute()  # doctest: +SKIP
        >>> plan.measured().seconds  # doctest: +SKIP
        """
        found = measured_stages(self.facts, self.stage_graph, self.recipe, current_client())
        self.facts.kept.put(self._runs_key, found)
        return found

    def visualize(self, path: str | os.PathLike[str]) -> None:
        """Write a picture of the plan to a file.

        Boxes are as wide as their stages' predicted seconds, and coloured by worker if the plan has
        a placement. The width of a line is the logarithm of the bytes that are sent. The stripe of
        a box has the colours of its stages in Dask's dashboard. A picture fits its page: where
        there are too many stages, chains and branches of them share a box, and those that take
        longest are listed.

        Parameters
        ----------
        path : path of an ``.svg``, ``.html`` or ``.onnx`` file
            SVG has the picture alone; HTML the content of `explain` too, all stages, and a picture
            that zooms. ONNX is the model as `annotate` returns it: viewers such as Netron show the
            stage of each node with its seconds and bytes.

        Raises
        ------
        PlanError
            The path has another extension, is a folder, or its folder does not exist.

        Examples
        --------
        >>> plan.visualize("plan.html")  # doctest: +SKIP
        """
        check_picture(path)
        if os.fspath(path).endswith(".onnx"):
            onnx.save(self.annotate(), path)
            return
        if os.fspath(path).endswith(".html"):
            every = None
            if len(self.stages) <= MOST_DRAWN:
                every = to_svg(self.stage_graph, self._title, page=None)
            content = explain_page(self._html(is_page=True), self._title, every)
        else:
            measured = self._known_runs()
            content = to_svg(
                self.stage_graph,
                self._title,
                worker_groups=self._worker_groups,
                measured=_seconds_as_planned(measured),
            )
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)

    def diff(self, other: Plan) -> str:
        """Return the differences from another plan as text.

        Parameters
        ----------
        other : Plan
            A plan of the same model, or of a copy of it with other annotations. For a plan of
            another model only the numbers are compared, and the text says so.

        Returns
        -------
        str
            Numbers, stages and the stages that their nodes moved to, values that only one of the
            plans sends between stages, and workers; "no difference" if there is none.

        Raises
        ------
        PlanError
            `other` is not a Plan.

        Examples
        --------
        >>> print(plan.diff(model.plan("fused", n_stages=4)))  # doctest: +SKIP
        """
        if not isinstance(other, Plan):
            raise PlanError(
                f"a plan is compared with a plan, not with a {type(other).__name__}",
                "give a plan of stages that model.plan(...) returned",
                option="other",
            )
        return compare(self._compared(), other._compared())

    def with_loss(self, way: Lossy, sample: Any, *, budget: float) -> Plan:
        """Return the plan with permission to lose precision of values sent over slow links.

        The effect on the outputs is measured here and now on a sample, as if every value between
        stages were encoded, and kept as `drift`.

        Parameters
        ----------
        way : {"float16", "int8"}
            Half precision; or 8 bits with a scale for each channel (axis 1).
        sample : ndarray or mapping of str to ndarray
            A few rows that are typical of the input.
        budget : float
            Largest difference that is allowed, relative to the largest absolute value of each
            output.

        Returns
        -------
        Plan
            A copy with `drift`.

        Raises
        ------
        PlanError
            An output differs by more than `budget`, the plan has one stage, or there is no such
            `way`.
        InputError
            The sample is lazy, or does not fit the model.

        Examples
        --------
        >>> plan = plan.with_loss("float16", images[:8], budget=0.01)  # doctest: +SKIP
        >>> plan.drift.relative  # doctest: +SKIP
        """
        drift = measure_loss(self, way, sample, budget)
        return dataclasses.replace(self, drift=drift, lossy=way)

    def with_placement(self, placement: Placement | None) -> Plan:
        """Return the same stages, kept on worker groups of the cluster.

        ``Placement((0, 1, 0, 1))`` shares four stages between two workers, neither of which loads
        the stages of the other. With ``allow_other_workers=True`` idle workers may run them too.

        Parameters
        ----------
        placement : Placement or None
            A worker group for each stage. None lets each stage run anywhere, which is the fastest
            if the weights fit every worker. A placement needs `dask_onnx.configure` on the cluster,
            which the first prediction does unless ``onnx.auto-configure`` is off.

        Returns
        -------
        Plan
            A copy with the placement.

        Raises
        ------
        PlanError
            `placement` is no Placement, or has not one worker group for each stage.

        Examples
        --------
        >>> plan = plan.with_placement(dx.Placement((0, 1, 0, 1)))  # doctest: +SKIP
        """
        one_each = Suggestion("placement", Placement.one_each(len(self.stages)))
        if not isinstance(placement, Placement | None):
            raise PlanError(
                f"the placement is a {type(placement).__name__}, not a Placement",
                "give dx.Placement((0, 1, ...))",
                option="placement",
                suggestions=[one_each],
            )
        if placement is not None and len(placement.worker_groups) != len(self.stages):
            groups, stages = len(placement.worker_groups), len(self.stages)
            raise PlanError(
                f"{groups} worker groups were given for {stages} stages",
                "give a worker group for each stage",
                option="placement",
                numbers={"worker_groups": groups, "stages": stages},
                suggestions=[one_each],
            )
        return dataclasses.replace(self, placement=placement)

    def with_schedule(self, mode: Mode | None = "async", *, in_flight: int | None = None) -> Plan:
        """Return the same stages with another order of micro-batches. Results stay the same.

        Micro-batches are the chunks of a lazy array, or the batches that `predict` makes of arrays
        in memory.

        Parameters
        ----------
        mode : {"async", "sync", "hybrid"} or None
            "async": a micro-batch starts when the one `in_flight` places before it has been through
            all stages. "sync": a barrier after each stage of every `in_flight` micro-batches.
            "hybrid": a barrier every `in_flight` micro-batches. None: the default, which is "async"
            for plans with a placement, and Dask's own order for others.
        in_flight : int, optional
            Largest number of micro-batches between their first and their last stage; by default two
            for each stage.

        Returns
        -------
        Plan
            A copy with the schedule.

        Raises
        ------
        PlanError
            There is no such mode, or `in_flight` is not a whole number above 0.

        Examples
        --------
        >>> plan = plan.with_schedule("async", in_flight=8)  # doctest: +SKIP
        """
        schedule = None if mode is None else Schedule(mode, in_flight)
        return dataclasses.replace(self, schedule=schedule)

    def annotate(self, model: Any = None, *, configuration: str = "dask_onnx") -> onnx.ModelProto:
        """Return the model with the plan's stages as ONNX annotations.

        Each node gets its `pipeline_stage` in a device configuration, which has as many devices as
        the plan has worker groups or, without a placement, stages. `dask_onnx.from_annotations`
        reads them; ONNX Runtime ignores them. The label, seconds and bytes of its stage are
        metadata of each node (``dask_onnx.stage_seconds``), which viewers such as Netron show.

        Parameters
        ----------
        model : path, ModelProto, or another form of whole model that `load` takes; optional
            The source of the plan's model. It is returned as it is, with annotations; external data
            stay in their files, so save it beside them. By default the model as it was loaded,
            with functions inlined and all weights in it.
        configuration : str
            Name of the device configuration. It replaces one of the same name; others are kept.

        Returns
        -------
        ModelProto
            Of IR version 11, or the model's own if that is higher; for ``onnx.save``.

        Raises
        ------
        PlanError
            `model` is another one, or the plan cuts through a call of a function in it.
        ModelError
            `model` cannot be read, or its weights exceed the 2 GiB that a proto can hold.

        Examples
        --------
        >>> onnx.save(plan.annotate("detector.onnx"), "annotated.onnx")  # doctest: +SKIP
        """
        facts = self.facts
        written = with_weights(facts.onnx) if model is None else read_stored_proto(model)
        worker_groups = self._worker_groups or range(len(self.stages))
        annotate(
            written,
            facts.graph,
            self.stage_graph,
            name=configuration,
            devices=len(set(worker_groups)),
        )
        return written

    def predict(
        self,
        x: Any,
        *,
        outputs: Outputs = None,
        batch_size: BatchSize = "auto",
        retries: int | None = None,
    ) -> Any:
        """Run the model by this plan, as ``model.predict(x, plan=plan)`` does.

        Parameters
        ----------
        x : array, table, bag or Delayed; or mapping of str to these
            As for `Model.predict`. Tables and bags take plans of strategy "whole" only.
        outputs, batch_size, retries
            As for `Model.predict`.

        Returns
        -------
        collection, or dict of str to collection
            As for `Model.predict`.

        Raises
        ------
        InputError, PlanError, StageError, StoreError
            As for `Model.predict`.

        Examples
        --------
        >>> maps = plan.predict(images)  # doctest: +SKIP
        """
        run = RunOptions(outputs, batch_size, self, retries)
        return predict(self.facts, x, run, TableOptions(), RowOptions())

    def graph(self, feeds: Any, *, batch_size: BatchSize = "auto") -> dict[Any, Any]:
        """Return the Dask graph of one request, inputs included. Runs nothing.

        Parameters
        ----------
        feeds : ndarray, dask.array or Delayed; or mapping of str to these
            Inputs, as for `Model.predict`.
        batch_size : int, "auto" or None
            As for `Model.predict`.

        Returns
        -------
        dict of key to Task
            One task for each stage and chunk. Without dask arrays each output is also a key, so
            that ``dask.get(graph, name)`` computes it.

        Raises
        ------
        InputError, PlanError
            As for `Model.predict`.

        Examples
        --------
        >>> graph = plan.graph(one_image)  # doctest: +SKIP
        >>> dask.get(graph, "y")  # doctest: +SKIP
        """
        return task_graph(self, feeds, batch_size)

    def __repr__(self) -> str:
        count = format_count(len(self.stages), "stage")
        workers = ""
        if self._worker_groups is not None:
            workers = f" on {len(set(self._worker_groups))} workers"
        return f"<dask_onnx.Plan of {self.facts.name!r}: {self.recipe.strategy}, {count}{workers}>"

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook shows. Runs and measures nothing."""
        return self._html()

    def _html(self, *, is_page: bool = False) -> str:
        measured = self._known_runs()
        return explain_html(
            self.stage_graph,
            self._sections(measured, self._outlook()),
            self._title,
            worker_groups=self._worker_groups,
            measured=_seconds_as_planned(measured),
            is_page=is_page,
        )

    @property
    def _title(self) -> str:
        return f"{self.facts.name}: {self.recipe.strategy}"

    @property
    def _worker_groups(self) -> tuple[int, ...] | None:
        return None if self.placement is None else self.placement.worker_groups

    @property
    def _runs_key(self) -> tuple[str, ...]:
        return ("runs", *(stage.label for stage in self.stages))

    def _known_runs(self) -> Measured | None:
        """Return the answer of the last `measured`, or the runs of this process; ask no worker."""
        asked: Measured | None = self.facts.kept.get(self._runs_key)
        return asked or measured_stages(self.facts, self.stage_graph, self.recipe, None)

    def _outlook(self, batches: int = _SHOWN_BATCHES, *, has_overhead: bool = True) -> Outlook:
        """Return the known facts of the current cluster; measure nothing."""
        parse_whole_number("batches", batches)
        client = current_client()
        cluster = any_cluster(client)
        if has_overhead:
            cluster = with_known_overhead(cluster, client)
        return Outlook(cluster, self.placement, self.effective_schedule, batches)

    def _judge(self, outlook: Outlook) -> Verdict:
        if self.verdict is not None:
            return self.verdict
        return verdict_on(self.facts, self.stage_graph, self.recipe, outlook)

    def _sections(self, measured: Measured | None, outlook: Outlook) -> tuple[Section, ...]:
        return plan_sections(
            self.facts,
            self.stage_graph,
            self.recipe,
            self.drift,
            outlook,
            measured,
            self._judge(outlook),
        )

    def _compared(self) -> Compared:
        """Return the parts of the plan that `diff` compares."""
        facts, recipe = self.facts, self.recipe
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
        token = digest_without_annotations(facts.onnx.parse())
        return Compared(facts.name, token, asked, self.stage_graph, names, self._worker_groups)


def check_picture(path: str | os.PathLike[str]) -> None:
    """Check that `Plan.visualize` can write to a path; possible before there is a plan.

    Parameters
    ----------
    path : str or path
        Path of the file.

    Raises
    ------
    PlanError
        The path has another extension than ``.svg``, ``.html`` and ``.onnx``, is a folder, or its
        folder does not exist.
    """
    target = Path(path).absolute()
    if target.suffix not in _PICTURE_SUFFIXES:
        raise PlanError(
            f"{path} ends in none of {', '.join(_PICTURE_SUFFIXES)}",
            "give a name that ends in one of these",
            option="path",
            suggestions=[
                Suggestion("path", str(Path(path).with_suffix(suffix)))
                for suffix in _PICTURE_SUFFIXES
                if Path(path).name
            ],
        )
    if target.is_dir():
        raise PlanError(f"{path} is a folder", "give the name of a file in it", option="path")
    if not target.parent.is_dir():
        raise PlanError(
            f"the folder {target.parent} does not exist", "create it first", option="path"
        )


def _seconds_as_planned(measured: Measured | None) -> list[float | None] | None:
    """Return the measured seconds of each stage, if they are of the shapes of the plan."""
    return measured.seconds if measured is not None and measured.is_planned else None
