"""`predict_tiled`: run a model on an image or volume by tiles, with the untiled result."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dask.array as da
import dask.config
import numpy as np

from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.api.model import Model
from dask_onnx.cluster.current_scheduler import current_client
from dask_onnx.cluster.placement import any_cluster
from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import digest
from dask_onnx.tiles.blend import blend
from dask_onnx.tiles.budget import automatic_tile, check_tile, task_limit
from dask_onnx.tiles.image_input import (
    InputImage,
    as_input_image,
    compute_together,
    crop_padding,
    in_form_of,
    pad_to,
)
from dask_onnx.tiles.model_parts import Parts
from dask_onnx.tiles.output_labels import untiled_axes
from dask_onnx.tiles.passes import with_passes
from dask_onnx.tiles.tile_arrays import as_arrays
from dask_onnx.tiles.tile_graph import TileGraph
from dask_onnx.tiles.tile_plan import TilePlan
from dask_onnx.tiles.tiling_analysis import (
    TilingAnalysis,
    TilingRequest,
    analyze_tiling,
    window_axes,
)

Tile = int | Sequence[int] | Literal["auto"]
"""Tile size in pixels, as `predict_tiled` takes it."""


def predict_tiled(
    model: Model,
    image: Any,
    *,
    tile: Tile = 1024,
    axes: Sequence[int] | None = None,
    outputs: Outputs = None,
    exact: bool = True,
    overlap: int | Sequence[int] | None = None,
    memory_limit: int | str | None = None,
) -> Any:
    """Run a model on an image or volume tile by tile, with the result of the untiled image.

    The pixels that a tile needs are found by tracing its outputs back through the graph, so that no
    result depends on where the image is cut: it equals that of ``model.predict`` on the whole image
    up to floating-point rounding. Statistics over all pixels (global pooling, squeeze-and-excite,
    instance, group and layer normalization) are computed in passes: each pass over the tiles gives
    partial statistics, which are combined, and the next pass continues from the kept tiles. Keys
    and values of an attention are gathered; behind it, nodes with small activations run untiled.

    Parameters
    ----------
    model : Model
        A model with one input.
    image : dask.array, numpy.ndarray or xarray.DataArray
        Image of the input's dtype and rank, such as (1, 3, H, W) or (1, C, D, H, W); the batch axis
        may be left out. A dask array, in any chunks, stays lazy; a numpy array is computed at once
        on the scheduler that Dask would use.
    tile : int, sequence of int, or "auto", default 1024
        Pixels of a tile along each tiled axis. They are rounded down to a multiple of what the
        strides of the model need, but at least that. "auto" is the largest tile whose activations
        fit in `memory_limit`.
    axes : sequence of int, optional
        Axes of the model's input along which tiles are cut. By default, the open axes behind the
        first along which the model slides a window.
    outputs : str or sequence of str, optional
        Outputs to compute, as for ``model.predict``.
    exact : bool, default True
        Whether the result has to equal the untiled one. False runs the whole model on overlapping
        tiles and blends these with linear ramps. That is an approximation, for models that have no
        exact tiles or accept one size only; `tiling_drift` measures its error on a sample.
    overlap : int or sequence of int, optional
        Pixels that neighbouring tiles share if `exact` is false; 64 by default.
    memory_limit : int or str, optional
        Bytes of activations that a task may take, such as "2GiB"; by default half of the memory
        that a worker (without a client, this machine) has for each thread. Limits ``tile="auto"``
        and what runs untiled behind an attention.

    Returns
    -------
    dask.array, numpy.ndarray or xarray.DataArray, or dict of these by output
        The kind of `image`; a dict if several outputs are computed. Arrays have one chunk for each
        tile; an output without pixels has one chunk.

        The result for a DataArray is named after the output. It keeps the names of axes, and all
        coordinates whose dimensions the output has at the size and stride of the image, whether
        tiled or not, scalar, one-dimensional or two-dimensional (such as latitudes of a curved
        grid). Numeric coordinates along a tiled axis that the output has at another stride are
        interpolated at the centres of its pixels; other coordinates are dropped. Attributes are
        kept if the output has the image's size and stride along all tiled axes.

    Raises
    ------
    InputError
        The image or an option does not fit the model, the model has no exact tiles along an axis
        (the error has its axis and node), or not even the smallest tile fits in the memory.
    StageError, StoreError
        When the result is computed: the model failed on a worker, or could not be read there.

    Warns
    -----
    UserWarning
        The model accepts only sizes that are multiples of some number. The image is padded at the
        end with its last pixels and the result is cropped; near that end, it is the result for the
        padded image.

    See Also
    --------
    tiling_drift : Measure the error of ``exact=False``.
    detect_sliced : Run an object detector of fixed input size on a large image.

    Examples
    --------
    >>> import dask.array as da
    >>> import dask_onnx as dx
    >>> model = dx.load("segmentation.onnx")
    >>> image = da.from_zarr("scene.zarr")  # float32, (3, 40000, 40000)
    >>> mask = dx.predict_tiled(model, image, tile=1024)
    >>> mask.to_zarr("mask.zarr")
    """
    spec = _input_of(model)
    if not exact:
        return blend(model, image, spec, tile=tile, axes=axes, outputs=outputs, overlap=overlap)
    if overlap is not None:
        raise InputError(
            f"overlap is {overlap!r} and exact is True; exact tiles take the pixels that they need",
            "leave overlap out, or pass exact=False",
            option="overlap",
            suggestions=[Suggestion("overlap"), Suggestion("exact", False)],
        )
    given = as_input_image(image, spec)
    wanted = resolve_outputs(outputs, model.facts.outputs, model._facts.known_values)
    limit = task_limit(memory_limit, any_cluster(current_client()))
    analysis = _analysis(model, spec, given, axes, wanted.names, limit)
    plan = _plan(analysis, tile, wanted.names, limit, is_limited=memory_limit is not None)
    plan = with_passes(plan, model._facts.costs)
    data = pad_to(given.data, analysis.shape, analysis.multiple)
    arrays = _arrays(model, plan, data, is_lazy=given.is_lazy)
    lengths = {k: given.shape[k] for k in plan.grids if given.shape[k] != analysis.shape[k]}
    if not given.is_lazy:
        arrays = compute_together(arrays)
    results = {}
    for name in wanted.names:
        places, others = plan.places(name), {}
        if given.labelled is not None:
            others = untiled_axes(model, spec, analysis.shape, tuple(plan.grids), name)
        value = crop_padding(arrays[name], places, lengths)
        results[name] = in_form_of(given, value, name, places, others)
    return wanted.shape_result(results)


def _input_of(model: Model) -> TensorSpec:
    """Return the one input of a model."""
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise InputError(
            f"the model has {len(model.inputs)} inputs ({names}); tiles are cut of one input",
            "take the part of the model behind the others: model.extract(inputs=[...])",
            option="model",
            numbers={"inputs": len(model.inputs)},
        )
    return model.inputs[0]


def _analysis(
    model: Model,
    spec: TensorSpec,
    image: InputImage,
    axes: Sequence[int] | None,
    outputs: tuple[str, ...],
    limit: int,
) -> TilingAnalysis:
    """Return how the image goes through the model, or refuse what has no exact tiles."""
    facts = model._facts
    rank = len(image.shape)
    random, _ = random_nodes(facts.graph, outputs)
    if random:
        raise InputError(
            f"node {random[0]!r} draws random numbers, which differ from tile to tile",
            "pass exact=False, or use model.predict",
            node=random[0],
            suggestions=[Suggestion("exact", False)],
        )
    if spec.name in outputs:
        raise InputError(
            f"output {spec.name!r} is the input of the model",
            "name outputs that the model computes",
            option="outputs",
            input=spec.name,
        )
    if axes is None:
        tiled = window_axes(facts.graph, facts.schemas, facts.custom_axes, spec, image.shape)
    else:
        tiled = tuple(axis % rank for axis in axes if -rank <= axis < rank)
        if not tiled or len(set(tiled)) != len(axes):
            raise InputError(
                f"axes is {tuple(axes)}; the model takes {spec}",
                f"name different axes from 0 to {rank - 1}",
                option="axes",
                input=spec.name,
                numbers={"rank": rank},
            )
    request = TilingRequest(
        facts.graph,
        facts.schemas,
        facts.custom_axes,
        spec.name,
        image.shape,
        tuple(sorted(tiled)),
        outputs,
        limit,
    )
    return analyze_tiling(request)


def tile_sizes(tile: Tile, axes: Sequence[int]) -> dict[int, int]:
    """Return the pixels of a tile along each axis.

    Parameters
    ----------
    tile : int or sequence of int
        One size for all axes, or one for each.
    axes : sequence of int
        Tiled axes.

    Raises
    ------
    InputError
        `tile` is not a positive number of pixels, or not one for each axis.
    """
    sizes: list[Any] = []
    if isinstance(tile, int | np.integer):
        sizes = [tile] * len(axes)
    elif not isinstance(tile, str):
        sizes = list(tile)
    are_pixels = all(isinstance(size, int | np.integer) and size > 0 for size in sizes)
    if len(sizes) != len(axes) or not are_pixels:
        raise InputError(
            f"tile is {tile!r}; axes {tuple(axes)} are tiled",
            'give a number of pixels, or one for each of these axes, or "auto"',
            option="tile",
            suggestions=[Suggestion("tile", "auto")],
        )
    return {axis: int(size) for axis, size in zip(axes, sizes, strict=True)}


def _plan(
    analysis: TilingAnalysis, tile: Tile, outputs: tuple[str, ...], limit: int, *, is_limited: bool
) -> TilePlan:
    """Return the plan for a tile size, which is checked only against a limit of the caller."""
    if isinstance(tile, str) and tile == "auto":
        slots = any_cluster(current_client()).slots
        return analysis.plan(automatic_tile(analysis, outputs, limit, slots), outputs)
    plan = analysis.plan(tile_sizes(tile, analysis.flow.axes), outputs)
    if is_limited:
        check_tile(plan, limit)
    return plan


def _arrays(model: Model, plan: TilePlan, data: Any, *, is_lazy: bool) -> Mapping[str, da.Array]:
    """Return the lazy outputs of a plan."""
    if dask.config.get("array.query-planning", False):
        raise InputError(
            "a tiled prediction cannot become a dask.array while array.query-planning is on",
            "set array.query-planning to false",
            option="array.query-planning",
            suggestions=[Suggestion("array.query-planning", False)],
        )
    grids = plan.grids
    if is_lazy:
        image = data
    else:
        chunks = tuple(
            tuple(np.diff(grids[axis].borders).tolist()) if axis in grids else (size,)
            for axis, size in enumerate(data.shape)
        )
        # Computed at once and never again: hashing the pixels for a name would be wasted.
        image = da.from_array(data, chunks=chunks, name=f"image-{uuid.uuid4().hex}")
    borders = {k: grid.borders for k, grid in grids.items()}
    token = digest(model.__dask_tokenize__(), image.name, borders, plan.outputs)
    graph = TileGraph(plan, Parts(plan, model), token, cuts_first=current_client() is not None)
    graph.build(image)
    return as_arrays(graph, image, plan.outputs)


def tiling_drift(
    model: Model,
    sample: Any,
    tile: Tile,
    overlap: int | Sequence[int] | None = None,
    *,
    axes: Sequence[int] | None = None,
    outputs: Outputs = None,
) -> dict[str, TilingDrift]:
    """Measure how far blended tiles are from the untiled result, on a sample that fits in memory.

    Parameters
    ----------
    model : Model
        A model with one input.
    sample : numpy.ndarray
        Image larger than one tile, of the input's dtype and rank; the batch axis may be left out.
        The model also runs on it untiled, in this process.
    tile : int, sequence of int, or "auto"
        Pixels of a tile along each tiled axis; "auto" for a model of fixed size.
    overlap : int or sequence of int, optional
        Pixels that neighbouring tiles share; 64 by default.
    axes : sequence of int, optional
        Axes along which tiles are cut, as for `predict_tiled`.
    outputs : str or sequence of str, optional
        Outputs to compare, as for ``model.predict``.

    Returns
    -------
    dict of str to TilingDrift
        Differences by output.

    Raises
    ------
    InputError
        The sample or an option does not fit the model.
    StageError, StoreError
        The model failed, or could not be read.

    See Also
    --------
    predict_tiled : Its ``exact=False`` blends overlapping tiles.

    Examples
    --------
    >>> import dask_onnx as dx
    >>> model = dx.load("super_resolution.onnx")
    >>> drift = dx.tiling_drift(model, sample, tile=512, overlap=64)["output"]
    >>> drift.largest / drift.scale  # relative to the largest value
    """
    spec = _input_of(model)
    wanted = resolve_outputs(outputs, model.facts.outputs, model._facts.known_values)
    names = list(wanted.names)
    image = as_input_image(np.asarray(sample), spec)
    untiled = model(image.data, outputs=names, batch_size=None)
    tiled = predict_tiled(
        model,
        image.data,
        tile=tile,
        axes=axes,
        outputs=names,
        exact=False,
        overlap=overlap,
    )
    return {name: _drift(np.asarray(untiled[name]), np.asarray(tiled[name])) for name in names}


@dataclass(frozen=True, slots=True)
class TilingDrift:
    """Difference of blended tiles from the untiled result, in the units of the output."""

    largest: float
    """Largest absolute difference of an element."""
    mean: float
    """Mean absolute difference."""
    scale: float
    """Largest absolute value of the untiled result, for comparison."""


def _drift(untiled: np.ndarray, tiled: np.ndarray) -> TilingDrift:
    wide = untiled.astype(np.float64)
    difference = np.abs(wide - tiled.astype(np.float64))
    return TilingDrift(
        float(difference.max(initial=0)),
        float(difference.mean()) if difference.size else 0.0,
        float(np.abs(wide).max(initial=0)),
    )
