"""`ExplainedPlan`: a plan as text, pictures, annotations and predictions of its time and memory."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

import onnx

from dask_onnx.api.picture_paths import check_picture
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.overhead import with_known_overhead
from dask_onnx.cluster.placement import any_cluster
from dask_onnx.core.errors import PlanError
from dask_onnx.core.formatting import format_shapes
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
from dask_onnx.diagnostics.sections import Section, render_text
from dask_onnx.diagnostics.summary import Summary, summarise
from dask_onnx.facts.staged_model import StagedModel
from dask_onnx.modelio.model_files import read_stored_proto
from dask_onnx.modelio.onnx_model import with_weights
from dask_onnx.planning.alternatives import Verdict
from dask_onnx.planning.annotations import annotate, digest_without_annotations
from dask_onnx.planning.measured_stages import Measured
from dask_onnx.planning.plan_options import parse_whole_number
from dask_onnx.planning.timeline import Timeline, timeline
from dask_onnx.planning.worker_memory import WorkerMemory

_SHOWN_BATCHES = 16
"""Default number of micro-batches for which a plan is explained."""


@dataclass(frozen=True, eq=False)
class ExplainedPlan(StagedModel):
    """Facts and predictions of a plan, as data, text and pictures; the base class of `Plan`.

    Nothing here runs or measures a stage.
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
        >>> print(plan.explain(batches=4))
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
        >>> [section.title for section in plan.sections()]
        """
        return self._sections(self._known_runs(), self._outlook(batches))

    def summary(self) -> Summary:
        """Return shapes, critical path, kernels, threads and rows of a run, as data.

        Examples
        --------
        >>> plan.summary().shapes
        {'x': (1, 3, 64, 64)}
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
        >>> plan.timeline(batches=32).seconds
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
        >>> print(plan.judge().sentence)
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
        >>> plan.memory()
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
        >>> maps = model.predict(images, plan=plan)
        >>> seconds = plan.measured().seconds
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
        >>> plan.visualize("plan.html")
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

    def diff(self, other: ExplainedPlan) -> str:
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
        >>> print(plan.diff(model.plan("fused", n_stages=4)))
        """
        if not isinstance(other, ExplainedPlan):
            raise PlanError(
                f"a plan is compared with a plan, not with a {type(other).__name__}",
                "give a plan of stages that model.plan(...) returned",
                option="other",
            )
        return compare(self._compared(), other._compared())

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
        >>> onnx.save(plan.annotate("detector.onnx"), "annotated.onnx")
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


def _seconds_as_planned(measured: Measured | None) -> list[float | None] | None:
    """Return the measured seconds of each stage, if they are of the shapes of the plan."""
    return measured.seconds if measured is not None and measured.is_planned else None
