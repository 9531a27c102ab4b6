"""What a caller asks for, checked against the model before any work starts."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dask.delayed import Delayed

from dask_onnx.analysis.batch import BatchFacts
from dask_onnx.analysis.shapes import bind_symbols
from dask_onnx.collections.run_options import BatchSize, Outputs
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec, dtype_name
from dask_onnx.runtime.batching import Batching


@dataclass(frozen=True, slots=True)
class Wanted:
    """The outputs of a request, and how they are handed back."""

    names: tuple[str, ...]
    is_bare: bool
    """One value rather than a dict by name."""

    def shape_result(self, values: Mapping[str, Any]) -> Any:
        if self.is_bare:
            return values[self.names[0]]
        return {name: values[name] for name in self.names}


def resolve_outputs(outputs: Outputs, declared: Sequence[str], known: Iterable[str]) -> Wanted:
    """The names behind an `outputs` option.

    Parameters
    ----------
    outputs : None, str or sequence of str
        None: all outputs, bare if there is one. A name: that one, bare. A sequence: a dict.
    declared : the graph's outputs, in its order
    known : every value that may be named

    Raises
    ------
    InputError
        A name that the model does not have; near ones are named.
    """
    if outputs is None:
        return Wanted(tuple(declared), len(declared) == 1)
    names = (outputs,) if isinstance(outputs, str) else tuple(dict.fromkeys(outputs))
    everything = set(known)
    for name in names:
        if name not in everything:
            near = difflib.get_close_matches(name, everything, n=3, cutoff=0.5)
            hint = f"did you mean {_names(near)}? " if near else ""
            raise InputError(
                f"the model has no output or value {name!r}",
                f"{hint}its outputs are {_names(declared)}",
            )
    if not names:
        raise InputError("outputs is empty", f"name one or more of {_names(declared)}")
    order = {name: i for i, name in enumerate(declared)}
    return Wanted(
        tuple(sorted(names, key=lambda name: order.get(name, len(order)))),
        isinstance(outputs, str),
    )


def resolve_feeds(x: Any, inputs: Sequence[TensorSpec], needed: Iterable[str]) -> dict[str, Any]:
    """Input arrays by name, in the order of the graph.

    Raises
    ------
    InputError
        An input is missing, or one is given that the model does not have.
    """
    names = [spec.name for spec in inputs]
    wanted = [name for name in names if name in set(needed)]
    if not isinstance(x, Mapping):
        if len(wanted) != 1:
            raise InputError(
                f"one array was given; the model takes {len(wanted)} inputs: {_names(wanted)}",
                "pass a dict by input name",
            )
        return {wanted[0]: x}
    superfluous = [name for name in x if name not in names]
    missing = [name for name in wanted if name not in x]
    if superfluous or missing:
        faults = []
        if missing:
            faults.append(f"input {_names(missing)} is missing")
        if superfluous:
            faults.append(f"input {_names(superfluous)} is not one of the model's")
        raise InputError("; ".join(faults), f"the model takes {_names(wanted)}; got {_names(x)}")
    return {name: x[name] for name in wanted}


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def check_arrays(
    arrays: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    axes: Mapping[str, int | None],
) -> None:
    """Compare dtype, rank and static dimensions with the model.

    Parameters
    ----------
    arrays : mapping of input name to anything with ``dtype`` and ``shape`` (NaN where unknown)
    axes : each input's batch axis

    Raises
    ------
    InputError
        Saying which input, what was expected, what was given.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in inputs:
        if spec.name not in arrays:
            continue
        array = arrays[spec.name]
        if spec.kind is not None:
            _check_kind(array, spec)
            continue
        check_dtype(array.dtype, spec)
        axis = axes[spec.name]
        dims: list[Any] = list(array.shape)
        if spec.shape is not None and len(dims) == len(spec.shape) and axis is not None:
            declared = spec.shape[axis]
            if isinstance(declared, int):  # any number of rows, in runs of the fixed one
                dims[axis] = declared
            elif math.isnan(dims[axis]):
                dims[axis] = -1
        for i, size in enumerate(dims):
            if math.isnan(size):
                raise InputError(
                    f"input {spec.name!r} has an unknown size (NaN) on axis {i}; its shape is "
                    f"{tuple(array.shape)}",
                    "call compute_chunk_sizes() on it first; only the batch axis may be unknown",
                )
        shapes[spec.name] = tuple(int(size) for size in dims)
    _check_static(shapes, inputs, axes)
    _check_rows(arrays, axes)


def _check_static(
    shapes: Mapping[str, tuple[int, ...]],
    inputs: Sequence[TensorSpec],
    axes: Mapping[str, int | None],
) -> None:
    known = {
        name: shape
        for name, shape in shapes.items()
        if axes[name] is None or shape[_within(axes[name], shape)] >= 0
    }
    bind_symbols(tuple(inputs), known)
    # Inputs whose number of rows is not known yet: their other axes are checked all the same.
    for spec in inputs:
        shape = shapes.get(spec.name)
        if shape is not None and spec.name not in known:
            axis = axes[spec.name]
            assert axis is not None
            rows = tuple(1 if i == axis else size for i, size in enumerate(shape))
            bind_symbols((spec,), {spec.name: rows})


def _check_rows(arrays: Mapping[str, Any], axes: Mapping[str, int | None]) -> None:
    rows = {
        name: array.shape[axis]
        for name, array in arrays.items()
        if (axis := axes[name]) is not None and not math.isnan(array.shape[axis])
    }
    if len(set(rows.values())) > 1:
        counts = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        raise InputError(
            f"inputs differ in their number of rows: {counts}",
            "inputs with a batch axis must have the same number of rows",
        )


def _within(axis: int | None, shape: tuple[int, ...]) -> int:
    return min(axis or 0, len(shape) - 1)


def _check_kind(value: Any, spec: TensorSpec) -> None:
    wanted = {"seq": list, "map": dict}.get((spec.kind or "").partition("(")[0])
    if wanted is not None and not isinstance(value, wanted):
        raise InputError(
            f"input {spec.name!r} is given as {type(value).__name__}; the model takes {spec.kind}",
            f"pass a {wanted.__name__}",
        )


def check_dtype(dtype: Any, spec: TensorSpec) -> None:
    """
    Raises
    ------
    InputError
    """
    if spec.dtype is None or dtype == spec.dtype or _are_strings(dtype, spec.dtype):
        return
    raise InputError(
        f"input {spec.name!r} has dtype {dtype}; the model takes {dtype_name(spec.dtype)}",
        f"convert it: .astype({dtype_name(spec.dtype)!r})",
    )


def _are_strings(dtype: Any, wanted: Any) -> bool:
    return bool(wanted.kind == "O" and dtype.kind in "UOST")


def resolve_batching(batch: BatchFacts, outputs: Sequence[str], batch_size: BatchSize) -> Batching:
    """Rows for each run of the session.

    Parameters
    ----------
    batch_size : int, "auto" or None
        "auto" leaves it to the task, unless the result of a row may depend on the rows beside it,
        or an output has no rows: then, and for None, all rows of a task are one run.

    Raises
    ------
    InputError
        `batch_size` is not a positive integer, or the graph fixes another number of rows.
    """
    is_number = isinstance(batch_size, int) and not isinstance(batch_size, bool)
    if batch_size not in (None, "auto") and not (is_number and int(batch_size or 0) >= 1):
        raise InputError(
            f"batch_size is {batch_size!r}", "give a number of rows, 1 or more, 'auto' or None"
        )
    fixed = batch.fixed_rows
    if fixed is None:
        if batch_size != "auto":
            return Batching(batch_size)
        has_rows = any(axis is not None for axis in batch.input_axes.values())
        rows_are_free = has_rows and not batch.dependent and not batch.opaque
        have_rows = all(batch.output_axes[name] is not None for name in outputs)
        return Batching(is_auto=rows_are_free and have_rows)
    if batch_size not in (None, "auto", fixed):
        raise InputError(
            f"batch_size is {batch_size}; the graph takes exactly {fixed} "
            f"row{'s' if fixed > 1 else ''} a run",
            "leave batch_size out, or export the model with an open batch dimension",
        )
    return Batching(fixed, is_fixed=True)


def check_joins(
    batch: BatchFacts,
    outputs: Sequence[str],
    *,
    model: str,
    chunks: int,
    rows_per_run: int | None,
) -> None:
    """Refuse to cut rows apart that are not proven to be independent, or that the graph does not
    give back; warn, once for each model, where a quantisation statistic couples them.

    Parameters
    ----------
    model : its token

    Raises
    ------
    InputError
        The rows would come in more than one run, and an output has no batch axis, or needs rows
        together.
    """
    if chunks <= 1 and rows_per_run is None:
        return
    how = f"{chunks} chunks" if chunks > 1 else f"runs of {rows_per_run} rows"
    if not batch.is_proven:
        raise unproven(batch, f"rows come in {how}")
    for name in outputs:
        if batch.output_axes[name] is None:
            raise InputError(
                f"output {name!r} has no batch axis, so it cannot be put together from {how}",
                "give all rows in one chunk without a batch_size, or ask for other outputs",
            )
    if batch.coupled and batch.fixed_rows is None and model not in _warned:
        _warned.add(model)
        more = f" and {len(batch.coupled) - 1} more" if len(batch.coupled) > 1 else ""
        warnings.warn(
            f"rows come in {how}, and node {batch.coupled[0]!r}{more} quantises by a statistic "
            "over all rows of a run, so that results depend slightly on how rows are cut; give "
            "one chunk and batch_size=None to have them together",
            stacklevel=5,
        )


_warned: set[str] = set()
"""Tokens of models that were warned about."""


def unproven(batch: BatchFacts, what: str) -> InputError:
    """Return the error for rows that would be cut though nothing proves that they may be."""
    blocker = batch.blockers[0]
    name, axis = blocker.axis
    return InputError(
        f"{what}, but the rows of this model are not proven to be independent: {blocker}",
        f"give all rows in one piece (one chunk or partition, no batch_size); or, if rows are "
        f"independent after all, say so: dx.load(..., rows='independent'), or rows={{{name!r}: "
        f"{axis}}} to say which axis carries them, rows='none' if there are none",
    )


def check_uncut(
    batch: BatchFacts,
    feeds: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    batch_size: BatchSize,
) -> None:
    """Refuse to cut inputs whose rows are not proven to be independent.

    Raises
    ------
    InputError
        A `batch_size` was given, or an array has several chunks; inputs do not fit the model.
    """
    # A Delayed has any attribute: it is looked at when it is there.
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
        counts = ", ".join(f"{name!r} has {count}" for name, count in rows.items())
        differ = f"inputs differ in their number of rows: {counts}; "
    if isinstance(batch_size, int) and not isinstance(batch_size, bool):
        raise unproven(batch, f"{differ}batch_size is {batch_size}")
    for name, value in arrays.items():
        for axis, count in enumerate(getattr(value, "numblocks", ())):
            if count > 1:
                raise unproven(batch, f"{differ}input {name!r} has {count} chunks on axis {axis}")
