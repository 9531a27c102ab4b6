"""`Model`: an ONNX model, and the verbs that plan and run it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Unpack, overload

from dask_onnx.api.described_model import DescribedModel
from dask_onnx.api.plan import Plan
from dask_onnx.api.planner import Aim, PlanRequest, Shapes, make_plan
from dask_onnx.api.types import ArrayOptions as ForArrays
from dask_onnx.api.types import BagOptions as ForBags
from dask_onnx.api.types import TableOptions as ForTables
from dask_onnx.collections.kept_predictions import predict_kept
from dask_onnx.collections.partitions import meta_of_table
from dask_onnx.collections.prediction_progress import shown_progress
from dask_onnx.collections.predictions import (
    as_lazy_inputs,
    check,
    predict,
    predict_checked,
    predict_inline,
)
from dask_onnx.collections.prepared_request import PreparedRequest, prepare
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
from dask_onnx.core.specs import SessionSpec
from dask_onnx.planning.recipe import Strategy
from dask_onnx.planning.strategies import StrategyObject
from dask_onnx.sharding.on_shards import ShardedPlan, predict_on_shards, refuse_checkpoint
from dask_onnx.sharding.strategy import Sharded

if TYPE_CHECKING:
    import dask.array as da
    import dask.dataframe as dd
    import numpy as np
    import pandas as pd
    from dask.bag import Bag
    from dask.delayed import Delayed


class Model(DescribedModel):
    """An ONNX model that runs on Dask. Made by `dask_onnx.load`; immutable and picklable.

    Collections go in and come out: `predict` runs the model on arrays, tables, bags and Delayed,
    lazily where these are lazy. `plan` cuts the model into stages; `analysis` and `axes` describe
    its graph.

    A pickled Model has no weights: workers read them from the model's file, or from the store of
    their host.

    Parameters
    ----------
    onnx_model : OnnxModel
        The parsed model. To load one from a file, call `dask_onnx.load`.
    custom : CustomKernels, optional
        The caller's kernels.
    libraries : tuple of str
        Paths on the workers of ONNX Runtime's custom operator libraries.

    Raises
    ------
    ModelError
        `onnx_model` is something else, such as a path.

    Examples
    --------
    >>> import dask_onnx as dx
    >>> model = dx.load("detector.onnx")
    >>> maps = model.predict(images)
    """

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
        strategy: str | Strategy | StrategyObject = "whole",
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
        strategy: str | Strategy | StrategyObject | Sharded = "whole",
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
        """Cut the model into stages, each of which runs as one Dask task.

        Nothing runs, unless `measure` is given. All plans give the same results up to rounding.

        Parameters
        ----------
        strategy : str, Strategy, Pipeline, Fused, Branches or Sharded
            - "whole": one stage.
            - "pipeline", `Pipeline`: contiguous stages, the slowest as fast as possible. Without
              options the fewest stages that fit the workers, or one for each worker.
            - "fused", `Fused`: convex regions of about equal predicted time.
            - "branches", `Branches`: independent branches side by side.
            - "per_node": one stage for each node.
            - "auto": the fastest of these that fits the cluster, as predicted. For one request it
              considers shards of a sequence too, and may return a sharded plan.
            - `at_values`: the caller's own cuts.
            - `from_annotations`: the stages or shards that the model's ONNX annotations give.
            - `Sharded`: one request, split along its tokens or its heads.
        n_stages : int, optional
            Number of stages, for "pipeline" and "fused".
        n_workers : int, optional
            Largest number of stages side by side, for "branches"; 2 by default.
        memory_limit : int or str, optional
            Bytes of weights and activations that a stage may need, such as "1.5GiB", for
            "pipeline". Without `n_stages` it gives the fewest stages that keep within it.
        min_seconds : float, optional
            Predicted seconds that a stage computes at least, for "fused" without `n_stages`;
            ``onnx.plan.min-seconds`` by default.
        outputs : str or sequence of str, optional
            Graph outputs or intermediate values; the graph's outputs by default.
        shapes : mapping of str to tuple of int, optional
            Shapes of inputs by name for which costs are predicted. By default those of `measure`,
            or else one row, and 64 for other open dimensions.
        aim : {"throughput", "latency"}, optional
            "throughput": many tasks run at a time, each on its share of the cores. "latency": one
            task runs at a time, on all cores. By default throughput on a cluster; for arrays in
            memory without a cluster, latency if there is only one task.
        session : SessionSpec, optional
            Options of the ONNX Runtime sessions. Its `intra_op_num_threads` takes precedence over
            `aim`.
        measure : ndarray or mapping of str to ndarray, optional
            Rows to run here a few times on one thread, to predict with the measured seconds of each
            node on its kernel. If rows are independent, the first row is measured alone too. The
            measurements are saved in the host's store by model, kernels, CPU and shapes: later
            plans use them, and shapes that are known do not run again (``dask-onnx store forget``
            deletes them). At other shapes a node's seconds are interpolated from two measurements,
            or scaled from one.
        client : distributed.Client, optional
            Cluster that "auto" plans for; by default the client that Dask would use, or without
            one this machine.
        batches : int, optional
            Number of runs of the plan's shapes that "auto" plans for; by default 1 for
            ``aim="latency"``, otherwise 8 for each thread of the cluster.

        Returns
        -------
        Plan, SequencePlan or TensorPlan
            A `Plan`, except for `Sharded`, for annotations with shards, and where "auto" chooses
            shards.

        Raises
        ------
        PlanError
            There is no such strategy, it does not take an option, or the cut is impossible. Field
            `option` has the option at fault. Options are checked before anything is measured.
        InputError
            `shapes`, `outputs` or `measure` do not fit the model.
        StageError
            `measure` cannot be run here.

        Examples
        --------
        >>> plan = model.plan(dx.Pipeline(n_stages=4))
        >>> print(plan.explain())
        >>> maps = model.predict(images, plan=plan)
        """
        options = {
            "n_stages": n_stages,
            "n_workers": n_workers,
            "memory_limit": memory_limit,
            "min_seconds": min_seconds,
        }
        request = PlanRequest(
            strategy=strategy,
            options=options,
            outputs=outputs,
            shapes=shapes,
            aim=aim,
            session=session,
            measure=measure,
            client=client,
            batches=batches,
        )
        return make_plan(self._facts, request)

    @overload
    def predict(
        self, x: np.ndarray, *, outputs: str | None = None, **options: Unpack[ForArrays]
    ) -> np.ndarray: ...

    @overload
    def predict(
        self, x: np.ndarray, *, outputs: list[str] | tuple[str, ...], **options: Unpack[ForArrays]
    ) -> dict[str, np.ndarray]: ...

    @overload
    def predict(
        self, x: da.Array, *, outputs: str | None = None, **options: Unpack[ForArrays]
    ) -> da.Array: ...

    @overload
    def predict(
        self, x: da.Array, *, outputs: list[str] | tuple[str, ...], **options: Unpack[ForArrays]
    ) -> dict[str, da.Array]: ...

    @overload
    def predict(
        self, x: Delayed, *, outputs: str | None = None, **options: Unpack[ForArrays]
    ) -> Delayed: ...

    @overload
    def predict(self, x: Bag, *, outputs: Outputs = None, **options: Unpack[ForBags]) -> Bag: ...

    @overload
    def predict(
        self, x: dd.DataFrame | dd.Series, *, outputs: Outputs = None, **options: Unpack[ForTables]
    ) -> dd.DataFrame: ...

    @overload
    def predict(
        self, x: pd.DataFrame | pd.Series, *, outputs: Outputs = None, **options: Unpack[ForTables]
    ) -> pd.DataFrame: ...

    # Dicts by input name, DataArrays, and everything else that converts to an array. To a type
    # checker without the types of pandas, the overload before this one accepts everything.
    @overload
    def predict(  # type: ignore[overload-cannot-match]  # see above
        self, x: Any, *, outputs: Outputs = None, **options: Unpack[ForTables]
    ) -> Any: ...

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
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Any:
        """Run the model on a collection; the result is a collection of the same kind.

        Lazy collections stay lazy: nothing runs and no weights are read, and dtype, shape, chunks
        and columns of the result follow from the graph. Where no rule infers them, as behind a
        custom operator, that node alone runs once on a few made-up rows in this process.
        Collections in memory are computed at once, on the scheduler that Dask would use.

        Parameters
        ----------
        x : array, table, bag or Delayed; or mapping of str to these
            For a model of several inputs, a mapping by input name. An input without a batch axis is
            passed to every run.

            - numpy array, or anything that numpy converts: computed now.
            - ``dask.array``: lazy; chunked along the batch axis only.
            - ``Delayed`` of an array: lazy.
            - DataFrame or Series of pandas (computed now) or Dask (lazy): the result is a
              DataFrame. Tables and columns of polars, pyarrow and others that export Arrow's data
              give a table of the same library, at once.
            - bag of arrays, or of dicts by input name, one row each without the batch axis: lazy.
            - ``xarray.DataArray``, for a model of one input: the result keeps the dimensions that
              the model leaves as they are, with their coordinates; lazy if its data are.

            Values are converted to the model's types by the table of conversions, the same for
            every kind of collection (CONVERSIONS.md). Masked places are missing values: NaN in a
            floating-point input, refused by any other. Results of masked arrays are masked where
            the whole row of an input is.
        outputs : str or sequence of str, optional
            A name: that value bare, which may be an intermediate one. A sequence: a dict in that
            order. By default the one output bare, or a dict of all outputs.
        batch_size : int, "auto" or None
            Rows of each run of a session, whatever the chunks are. "auto" finds the fastest number
            while the first tasks do their work, and saves it in the host's store; rows that are not
            proven to be independent stay in one run. None: all rows of a chunk (of an array in
            memory: all rows) are one run. A graph whose inputs are open, and that takes one number
            of rows only because of a constant inside, runs that many whatever is asked for.
        plan : Plan, SequencePlan or TensorPlan, optional
            A plan of this model; by default the whole model is one stage.
        retries : int, optional
            Times that Dask repeats a task that raised; ``onnx.retries`` (3) by default.
        columns : str, sequence of str, or mapping of str to these, optional
            Tables only: the columns of the one input, or of inputs by name; the others take the
            columns of their names. By default all of several inputs do. One input takes the column
            of its name if there is one, or else all numeric columns (text columns, if the input
            takes text) in their order.
        append : bool or sequence of str
            Tables only: True keeps the table's columns before those of the model, a sequence keeps
            the named ones. A row whose text in them is not valid UTF-8, which no file can hold, is
            a bad row.
        max_columns : int
            Tables only: an output of up to so many elements per row becomes as many columns, named
            by their class if the graph has class labels. A longer one becomes a column of lists.
        length_buckets : sequence of int, optional
            Tables only: lengths to which lists of unequal length are padded with zeros. Rows of one
            length run together, and the result has the order of the input. A list longer than all
            of them makes a bad row. By default the lists of a partition must have equal length.
        require_finite : bool
            Tables and bags only: True if a NaN or an infinity in a floating-point input makes a
            row bad.
        on_error : {"raise", "null"}
            Tables and bags only: the treatment of bad rows, which do not fit the model or are
            rejected by a kernel. "raise": an error with the partition and the first bad row.
            "null": a missing value (in bags None), for which integers and booleans become pandas'
            nullable dtypes.
        checkpoint : path or URL, optional
            Folder that keeps finished chunks of a dask.array (of every output), partitions of a
            Dask table or bag, and pieces of arrays in memory. After the process, the cluster or the
            machine was lost, the same call computes only what is missing; what is there is read,
            equal bit for bit. The model, the options that change results, the division and Dask's
            token of the input, and the versions of packages must be the same. The token covers the
            files of tables, but of a Zarr store only its place. Chunks are pickled, unless they are
            plain arrays: use folders that only you can write to. The workers must see the folder.
            It stays until you remove it.
        progress : bool
            Collections in memory only: whether to show rows, rate and time left, on a terminal or
            in a notebook. Where standard error is neither, nothing is shown.

        Returns
        -------
        collection, or dict of str to collection
            Of the kind of `x`: one bare, or several by output name. A table or bag is always one
            collection. Sizes that depend on data are NaN. A sequence is a list. Scores that the
            exported model turns into maps are an array of shape (rows, classes), or a column for
            each class; see `classes`. Bags and Delayed have the maps.

        Raises
        ------
        InputError
            Names, dtypes, shapes, chunks, columns or options do not fit the model. Raised before
            any work, with the fields `input`, `axis`, `column` and `option` where they apply.
        PlanError
            The plan is of another model, or the model does not fit the workers.
        RunError
            A kernel rejected the values, when the result is computed.
        StageError, StoreError
            A stage failed, or its weights are unavailable, when the result is computed.

        See Also
        --------
        Model.predict_checked : Separate the bad rows from the good ones.
        Model.__call__ : Run in the current thread, inside a Dask task.

        Examples
        --------
        >>> images = da.from_zarr("images.zarr")
        >>> model.predict(images).to_zarr("maps.zarr")
        >>> pooled = encoder.predict({"ids": ids, "mask": mask}, outputs="pooled")
        >>> scores = forest.predict(dd.read_parquet("rows.parquet"))
        """
        run = RunOptions(outputs, batch_size, plan, retries)
        rows = RowOptions(on_error, require_finite)
        table = TableOptions(columns, append, max_columns, length_buckets)
        with shown_progress(progress, x, self.name):
            if isinstance(plan, ShardedPlan):
                table.refuse(x)
                rows.refuse(x)
                refuse_checkpoint(checkpoint)
                return predict_on_shards(self._facts, x, plan, run)
            if checkpoint is not None:
                return predict_kept(self._facts, x, run, table, rows, checkpoint)
            return predict(self._facts, x, run, table, rows)

    def prepare(
        self,
        client: Any = None,
        *,
        plan: Plan | None = None,
        outputs: Outputs = None,
        batch_size: BatchSize = None,
        retries: int | None = None,
    ) -> PreparedRequest:
        """Return a request that is checked once and started for each of many small inputs.

        `predict` checks a request and builds its graph each time, which takes longer than a small
        model runs. A prepared request does so for the first input of some shape and dtype; after
        that an input costs little more than `distributed.Client.submit`.

        Parameters
        ----------
        client : distributed.Client, optional
            Client of the cluster, synchronous; by default the one that Dask would use.
        plan : Plan, optional
            A plan of this model; by default the whole model is one stage.
        outputs : str or sequence of str, optional
            As for `predict`.
        batch_size : int, "auto" or None
            As for `predict`; by default an input is one run.
        retries : int, optional
            As for `predict`.

        Returns
        -------
        PreparedRequest
            ``request(x)`` returns the result, ``request.submit(x)`` a
            `concurrent.futures.Future` of it.

        Raises
        ------
        ClusterError
            The connection to the cluster is lost.
        InputError
            There is no client, or it is asynchronous; there is no such output.
        PlanError
            The plan is of another model, or the model does not fit the workers.

        See Also
        --------
        dask_onnx.stream : Run the model on a stream of inputs.

        Examples
        --------
        >>> request = model.prepare(client)
        >>> futures = [request.submit(frame) for frame in frames]
        """
        return prepare(
            self._facts,
            client,
            plan=plan,
            outputs=outputs,
            batch_size=batch_size,
            retries=retries,
        )

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
        """Run the model on a table or bag, and separate the bad rows from the results.

        A bad row does not fit the model (a missing or out-of-range value, a list of a wrong length,
        text that is not valid UTF-8, a value that is not finite if `require_finite`), or is
        rejected by a kernel. The latter are found by bisection.

        Parameters
        ----------
        x : DataFrame or Series of pandas or Dask, or dask.bag
            The rows.
        outputs, batch_size, plan, retries
            As for `predict`.
        columns, append, max_columns, length_buckets, require_finite
            As for `predict`.

        Returns
        -------
        good : DataFrame or bag
            The results of the good rows; those of a table with its index.
        bad : DataFrame or bag
            The bad rows: of a table with its index and a column ``error``, of a bag dicts of
            ``row`` and ``error``. Both are lazy for Dask; compute them in one call, which runs the
            model once.

        Raises
        ------
        InputError
            `x` is neither a table nor a bag, or its columns or the options do not fit the model.
        PlanError
            The plan is of another model, or the model does not fit the workers.

        Examples
        --------
        >>> good, bad = model.predict_checked(ddf)
        >>> good, bad = dask.compute(good, bad)
        """
        run = RunOptions(outputs, batch_size, plan, retries)
        table = TableOptions(columns, append, max_columns, length_buckets)
        return predict_checked(self._facts, x, run, table, require_finite=require_finite)

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
        """Return the result of `predict` without rows, for ``meta=`` of Dask. Runs nothing.

        Parameters
        ----------
        x : DataFrame or Series of pandas or Dask
            The table; only its columns and dtypes are read.
        outputs, columns, append, max_columns, length_buckets, on_error
            As for `predict`.

        Returns
        -------
        DataFrame
            Without rows, with the columns and dtypes of the result.

        Raises
        ------
        InputError
            The columns or options do not fit the model.

        Examples
        --------
        >>> ddf.map_partitions(model, meta=model.meta_for(ddf))
        """
        table = TableOptions(columns, append, max_columns, length_buckets)
        return meta_of_table(self._facts, x, outputs, table, RowOptions(on_error))

    def delayed(
        self,
        x: Any,
        *,
        outputs: Outputs = None,
        batch_size: BatchSize = "auto",
        plan: Plan | ShardedPlan | None = None,
        retries: int | None = None,
    ) -> Any:
        """Return a Delayed for each output, whatever kind of array `x` is. Runs nothing.

        Parameters
        ----------
        x : array or Delayed; or mapping of str to these
            The inputs, as for `predict`.
        outputs, batch_size, plan, retries
            As for `predict`.

        Returns
        -------
        Delayed, or dict of str to Delayed
            One bare, or several by output name.

        Raises
        ------
        InputError, PlanError
            As for `predict`.

        Examples
        --------
        >>> results = [model.delayed(read(path)) for path in paths]
        >>> dask.compute(*results)
        """
        lazy = as_lazy_inputs(self._facts, x)
        return self.predict(
            lazy, outputs=outputs, batch_size=batch_size, plan=plan, retries=retries
        )

    def check(
        self,
        x: Any,
        *,
        outputs: Outputs = None,
        batch_size: BatchSize = "auto",
        plan: Plan | None = None,
        columns: Columns = None,
        append: bool | Sequence[str] = False,
        max_columns: int = MAX_COLUMNS,
        length_buckets: Sequence[int] | None = None,
        require_finite: bool = False,
        on_error: OnError = "raise",
    ) -> None:
        """Compare a collection with the model, without running anything.

        Columns and dtypes of a table are compared, and dtypes and shapes of arrays. Single rows are
        not checked.

        Parameters
        ----------
        x : array, table, bag or Delayed; or mapping of str to these
            As for `predict`.
        outputs, batch_size, plan
            As for `predict`.
        columns, append, max_columns, length_buckets, require_finite, on_error
            As for `predict`.

        Raises
        ------
        InputError
            Names, dtypes, ranks, static sizes, columns or options do not fit.

        Examples
        --------
        >>> model.check(images)
        """
        run = RunOptions(outputs, batch_size, plan)
        table = TableOptions(columns, append, max_columns, length_buckets)
        check(self._facts, x, run, table, RowOptions(on_error, require_finite))

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
        """Run the model at once in this thread, for functions that run inside a Dask task.

        No scheduler and no cluster is involved.

        Parameters
        ----------
        x : ndarray, pandas DataFrame or Series; or mapping of str to ndarray
            Inputs in memory.
        outputs, batch_size, columns, append, max_columns, length_buckets, require_finite, on_error
            As for `predict`.

        Returns
        -------
        ndarray or DataFrame, or dict of str to ndarray
            As for `predict`.

        Raises
        ------
        InputError
            `x` is lazy or does not fit the model.
        StageError, StoreError
            A stage failed, or its weights are unavailable.

        Examples
        --------
        >>> images.map_blocks(model, dtype="float32")
        """
        run = RunOptions(outputs, batch_size)
        table = TableOptions(columns, append, max_columns, length_buckets)
        rows = RowOptions(on_error, require_finite)
        return predict_inline(self._facts, x, run, table, rows)
