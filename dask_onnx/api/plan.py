"""`Plan`: a model cut into stages, and the verbs that place, schedule and run it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dask_onnx.api.explained_plan import ExplainedPlan
from dask_onnx.cluster.placement import Placement
from dask_onnx.collections.predictions import predict, task_graph
from dask_onnx.collections.run_options import (
    BatchSize,
    Outputs,
    RowOptions,
    RunOptions,
    TableOptions,
)
from dask_onnx.core.errors import PlanError, Suggestion
from dask_onnx.core.formatting import format_count
from dask_onnx.diagnostics.precision_loss import measure_loss
from dask_onnx.planning.chunk_groups import ChunkGroups
from dask_onnx.planning.plan_options import parse_whole_number
from dask_onnx.planning.schedule import Mode, Schedule
from dask_onnx.runtime.codec import Lossy


@dataclass(frozen=True, eq=False)
class Plan(ExplainedPlan):
    """A model cut into stages. Made by `Model.plan`; immutable.

    `explain`, `visualize` and `diff` show the plan; `with_placement`, `with_schedule`, `with_loss`
    and `with_chunks_per_task` return changed copies; `predict` runs it.

    Examples
    --------
    >>> plan = model.plan(dx.Pipeline(n_stages=4))
    >>> print(plan.explain())
    >>> maps = plan.predict(images)
    """

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
        >>> plan = plan.with_loss("float16", images[:8], budget=0.01)
        >>> plan.drift.relative
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
        >>> plan = plan.with_placement(dx.Placement((0, 1, 0, 1)))
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
        >>> plan = plan.with_schedule("async", in_flight=8)
        """
        schedule = None if mode is None else Schedule(mode, in_flight)
        return dataclasses.replace(self, schedule=schedule)

    def with_chunks_per_task(self, chunks: int | None) -> Plan:
        """Return the plan with tasks that compute several consecutive chunks of a lazy array.

        Dask's scheduler takes some tenths of a millisecond for each task. Where many workers run
        many short tasks, it is the limit, and a few chunks for each task relieve it. The result is
        the same, in larger chunks: those of a task are joined. Inputs are loaded in the same task
        where nothing else reads them. Strategy "auto" decides this for the workers that it finds.

        Applies to dask arrays, for a plan of one stage and a request of one output; others have a
        task for each chunk and stage.

        Parameters
        ----------
        chunks : int or None
            Number of chunks of a task; None for one.

        Returns
        -------
        Plan
            A copy with other tasks.

        Raises
        ------
        PlanError
            `chunks` is not a whole number above 0.

        Examples
        --------
        >>> maps = model.predict(images, plan=model.plan("whole").with_chunks_per_task(10))
        """
        groups = None
        if chunks is not None:
            groups = ChunkGroups(parse_whole_number("chunks", chunks))
        return dataclasses.replace(self, chunk_groups=groups)

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
        >>> maps = plan.predict(images)
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
        >>> graph = plan.graph(one_image)
        >>> dask.get(graph, "y")
        """
        return task_graph(self, feeds, batch_size)

    def __repr__(self) -> str:
        count = format_count(len(self.stages), "stage")
        workers = ""
        if self._worker_groups is not None:
            workers = f" on {len(set(self._worker_groups))} workers"
        return f"<dask_onnx.Plan of {self.facts.name!r}: {self.recipe.strategy}, {count}{workers}>"
