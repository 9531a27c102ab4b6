"""What users hold: a `Model` and its `Plan`s. Thin verbs over the layers below."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

from dask.base import is_dask_collection

from dask_onnx.analysis.axes.axis_report import AxisTable
from dask_onnx.analysis.batch import BatchFacts, input_axes
from dask_onnx.analysis.freeing import check_freed, free_batch
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.opening.opener import Blocked
from dask_onnx.analysis.report import Analysis, analyse, assumed_shapes
from dask_onnx.api.plan import Plan
from dask_onnx.api.planner import Aim, PlanRequest, Shapes, make_plan
from dask_onnx.cluster.capacity import Load, check_fits
from dask_onnx.cluster.delivery import current_client, plan_delivery
from dask_onnx.cluster.placement import check_configured, effective_retries
from dask_onnx.collections.array import predict_arrays
from dask_onnx.collections.delayed import as_delayed, predict_delayed
from dask_onnx.collections.eager import predict_eager
from dask_onnx.collections.kinds import (
    as_array,
    has_rows,
    is_bag,
    is_dataarray,
    is_empty,
    is_table,
    kind_of,
    most_rows,
    shapes_of,
)
from dask_onnx.collections.partitions import meta_of_table, of_bag, of_dataarray, of_table
from dask_onnx.collections.prediction_request import Request
from dask_onnx.collections.request_checks import (
    check_arrays,
    check_uncut,
    resolve_batching,
    resolve_feeds,
    resolve_outputs,
)
from dask_onnx.collections.run_options import (
    MAX_COLUMNS,
    BatchSize,
    Columns,
    OnError,
    Outputs,
    RowOptions,
    RunOptions,
    TableOptions,
)
from dask_onnx.core.errors import InputError, ModelError, PlanError, StoreError
from dask_onnx.core.files import FileSource, check_unchanged, is_url
from dask_onnx.core.specs import SessionSpec, TensorSpec
from dask_onnx.diagnostics.summary import basis_of
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.onnx_model import OnnxModel, extract_onnx
from dask_onnx.planning.recipe import Strategy
from dask_onnx.runtime.batching import Batching
from dask_onnx.runtime.custom_kernels import CustomKernels
from dask_onnx.sharding.candidates import shards_that_fit, weigh_shards
from dask_onnx.sharding.on_shards import (
    ShardedPlan,
    plan_as_annotated,
    plan_on_shards,
    predict_on_shards,
)
from dask_onnx.sharding.strategy import Sharded
from dask_onnx.store.supply import fetch_proto
from dask_onnx.store.weight_store import Store


class Model:
    """An ONNX model that runs on Dask. Made by `dask_onnx.load`; small, frozen, picklable."""

    def __init__(
        self,
        onnx_model: OnnxModel,
        custom: CustomKernels | None = None,
        libraries: tuple[str, ...] = (),
    ) -> None:
        self._onnx = onnx_model
        self._facts = ModelFacts(onnx_model, custom, libraries)
        self._whole_plans: dict[tuple[str, ...], Plan] = {}
        self._overriding: dict[tuple[str, ...], Model] = {}

    def extract(
        self, inputs: Sequence[str] | None = None, outputs: Sequence[str] | None = None
    ) -> Model:
        """The part of the model between named values, as a model of its own.

        Parameters
        ----------
        inputs : names of values that are given from outside; the graph's inputs by default
        outputs : names of values that it gives; the graph's outputs by default

        Raises
        ------
        InputError
            No such value; a value without a known type; an input of the model that the outputs
            need besides `inputs`.
        """
        wanted = resolve_outputs(outputs, self.facts.outputs, self._facts.known_values).names
        given = list(self.facts.inputs if inputs is None else inputs)
        defaults = {spec.name: spec for spec in self.defaults}
        resolve_outputs(given, given, self._facts.known_values | set(defaults))
        nodes, read = self.facts.between(given, wanted)
        missing = [n for n in self.facts.inputs if n in read and n not in given]
        if missing:
            raise InputError(
                f"outputs {', '.join(wanted)} also need {', '.join(missing)}",
                "name these among the inputs too, or cut nearer to the outputs",
            )
        needed = given if inputs is not None else [name for name in given if name in read]
        part = extract_onnx(
            self._onnx,
            nodes,
            [defaults.get(name) or self._facts.typed(name) for name in needed],
            [self._facts.typed(name) for name in wanted],
        )
        return Model(part, self._facts.custom, self._facts.libraries)

    @property
    def name(self) -> str:
        return self._onnx.name

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and symbolic shape of each graph input, in the order of the graph."""
        return self._onnx.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._onnx.outputs

    @property
    def defaults(self) -> tuple[TensorSpec, ...]:
        """Inputs that have an initializer: need not be fed, and may be."""
        return self._onnx.defaults

    @property
    def opsets(self) -> Mapping[str, int]:
        """Domain ("" is ai.onnx) to the version that the model imports."""
        return self._onnx.opsets

    @property
    def token(self) -> str:
        """Content digest: equal for equal models, wherever they came from."""
        return self._onnx.token

    @property
    def facts(self) -> GraphFacts:
        """The graph: nodes, who makes and who reads each value."""
        return self._facts.graph

    @cached_property
    def analysis(self) -> Analysis:
        """Branches, longest path, costs, axes, random and batch-dependent nodes.

        For one row; open dimensions other than the batch are taken as 64. `analyse` takes shapes.
        """
        return self.analyse()

    def analyse(self, shapes: Shapes | None = None) -> Analysis:
        """The same at given input shapes, such as ``{"x": (1, 3, 640, 640)}``."""
        facts = self._facts
        bound = facts.bound_shapes(shapes)
        return analyse(self.facts, bound, facts.schemas, facts.costs, facts.custom_axes)

    def axes(self, shapes: Shapes | None = None, *, outputs: Outputs = None) -> AxisTable:
        """Return how the outputs depend on every axis of the inputs. Runs nothing.

        Parameters
        ----------
        shapes : mapping of input name to shape, optional
            The sizes that the facts hold for; by default 64 of open dimensions, one row, and 7 rows
            where these are asked about.
        outputs : str or sequence of str, optional
            Graph outputs or intermediate values; the graph's outputs by default.

        Returns
        -------
        AxisTable
            For each input axis and value a kind (independent, window, reduced, contracted,
            factored, gathered, scanned, paired, length, coupled, opaque), the axis it lies on, the
            range that an element reads (offset, stride, extent), and the node that decides. It
            prints as a table.

        Raises
        ------
        InputError
            `shapes` do not fit the model, or there is no such output.
        """
        facts = self._facts
        values = resolve_outputs(outputs, self.facts.outputs, facts.known_values).names
        return facts.axes(facts.bound_shapes(shapes), values)

    def freed(self, axes: Mapping[str, int] | None = None) -> Model:
        """Return the model with the number of rows open that it was exported with.

        The number is rewritten wherever it stands in the graph (Reshape targets, Expand, initial
        states, masks), the algebra of axes must prove that rows are then independent, and the
        result is run beside the original at its own number of rows. Large weights stay where they
        are.

        Parameters
        ----------
        axes : mapping of input name to axis, optional
            Where the rows are; the first axes by default.

        Returns
        -------
        Model
            With a token of its own; its results differ from the original's by rounding at most.

        Raises
        ------
        ModelError
            The batch cannot be opened: the message names the node and the reason.
        """
        facts = self._facts
        found = free_batch(self._onnx, axes, facts.schemas, facts.custom_axes)
        if isinstance(found, Blocked):
            raise ModelError(
                f"model {self.name!r} keeps the batch that it was exported with: {found}",
                "export it with an open batch dimension, or let it run as it is",
            )

        def run(onnx_model: OnnxModel, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            model = Model(onnx_model, facts.custom, facts.libraries)
            names = [spec.name for spec in onnx_model.outputs]
            results: Mapping[str, Any] = model(dict(feeds), outputs=names, batch_size=None)
            return results

        check_freed(self._onnx, found, run)
        return Model(found.model, facts.custom, facts.libraries)

    def basis(self, shapes: Shapes | None = None) -> str:
        """What the seconds rest on that a plan for these shapes predicts, in words. Those of
        `analyse` rest on FLOPs and bytes even where each node's time is known."""
        facts = self._facts
        return basis_of(facts, assumed_shapes(facts.onnx, facts.bound_shapes(shapes))[0])

    @overload
    def plan(
        self,
        strategy: Sharded,
        *,
        outputs: Outputs = None,
        shapes: Shapes | None = None,
        session: SessionSpec | None = None,
    ) -> ShardedPlan: ...

    @overload
    def plan(
        self,
        strategy: str | Strategy = "whole",
        *,
        n_stages: int | None = None,
        n_workers: int | None = None,
        memory_limit: int | str | None = None,
        min_seconds: float | None = None,
        outputs: Outputs = None,
        shapes: Shapes | None = None,
        aim: Aim | None = None,
        session: SessionSpec | None = None,
        measure: Any = None,
        client: Any = None,
        batches: int | None = None,
    ) -> Plan: ...

    def plan(
        self,
        strategy: str | Strategy | Sharded = "whole",
        *,
        n_stages: int | None = None,
        n_workers: int | None = None,
        memory_limit: int | str | None = None,
        min_seconds: float | None = None,
        outputs: Outputs = None,
        shapes: Shapes | None = None,
        aim: Aim | None = None,
        session: SessionSpec | None = None,
        measure: Any = None,
        client: Any = None,
        batches: int | None = None,
    ) -> Plan | ShardedPlan:
        """Cut the model into stages.

        Parameters
        ----------
        strategy : {"auto", "whole", "per_node", "fused", "branches", "pipeline"}, or a `Strategy`
            The fastest, as predicted, of those that fit the cluster; one stage; one for each node;
            convex regions of about equal predicted time; independent branches side by side;
            contiguous stages, the slowest as fast as possible; the caller's own cuts (`at_values`);
            those that the model says itself (`from_annotations`). A `Sharded` splits one request
            along its tokens or its heads. For one request "auto" weighs shards of a sequence too,
            and may return such a plan.
        n_workers : int, optional
            For "branches": so many stages side by side at most; 2 by default.
        n_stages : int, optional
            For "fused" and "pipeline": how many.
        memory_limit : int or str, optional
            For "pipeline": bytes of weights and activations that a stage may have, such as
            "1.5GiB"; without `n_stages` the fewest stages that keep within it.
        min_seconds : float, optional
            For "fused" without `n_stages`: what a stage should compute at least, in predicted
            seconds. Default ``onnx.plan.min-seconds``.
        outputs : str or sequence of str, optional
            Graph outputs or intermediate values; the graph's outputs by default.
        shapes : mapping of input name to shape, optional
            What the cost is predicted for; one row by default.
        aim : {"throughput", "latency"}, optional
            Many tasks at a time, each with its share of the cores; or one, with all of them. By
            default throughput on a cluster, and for numpy in this process latency where one task
            is all there is.
        session : SessionSpec, optional
            How ORT runs the stages; its `intra_op_num_threads`, if given, wins over `aim`.
        measure : ndarray, or a dict of them by input name, optional
            Run these rows here a few times, on one thread, and go by what each node took on the
            kernel that it has, kernels in Python too; the first row alone too, where rows are
            independent. It is kept in the host's store by model, kernels, CPU and shapes, so that
            later plans know it too, and nothing runs again for shapes that are known
            (``dask-onnx store forget`` takes it back); for other shapes each node is on the line
            through two measurements, or scaled from one. Without `shapes` the plan is for the
            shapes of these.
        client : distributed.Client, optional
            For "auto": the cluster to plan for; by default the client that Dask would use, or else
            this machine.
        batches : int, optional
            For "auto": how many runs of the plan's shapes there are to do; by default one for
            ``aim="latency"``, else eight for each thread of the cluster.

        Raises
        ------
        PlanError
            No such strategy, options that it does not take, or a cut that cannot be made. What can
            be told without the model is told before anything is measured.
        InputError
            `shapes`, or what is to be measured, does not fit the model.
        StageError
            What is to be measured cannot be run here.
        """
        numbers = {
            "n_stages": n_stages,
            "n_workers": n_workers,
            "memory_limit": memory_limit,
            "min_seconds": min_seconds,
        }
        if isinstance(strategy, Sharded):
            others = {**numbers, "aim": aim, "measure": measure, "client": client}
            others["batches"] = batches
            return plan_on_shards(
                self, strategy, outputs=outputs, shapes=shapes, session=session, others=others
            )
        if isinstance(strategy, Strategy) and strategy.name == "from_annotations":
            annotated = plan_as_annotated(
                self, strategy, outputs=outputs, shapes=shapes, session=session
            )
            if annotated is not None:
                return annotated
        request = PlanRequest(
            strategy, numbers, outputs, shapes, aim, session, measure, client, batches
        )
        if strategy != "auto":
            return make_plan(self, request)
        on_shards = {"shapes": shapes, "session": session, "client": client}
        try:
            plan = make_plan(self, request)
        except PlanError:
            # One request may still fit in shards where no way of running whole batches does.
            sharded = None if outputs is not None else shards_that_fit(self, **on_shards)
            if sharded is None:
                raise
            return sharded
        is_one_request = outputs is None and (aim == "latency" or batches == 1)
        if not is_one_request or plan.verdict is None:
            return plan
        sharded, verdict = weigh_shards(self, plan.verdict, **on_shards)
        return dataclasses.replace(plan, verdict=verdict) if sharded is None else sharded

    def predict(
        self,
        x: Any,
        *,
        outputs: Outputs = None,
        batch_size: BatchSize = "auto",
        plan: Plan | ShardedPlan | None = None,
        retries: int | None = None,
        columns: Columns = None,
        append: bool | Sequence[str] = False,
        max_columns: int = MAX_COLUMNS,
        length_buckets: Sequence[int] | None = None,
        require_finite: bool = False,
        on_error: OnError = "raise",
    ) -> Any:
        """Run the model; the collection that comes in is the kind that comes out.

        Parameters
        ----------
        x : ndarray, dask.array or Delayed; or a dict of them by input name
            numpy is computed now, on the scheduler that Dask would use. dask.array and Delayed
            stay lazy: nothing runs, and shape, dtype and chunks come from the graph. Arrays are
            chunked along the batch axis; an input without one is given once. A DataFrame or Series
            of pandas is computed now, one of dask stays lazy; the result is a DataFrame. A bag has
            a row in each item, an array or a dict of them by input name without the batch axis; the
            result is a bag. An xarray.DataArray, for a model of one input, gives a DataArray with
            the dimension of the rows and its coordinates.
        outputs : None, str or sequence of str
            None: the one output bare, or several as a dict by name. A name: that value bare,
            which may be an intermediate one. A sequence: a dict.
        batch_size : int, "auto" or None
            Rows for each run of the session, whatever the chunks are. "auto" finds the best number
            while the first tasks run, and keeps it in the host's store (`Plan.explain` says what
            was found); where rows depend on each other all rows of a chunk stay one run. None
            makes all rows of a chunk (for numpy: all rows) one run.
        plan : Plan, optional
            How the model is cut; whole by default.
        retries : int, optional
            How often Dask repeats a task that raised; ``onnx.retries`` (3) by default. Lazy
            arrays need ``dx.configure(client)`` on a cluster that you started yourself.
        columns : str, sequence of str, or mapping of input to these; for tables
            What feeds what. By default several inputs take the columns of their names; one input
            takes the column of its name, or all columns of numbers (of text, if that is what it
            takes) in their order.
        append : bool or sequence of str, default False; for tables
            Keep the caller's columns, or those that are named, before those of the model. Text in
            them that is not UTF-8, which no file can hold, makes its row a bad one.
        max_columns : int, default 32; for tables
            An output of up to so many numbers a row becomes so many columns, called by the classes
            where the graph knows them; a longer one becomes a column of lists.
        length_buckets : sequence of int, optional; for tables
            Lists of unequal length are padded with zeros to the next of these lengths, and rows of
            one length run together; the result has the caller's order. A list that is longer than
            the longest of them is a bad row. Without, the lists of a partition must be equally
            long.
        require_finite : bool, default False; for tables and bags
            A row with a NaN or an infinity in a float input is a bad one.
        on_error : {"raise", "null"}; for tables and bags
            What becomes of rows that do not fit the model or that its kernels refuse: an error that
            says partition, rows and the first bad row; or a missing value in their place (bags:
            None), with integers and booleans as pandas' nullable types. See `predict_checked`.

        Raises
        ------
        InputError
            Before any work: names, dtypes, ranks, sizes, chunks that do not fit the model.
        StageError, StoreError
            From a worker, when the result is computed.
        """
        run = RunOptions(outputs, batch_size, plan, retries)
        rows = RowOptions(on_error, require_finite)
        table = TableOptions(columns, append, max_columns, length_buckets)
        if isinstance(plan, ShardedPlan):
            table.refuse(x)
            rows.refuse(x)
            return predict_on_shards(self, x, plan, run)
        if is_table(x):
            return of_table(self, x, run, table, rows)
        table.refuse(x)
        if is_bag(x):
            return of_bag(self, x, run, rows)
        rows.refuse(x)
        if is_dataarray(x):
            return of_dataarray(self, x, run)
        request, feeds, kind = self._request(x, run)
        return request.wanted.shape_result(_PREDICT[kind](request, feeds))

    def predict_checked(
        self,
        x: Any,
        *,
        outputs: Outputs = None,
        batch_size: BatchSize = "auto",
        plan: Plan | None = None,
        retries: int | None = None,
        columns: Columns = None,
        append: bool | Sequence[str] = False,
        max_columns: int = MAX_COLUMNS,
        length_buckets: Sequence[int] | None = None,
        require_finite: bool = False,
    ) -> tuple[Any, Any]:
        """As `predict`, with the bad rows in a collection of their own.

        A bad row is one that does not fit the model (missing or out of range where the input has
        no place for that, a list of a wrong length, text that is not UTF-8, not finite where
        `require_finite` forbids it), or that the model's kernels refuse; the latter are found by
        halving.

        Parameters
        ----------
        x : DataFrame or Series of pandas or dask, or dask.bag

        Returns
        -------
        good, bad
            The results of the good rows, with their index; the caller's bad rows, with their index
            and a column ``error``. Of a bag the results, and dicts of ``row`` and ``error``. Lazy
            for dask: compute both in one call, which runs the model once.
        """
        run = RunOptions(outputs, batch_size, plan, retries)
        rows = RowOptions("split", require_finite)
        if is_table(x):
            table = TableOptions(columns, append, max_columns, length_buckets)
            good, bad = of_table(self, x, run, table, rows)
            return good, bad
        if not is_bag(x):
            raise InputError(
                f"rows of {type(x).__name__} are not checked one by one",
                "pass a table or a bag",
            )
        good, bad = of_bag(self, x, run, rows)
        return good, bad

    def meta_for(
        self,
        x: Any,
        *,
        outputs: Outputs = None,
        columns: Columns = None,
        append: bool | Sequence[str] = False,
        max_columns: int = MAX_COLUMNS,
        length_buckets: Sequence[int] | None = None,
        on_error: OnError = "raise",
    ) -> Any:
        """The result of `predict` without rows: what Dask's ``meta=`` takes. Runs nothing.

        Parameters
        ----------
        x : DataFrame or Series, of pandas or dask
        columns, append, max_columns, length_buckets, on_error : as for `predict`
        """
        table = TableOptions(columns, append, max_columns, length_buckets)
        return meta_of_table(self, x, outputs, table, RowOptions(on_error))

    def delayed(
        self,
        x: Any,
        *,
        outputs: Outputs = None,
        batch_size: BatchSize = "auto",
        plan: Plan | ShardedPlan | None = None,
        retries: int | None = None,
    ) -> Any:
        """As `predict`, but always lazy: a Delayed for each output, whatever `x` is.

        For loops and comprehensions that build a graph:
        ``[model.delayed(load(path)) for path in paths]``.
        """
        specs = {spec.name: spec for spec in (*self.inputs, *self.defaults)}

        def wrap(name: str, value: Any) -> Any:
            is_plain = name in specs and not is_dask_collection(value)
            return as_delayed(name, as_array(value, specs[name]) if is_plain else value)

        if isinstance(x, Mapping):
            lazy: Any = {name: wrap(name, value) for name, value in x.items()}
        else:
            lazy = wrap(self.inputs[0].name, x)
        return self.predict(
            lazy, outputs=outputs, batch_size=batch_size, plan=plan, retries=retries
        )

    def check(self, x: Any, *, outputs: Outputs = None) -> None:
        """Compare inputs with the model, and do nothing else.

        Parameters
        ----------
        x : anything with ``dtype`` and ``shape``, or a dict of them by input name

        Raises
        ------
        InputError
            Names, dtypes, ranks or static sizes do not fit.
        """
        model = self._fed_with(x)
        if model is not self:
            model.check(x, outputs=outputs)
            return
        wanted = resolve_outputs(outputs, self.facts.outputs, self._facts.known_values)
        needed = self._whole_plan(self.facts.outputs).for_outputs(wanted.names).stage_graph.inputs
        arrays = resolve_feeds(x, self.inputs, [spec.name for spec in needed])
        batch = self._facts.batch_at(wanted.names, shapes_of(arrays, self.inputs))
        axes = batch.input_axes if batch.is_proven else dict.fromkeys(batch.input_axes)
        check_arrays(arrays, self.inputs, axes)

    def __call__(
        self,
        x: Any,
        *,
        outputs: Outputs = None,
        batch_size: BatchSize = "auto",
        columns: Columns = None,
        append: bool | Sequence[str] = False,
        max_columns: int = MAX_COLUMNS,
        length_buckets: Sequence[int] | None = None,
        require_finite: bool = False,
        on_error: OnError = "raise",
    ) -> Any:
        """Run here and now, in this thread: for functions that Dask already runs in a task.

        Parameters and result as for `predict` with numpy; never goes through a cluster's client.

        Raises
        ------
        InputError, StageError, StoreError
        """
        run = RunOptions(outputs, batch_size)
        if is_table(x) and not is_dask_collection(x):
            table = TableOptions(columns, append, max_columns, length_buckets)
            rows = RowOptions(on_error, require_finite)
            return of_table(self, x, run, table, rows, inline=True)
        request, feeds, kind = self._request(x, run, inline=True)
        if kind != "eager":
            raise InputError(
                "a model called like a function takes arrays in memory, not lazy collections",
                "use model.predict(...), which stays lazy",
            )
        return request.wanted.shape_result(predict_eager(request, feeds, inline=True))

    def _request(
        self, x: Any, run: RunOptions, *, inline: bool = False
    ) -> tuple[Request, dict[str, Any], str]:
        """What is asked for, checked as far as it can be without looking at the arrays."""
        if not isinstance(run.plan, Plan | None):
            raise PlanError(
                f"plan is a {type(run.plan).__name__}", "give plan=model.plan('pipeline', ...)"
            )
        model = self._fed_with(x)
        if model is not self:
            plan = None if run.plan is None else run.plan.on(model)
            return model._request(x, dataclasses.replace(run, plan=plan), inline=inline)
        batch_size = run.batch_size
        chosen: Plan = run.plan or self._whole_plan(self.facts.outputs)
        if chosen.model.__dask_tokenize__() != self.__dask_tokenize__():
            raise PlanError("the plan is of another model", "make it with this model's plan()")
        wanted = resolve_outputs(run.outputs, self.facts.outputs, self._facts.known_values)
        chosen = chosen.for_outputs(wanted.names)
        feeds = resolve_feeds(x, self.inputs, [spec.name for spec in chosen.stage_graph.inputs])
        kind = kind_of(feeds)
        axes, fixed = input_axes(self._onnx)
        is_cut = kind != "eager" or isinstance(batch_size, int) or fixed is not None
        if is_cut or is_empty(feeds, axes) or (batch_size == "auto" and has_rows(feeds, axes)):
            shapes = shapes_of(feeds, self.inputs)
            is_table = kind == "table"
            batch = self._facts.batch_at(wanted.names, shapes, first_axis_only=is_table)
            if not batch.is_proven and not is_table:
                check_uncut(batch, feeds, self.inputs, batch_size)
                batch = self._facts.whole_batch(batch, wanted.names, shapes)
        else:
            # One run of everything: no row is told from another, so nothing need be found out.
            batch = BatchFacts(axes, None, dict.fromkeys(wanted.names), {})
        batching = resolve_batching(batch, wanted.names, batch_size)
        if batching.is_auto and len(chosen.stages) > 1:
            batching = Batching(chosen.rows_per_run)
        if not inline:
            # At least one row is run, however few are best.
            rows = 1 if batching.is_auto else batching.rows_per_run or most_rows(feeds, axes)
            scale = self._facts.row_scale(shapes_of(feeds, self.inputs), chosen.recipe.shapes)
            self._check_cluster(chosen, rows, wanted.names, scale)
        request = Request(
            model=self._published().ref,
            delivery=None if inline else plan_delivery(self._onnx, chosen.stage_graph),
            stages=chosen.stage_graph,
            session=chosen.recipe.session,
            wanted=wanted,
            batch=batch,
            batching=batching,
            lossy=None if chosen.drift is None else chosen.drift.way,
            placement=chosen.placement,
            schedule=chosen.bounds,
            rows=chosen.rows,
            expects=chosen.is_measured,
            is_batched=isinstance(batch_size, int),
            retries=effective_retries(run.retries),
            custom=self._facts.custom,
            # What is drawn anew each time must not be taken for what was drawn before.
            salt=uuid.uuid4().hex if self._facts.draws_anew else "",
        )
        return request, feeds, kind

    def _check_cluster(
        self, plan: Plan, rows: float | None, outputs: tuple[str, ...], scale: float
    ) -> None:
        """Whether the cluster that Dask would use can run a plan so many rows at a time, each of
        which is `scale` times as large as the one that was planned for."""
        client = current_client()
        check_configured(client, plan.placement)
        load = Load(
            self.name, plan.stage_graph, plan.placement, rows, plan.rows, plan.bounds, scale
        )
        check_fits(client, load, functools.partial(self._facts.fewest_stages, plan.recipe, outputs))

    def __reduce__(self) -> tuple[Any, ...]:
        # Weights held in memory do not travel: they go into the host's store, and a reference on.
        published = dataclasses.replace(self._published(), blobs={})
        if len(published.proto) > _PICKLED_PROTO_BYTES:
            published = dataclasses.replace(published, proto=b"")
        return _unpickle, (published, self._facts.custom, self._facts.libraries)

    def __dask_tokenize__(self) -> tuple[str, ...]:
        custom = self._facts.custom
        own_token = "" if custom is None else custom.token
        return (self.token, own_token, repr(self._onnx.rows), *self._facts.libraries)

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"<dask_onnx.Model {self.name!r}: ({inputs}) -> ({outputs})>"

    def _published(self) -> OnnxModel:
        """The model, once processes of this host can find it."""
        source = self._onnx.source
        if source is None or not _is_there(source):
            Store().put(self._onnx)
        else:
            # Workers can load the file themselves, which takes memory: save them that if we can.
            with contextlib.suppress(StoreError):
                Store().note_places(self._onnx)
        return self._onnx

    def _fed_with(self, x: Any) -> Model:
        """The model that takes what `x` has: itself, or one where initializers are inputs."""
        if not self.defaults or not isinstance(x, Mapping):
            return self
        fed = tuple(spec.name for spec in self.defaults if spec.name in x)
        if fed and fed not in self._overriding:
            self._overriding[fed] = self.extract([*self.facts.inputs, *fed], self.facts.outputs)
        return self._overriding[fed] if fed else self

    def _whole_plan(self, outputs: tuple[str, ...]) -> Plan:
        if outputs not in self._whole_plans:
            self._whole_plans[outputs] = self.plan("whole", outputs=list(outputs))
        return self._whole_plans[outputs]


_PICKLED_PROTO_BYTES = 256 * 1024
"""A larger proto (a forest is all attributes) is found where its weights are."""


def _unpickle(
    onnx_model: OnnxModel, custom: CustomKernels | None, libraries: tuple[str, ...]
) -> Model:
    if not onnx_model.proto:
        store = Store()
        with store.using():
            proto = fetch_proto(store, onnx_model.ref, ())
        onnx_model = dataclasses.replace(onnx_model, proto=proto)
    return Model(onnx_model, custom, libraries)


_PREDICT: Mapping[str, Callable[[Request, Mapping[str, Any]], Mapping[str, Any]]] = {
    "eager": predict_eager,
    "array": predict_arrays,
    "delayed": predict_delayed,
}


def _is_there(source: FileSource) -> bool:
    """Whether the model's file is still the one that was loaded; of a URL that is assumed."""
    if is_url(source.path):
        return True
    try:
        check_unchanged(source)
    except ModelError:
        return False
    return True
