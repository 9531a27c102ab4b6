"""Predictions for an xarray.DataArray, with the dimensions and coordinates that still fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import xarray as xr

from dask_onnx.analysis.axes.axis_report import AxisFact
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.labels import class_labels
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.collections.geotransform import with_transform_of
from dask_onnx.core.errors import InputError
from dask_onnx.facts.model_facts import ModelFacts
from dask_onnx.modelio.plain_outputs import Labels

_KEPT_AXES = "kept axes"
"""First part of the key, among a model's facts, of the axes found last for a set of outputs."""


def predict_dataarray(
    x: xr.DataArray,
    facts: ModelFacts,
    feed: str,
    axis: int | None,
    output_axes: Mapping[str, int | None],
    run: Callable[[Any], Mapping[str, Any]],
) -> dict[str, xr.DataArray]:
    """Return a DataArray for each output, with the labels that still fit.

    An output keeps the dimension of the rows, and every dimension along which its elements lie at
    the same positions as in `x`, such as the height and width of an image behind padded
    convolutions. It keeps the coordinates whose dimensions are all kept.

    Parameters
    ----------
    x : xarray.DataArray
        The one input; in memory, or of Dask, which stays lazy.
    facts : ModelFacts
        The model.
    feed : str
        Name of the input.
    axis : int or None
        Batch axis of the input.
    output_axes : mapping of str to int or None
        Output to its batch axis.
    run : callable
        Takes the array inside `x`, and returns arrays by output.

    Raises
    ------
    InputError
        The input has no batch axis.
    """
    if axis is None:
        raise InputError(
            f"input {feed!r} has no batch axis, so no dimension of the DataArray is kept",
            "pass x.data, and name the dimensions of the result yourself",
            input=feed,
        )
    found = _axis_facts(facts, feed, tuple(x.shape), tuple(output_axes))
    return {
        name: _with_classes(
            _labelled_output(name, value, x, axis, output_axes[name], found),
            class_labels(facts.graph, name),
            x,
        )
        for name, value in run(x.data).items()
    }


def label(
    value: Any,
    dims: Sequence[Any],
    source: xr.DataArray,
    surviving: Iterable[Any],
    *,
    name: str,
    attrs: Mapping[Any, Any] | None = None,
) -> xr.DataArray:
    """Return an array as a DataArray with the coordinates of `source` whose dimensions all survive.

    Parameters
    ----------
    value : array
        Result of a prediction.
    dims : sequence of hashable
        Dimensions of the result.
    source : xarray.DataArray
        DataArray that the prediction is of.
    surviving : iterable of hashable
        Dimensions of `source` that the result has, with the same positions.
    name : str
        Name of the result.
    attrs : mapping, optional
        Attributes of the result.
    """
    kept = set(surviving)
    lost = [label for label, coord in source.coords.items() if not kept >= set(coord.dims)]
    result = xr.DataArray(value, dims=list(dims), name=name, attrs=attrs)
    # Coordinates are taken from a DataArray, not one by one, so that their indexes are kept too.
    result = result.assign_coords(source.drop_vars(lost).coords)
    return with_transform_of(result, source, dict.fromkeys(kept, (Fraction(0), Fraction(1))))


def _axis_facts(
    facts: ModelFacts, feed: str, shape: tuple[int, ...], outputs: tuple[str, ...]
) -> Sequence[AxisFact]:
    """Return the dependence of outputs on each axis of an input of this shape, where known."""
    if any(np.isnan(shape)):
        return ()
    key = (_KEPT_AXES, outputs)
    last: tuple[tuple[int, ...], Sequence[AxisFact]] | None = facts.kept.get(key)
    if last is not None and last[0] == shape:
        return last[1]
    table = facts.axes({feed: shape}, outputs)
    own = [fact for fact in table if any(name == feed for name, _ in fact.inputs)]
    found = [_placed(fact, facts, feed, shape) for fact in own]
    facts.kept.put(key, (shape, found))
    return found


def _labelled_output(
    name: str,
    value: Any,
    x: xr.DataArray,
    axis: int,
    output_axis: int | None,
    facts: Iterable[AxisFact],
) -> xr.DataArray:
    dims: list[Any] = new_dimensions(name, value.ndim)
    surviving = set()
    if output_axis is not None:
        dims[output_axis] = x.dims[axis]
        surviving.add(x.dims[axis])
    for fact in facts:
        places = {place for _, place in fact.inputs}
        if fact.value != name or len(places) > 1 or axis in places or not _is_in_place(fact):
            continue
        (place,), own = places, fact.axis
        if own is None or own == output_axis or value.shape[own] != x.shape[place]:
            continue
        dims[own] = x.dims[place]
        surviving.add(x.dims[place])
    return label(value, dims, x, surviving, name=name)


def _with_classes(
    result: xr.DataArray, classes: Labels | None, source: xr.DataArray
) -> xr.DataArray:
    """Return scores of a classifier with the classes as labels of their last dimension."""
    last = result.dims[-1] if result.dims else None
    if classes is None or last in source.dims or result.shape[-1] != len(classes):
        return result
    return result.assign_coords({last: list(classes)})


def new_dimensions(name: str, count: int) -> list[str]:
    """Return names for the dimensions of an output, by its name where that is a word.

    Parameters
    ----------
    name : str
        Name of the output; exporters also write "sigmoid_0.tmp_0" or "model/head:0".
    count : int
        Number of dimensions.
    """
    word = name if name.isidentifier() else "dim"
    return [f"{word}_{axis}" for axis in range(count)]


def _placed(fact: AxisFact, facts: ModelFacts, feed: str, shape: tuple[int, ...]) -> AxisFact:
    """Return a fact with the place of positions where elements also read a statistic over all.

    A network that scales an image by its mean reads all pixels, and leaves them where they are.
    """
    if fact.kind != "reduced" or fact.axis is None or len(fact.inputs) > 1:
        return fact
    ((_, place),) = fact.inputs
    specs = infer_shapes(facts.graph, {feed: shape}, facts.schemas)
    found = propagate(
        facts.graph, specs, {feed: place}, facts.custom_axes, ignores_statistics=True
    ).get(fact.value)
    if found is None or found.is_broken:
        return fact
    if (found.axis, found.outer, found.inner) != (fact.axis, 1, 1):
        return fact
    window = found.window
    return replace(
        fact,
        kind=found.kind.label,
        offset=float(window.offset),
        stride=float(window.stride),
        extent=float(window.extent),
    )


def _is_in_place(fact: AxisFact) -> bool:
    """Return whether each element reads its own position, and others beside it at most."""
    is_near = fact.kind == "independent" or fact.kind == "window"
    return is_near and fact.stride == 1 and fact.offset <= 0 < fact.offset + fact.extent
