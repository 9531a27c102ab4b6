"""Checks of how a request splits rows over runs, against the model's batch axes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from dask.delayed import Delayed

from dask_onnx.analysis.batch_facts import BatchFacts, ExportedRows
from dask_onnx.analysis.size_conflicts import SizeConflict
from dask_onnx.collections.request_checks import check_arrays, format_row_counts
from dask_onnx.collections.run_options import BatchSize
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.process_caches import BoundedCache
from dask_onnx.core.specs import TensorSpec
from dask_onnx.runtime.batching import Batching


def resolve_batching(batch: BatchFacts, outputs: Sequence[str], batch_size: BatchSize) -> Batching:
    """Return the rows of each run of a session.

    Parameters
    ----------
    batch : BatchFacts
        Axes that carry rows.
    outputs : sequence of str
        Requested outputs.
    batch_size : int, "auto" or None
        "auto" leaves the choice to the task, unless rows may depend on each other or an output has
        no rows; then, and for None, all rows of a task are one run. A graph that takes one number
        of rows only, for a constant inside it, runs that many whatever is asked for.

    Raises
    ------
    InputError
        `batch_size` is not a positive integer, or the inputs of the graph fix another number of
        rows.
    """
    check_batch_size(batch_size)
    fixed = batch.fixed_rows
    if fixed is None:
        has_rows = any(axis is not None for axis in batch.input_axes.values())
        rows_are_free = has_rows and not batch.dependent and not batch.opaque
        have_rows = all(batch.output_axes[name] is not None for name in outputs)
        is_free = rows_are_free and have_rows
        if batch_size != "auto":
            return Batching(batch_size, is_divisible=is_free and not batch.random)
        return Batching(is_auto=is_free)
    # A graph that declares an open number of rows does not show the one that it takes.
    is_open = batch.exported is not None and batch.exported.is_open
    if batch_size not in (None, "auto", fixed) and not is_open:
        raise InputError(
            f"batch_size is {batch_size}; the graph takes exactly {fixed} "
            f"row{'s' if fixed > 1 else ''} a run",
            "leave batch_size out, or open the number of rows: model.freed(), which proves and "
            "checks it; or export the model with an open batch dimension",
            option="batch_size",
            numbers={"fixed_rows": fixed},
            suggestions=[Suggestion("batch_size", fixed)],
        )
    return Batching(fixed, is_fixed=True)


def check_batch_size(batch_size: Any) -> None:
    """Raise an InputError unless a batch size is a number of rows, "auto" or None."""
    is_number = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    is_word = batch_size is None or (isinstance(batch_size, str) and batch_size == "auto")
    if not is_word and not (is_number and batch_size >= 1):
        raise InputError(
            f"batch_size is {batch_size!r}",
            "give a number of rows, 1 or more, 'auto' or None",
            option="batch_size",
            suggestions=[Suggestion("batch_size", "auto")],
        )


def check_rows_feed(batch: BatchFacts, inputs: Sequence[TensorSpec], what: str) -> None:
    """Check that rows of tables and bags feed only inputs that carry rows.

    Parameters
    ----------
    batch : BatchFacts
        Axes that carry rows. Where no input has one, outputs have none either, which is refused
        elsewhere.
    inputs : sequence of TensorSpec
        Inputs that are fed.
    what : str
        Source of the values, such as "a column".

    Raises
    ------
    InputError
        An input has no rows, while another one has.
    """
    axes = {spec.name: batch.input_axes.get(spec.name) for spec in inputs}
    if all(axis is None for axis in axes.values()):
        return
    for spec in inputs:
        if axes[spec.name] is None:
            rows = {name: axis for name, axis in axes.items() if axis is not None}
            rows[spec.name] = 0
            declare = f"; or declare that it carries rows too: dx.load(..., rows={rows})"
            raise InputError(
                f"input {spec} has one value for all rows; {what} has one for each row",
                f"pass arrays, a dict of them by input name{'' if spec.rank == 0 else declare}",
                option="rows",
                input=spec.name,
                suggestions=[] if spec.rank == 0 else [Suggestion("rows", rows)],
            )


def check_joins(
    batch: BatchFacts,
    outputs: Sequence[str],
    *,
    model: str,
    chunks: int,
    rows_per_run: int | None,
) -> None:
    """Refuse to split rows that are not proven independent, or whose results cannot be joined.

    Warns once for each model if a quantisation statistic couples the rows of a run.

    Parameters
    ----------
    batch : BatchFacts
        Axes that carry rows.
    outputs : sequence of str
        Requested outputs.
    model : str
        Token of the model.
    chunks : int
        Number of chunks or partitions.
    rows_per_run : int or None
        Rows of each run of a session; None if all rows of a chunk are one run.

    Raises
    ------
    InputError
        The rows would be split over several runs, and an output has no batch axis or needs all
        rows together.
    """
    if chunks <= 1 and rows_per_run is None:
        return
    how = f"{chunks} chunks" if chunks > 1 else f"runs of {rows_per_run} rows"
    if not batch.is_proven:
        raise unproven(batch, f"rows come in {how}")
    for name in outputs:
        if batch.output_axes[name] is None:
            raise InputError(
                f"output {name!r} has no batch axis, so results of {how} cannot be joined",
                "give all rows in one chunk without a batch_size, or ask for other outputs",
                option="outputs",
                numbers={"chunks": chunks},
            )
    if batch.coupled and batch.fixed_rows is None and not _warned.get(model):
        _warned.put(model, True)
        more = f" and {len(batch.coupled) - 1} more" if len(batch.coupled) > 1 else ""
        warnings.warn(
            f"rows come in {how}, and node {batch.coupled[0]!r}{more} quantises by a statistic "
            "over all rows of a run, so that results depend slightly on how rows are split; give "
            "one chunk and batch_size=None to run them together",
            stacklevel=5,
        )


_warned: BoundedCache[str, bool] = BoundedCache("models warned about", 1024)
"""Models that were warned about, by token."""


def unproven(
    batch: BatchFacts, what: str, numbers: Mapping[str, float] | None = None
) -> InputError:
    """Return the error for rows that would be split without proof that they are independent.

    Parameters
    ----------
    batch : BatchFacts
        Axes that carry rows, and the nodes that relate rows.
    what : str
        Reason for splitting rows, as the beginning of the message.
    numbers : mapping of str to number, optional
        Quantities in `what`.
    """
    blocker = batch.blockers[0]
    name, axis = blocker.axis
    return InputError(
        f"{what}, but the rows of this model are not proven to be independent: {blocker}",
        f"give all rows in one piece (one chunk or partition, no batch_size); or, if rows are "
        f"independent after all, declare it: dx.load(..., rows='independent'), or rows={{{name!r}: "
        f"{axis}}} to name the axis that carries them, rows='none' if there are none",
        option="rows",
        input=name,
        axis=axis,
        node=blocker.node or None,
        numbers=numbers,
        suggestions=[Suggestion("rows", "independent"), Suggestion("batch_size", None)],
    )


def check_named_rows(
    exported: ExportedRows, conflict: SizeConflict, rows: float | None, what: str
) -> None:
    """Refuse a number of rows that a graph with open rows cannot run, since it names another one.

    Parameters
    ----------
    exported : ExportedRows
        The number that the graph names, which is not proven to be one of independent rows.
    conflict : SizeConflict
        Node that cannot run with the given sizes.
    rows : float, optional
        Given number of rows; None if it is not known.
    what : str
        Name of the first input that carries rows.

    Raises
    ------
    InputError
        Always, unless the number of rows is the exported one.
    """
    if rows == exported.rows:
        return
    reasons = [*exported.mixing, *exported.opaque, *exported.lost]
    raise InputError(
        f"the model declares an open number of rows, and was exported for {exported.rows}: with "
        f"{'these' if rows is None else f'{rows:g}'} rows {conflict}; its rows are not proven to "
        f"be independent, because of node {reasons[0]!r}",
        f"give {exported.rows} rows; or, if rows are independent, declare it, so that they are run "
        f"{exported.rows} at a time: dx.load(..., rows='independent'); or export the model with "
        "an open batch dimension",
        option="rows",
        input=what,
        node=conflict.node,
        numbers={"exported_rows": exported.rows, **({} if rows is None else {"rows": rows})},
        suggestions=[Suggestion("rows", "independent")],
    )


def check_uncut(
    batch: BatchFacts,
    feeds: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    batch_size: BatchSize,
) -> None:
    """Refuse to split inputs whose rows are not proven to be independent.

    Parameters
    ----------
    batch : BatchFacts
        Axes that carry rows, as far as known, and the nodes that relate rows.
    feeds : mapping of str to array or Delayed
        Inputs by name.
    inputs : sequence of TensorSpec
        Inputs of the model.
    batch_size : int, "auto" or None
        Option of the request.

    Raises
    ------
    InputError
        A `batch_size` was given, or an array has several chunks, or inputs do not fit the model.
    """
    # A Delayed seems to have any attribute, so its dtype and shape are checked in its task.
    arrays = {name: value for name, value in feeds.items() if not isinstance(value, Delayed)}
    sized = {
        name: value
        for name, value in arrays.items()
        if hasattr(value, "dtype") and not any(size != size for size in value.shape)
    }
    check_arrays(sized, inputs, dict.fromkeys(spec.name for spec in inputs))
    rows = {
        name: sized[name].shape[axis]
        for name, axis in batch.likely_axes.items()
        if axis is not None and name in sized
    }
    differ = ""
    if len(set(rows.values())) > 1:
        differ = f"inputs differ in their number of rows: {format_row_counts(rows)}; "
    if isinstance(batch_size, int) and not isinstance(batch_size, bool):
        raise unproven(batch, f"{differ}batch_size is {batch_size}", {"batch_size": batch_size})
    for name, value in arrays.items():
        for axis, count in enumerate(getattr(value, "numblocks", ())):
            if count > 1:
                what = f"{differ}input {name!r} has {count} chunks on axis {axis}"
                raise unproven(batch, what, {"chunks": count})
