"""Checks of a request against the model, before any work starts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from dask_onnx.analysis.input_sizes import check_static_sizes
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.runtime.input_values import check_dtype


@dataclass(frozen=True, slots=True)
class Wanted:
    """Outputs of a request, and the form in which the caller wants them."""

    names: tuple[str, ...]
    """Names in the order of the graph, intermediate values last: the same request has the same keys
    however the caller orders its outputs."""
    is_bare: bool
    """True if the caller wants one value rather than a dict by name."""
    asked: tuple[str, ...] = ()
    """Names in the caller's order; empty for the order of the graph."""

    @property
    def ordered(self) -> tuple[str, ...]:
        """Names in the order in which results are handed over."""
        return self.asked or self.names

    def shape_result(self, values: Mapping[str, Any]) -> Any:
        """Return the values as the caller wants them: one bare, or a dict in the caller's order."""
        if self.is_bare:
            return values[self.names[0]]
        return {name: values[name] for name in self.ordered}


def resolve_outputs(outputs: Outputs, declared: Sequence[str], known: Set[str]) -> Wanted:
    """Return the outputs that an option `outputs` names.

    Parameters
    ----------
    outputs : None, str or sequence of str
        None: all outputs, bare if there is one. A name: that one, bare. A sequence: a dict.
    declared : sequence of str
        Outputs of the graph, in its order.
    known : set of str
        All values that may be named.

    Raises
    ------
    InputError
        The model has no value of a name; similar names are suggested. Or no output is named, or
        something else than names is given.
    """
    if outputs is None:
        return Wanted(tuple(declared), len(declared) == 1)
    if not isinstance(outputs, Iterable):
        raise InputError(
            f"outputs is {outputs!r}",
            f"give a name, or a list of names; the model's outputs are {_names(declared)}",
            option="outputs",
            suggestions=[Suggestion("outputs", each) for each in declared],
        )
    names = (outputs,) if isinstance(outputs, str) else tuple(dict.fromkeys(outputs))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
            hint = f"did you mean {_names(near)}? " if near else ""
            raise InputError(
                f"the model has no output or value {name!r}",
                f"{hint}its outputs are {_names(declared)}",
                option="outputs",
                suggestions=[Suggestion("outputs", each) for each in near or declared],
            )
    if not names:
        raise InputError(
            "outputs is empty",
            f"name one or more of {_names(declared)}",
            option="outputs",
            suggestions=[Suggestion("outputs", list(declared))],
        )
    order = {name: i for i, name in enumerate(declared)}
    return Wanted(
        tuple(sorted(names, key=lambda name: order.get(name, len(order)))),
        isinstance(outputs, str),
        names,
    )


def resolve_feeds(x: Any, inputs: Sequence[TensorSpec], needed: Iterable[str]) -> dict[str, Any]:
    """Return the given inputs by name, in the order of the graph.

    Parameters
    ----------
    x : array_like or mapping of str to array_like
        The one input, or inputs by name.
    inputs : sequence of TensorSpec
        Inputs of the model.
    needed : iterable of str
        Names of the inputs that the requested outputs depend on.

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
                numbers={"inputs": len(wanted)},
            )
        return {wanted[0]: x}
    unknown = [name for name in x if name not in names]
    missing = [name for name in wanted if name not in x]
    if unknown or missing:
        problems = []
        if missing:
            problems.append(f"input {_names(missing)} is missing")
        if unknown:
            problems.append(f"input {_names(unknown)} is not one of the model's")
        raise InputError(
            "; ".join(problems),
            f"the model takes {_names(wanted)}; got {_names(x)}",
            input=str((missing or unknown)[0]),
        )
    return {name: x[name] for name in wanted}


def _names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def check_arrays(
    arrays: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    axes: Mapping[str, int | None],
) -> None:
    """Compare dtypes, ranks and fixed sizes with the model.

    Parameters
    ----------
    arrays : mapping of str to array
        Inputs by name: anything with ``dtype`` and ``shape``, with NaN for unknown sizes.
    inputs : sequence of TensorSpec
        Inputs of the model; those without an array are skipped.
    axes : mapping of str to int or None
        Batch axis of each input.

    Raises
    ------
    InputError
        An input does not fit; the message names it, with the expected and the given value.
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
                    input=spec.name,
                    axis=i,
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
        if (axis := axes[name]) is None or axis >= len(shape) or shape[axis] >= 0
    }
    check_static_sizes(inputs, known)
    # The other axes of inputs whose number of rows is unknown can still be checked.
    for spec in inputs:
        shape = shapes.get(spec.name)
        if shape is not None and spec.name not in known:
            axis = axes[spec.name]
            assert axis is not None
            rows = tuple(1 if i == axis else size for i, size in enumerate(shape))
            check_static_sizes((spec,), {spec.name: rows})


def _check_rows(arrays: Mapping[str, Any], axes: Mapping[str, int | None]) -> None:
    rows = {
        name: array.shape[axis]
        for name, array in arrays.items()
        if (axis := axes[name]) is not None
        and axis < len(array.shape)
        and not math.isnan(array.shape[axis])
    }
    if len(set(rows.values())) > 1:
        first, *others = rows
        differing = next(name for name in others if rows[name] != rows[first])
        raise InputError(
            f"inputs differ in their number of rows: {format_row_counts(rows)}",
            "inputs with a batch axis must have the same number of rows",
            input=differing,
            axis=axes[differing],
            numbers={"rows": rows[differing], "expected_rows": rows[first]},
        )


def format_row_counts(rows: Mapping[str, Any]) -> str:
    """Return the number of rows of each input, in words."""
    return ", ".join(f"{name!r} has {count}" for name, count in rows.items())


def _check_kind(value: Any, spec: TensorSpec) -> None:
    wanted = {"seq": list, "map": dict}.get((spec.kind or "").partition("(")[0])
    if wanted is not None and not isinstance(value, wanted):
        raise InputError(
            f"input {spec.name!r} is given as {type(value).__name__}; the model takes {spec.kind}",
            f"pass a {wanted.__name__}",
            input=spec.name,
        )
