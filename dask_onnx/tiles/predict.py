"""`predict_tiled`: run a model on an image or volume by tiles, with the untiled result."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import dask.array as da
import dask.config
import numpy as np
from dask.graph_manipulation import clone

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
from dask_onnx.tiles.budget import automatic_tile, check_tile, kept_limit, task_limit
from dask_onnx.tiles.companions import Companion, NamedInputs, named_inputs, split_companions
from dask_onnx.tiles.image_borders import borders_on_image
from dask_onnx.tiles.image_input import (
    as_input_image,
    compute_together,
    crop_padding,
    in_form_of,
    pad_to,
)
from dask_onnx.tiles.keeping import with_bounded_tiles
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
    keep_limit: int | str | None = None,
) -> Any:
    """Run a model on an image or volume tile by tile, with the result of the untiled image.

    The pixels that a tile needs are found by tracing its outputs back through the graph, so that no
    result depends on where the image is cut: it equals that of ``model.predict`` on the whole image
    up to floating-point rounding. Statistics over all pixels (global pooling, squeeze-and-excite,
    instance, group and layer normalization) are computed in passes: each pass over the tiles gives
    partial statistics, which are combined, and the next pass continues from the kept tiles, within
    `keep_limit`. Keys and values of an attention are gathered. Nodes that need all positions at
    once (the head of a detector that sorts or selects boxes, a recurrence) run untiled on the
    features that the tiles have computed, within `memory_limit`.

    Parameters
    ----------
    model : Model
    image : dask.array, numpy.ndarray or xarray.DataArray; or a dict of them by input name
        Image of the input's dtype and rank, such as (1, 3, H, W) or (1, C, D, H, W); the batch axis
        may be left out. A dask array, in any chunks, stays lazy; a numpy array is computed at once
        on the scheduler that Dask would use. For a model of several inputs, a dict: the image is
        the input along which the model slides a window (of several, the largest). Inputs that have
        its size along the tiled axes, or a whole fraction of it, are cut with it; all others are
        given once, in memory, for all tiles (a timestep, a text's embedding).
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
        True if the result has to equal the untiled one. False runs the whole model on overlapping
        tiles and blends these with linear ramps. That is an approximation, for models that have no
        exact tiles or accept one size only; `tiling_drift` measures its error on a sample.
    overlap : int or sequence of int, optional
        Pixels that neighbouring tiles share if `exact` is false; 64 by default.
    memory_limit : int or str, optional
        Bytes of activations that a task may take, such as "2GiB"; by default half of the memory
        that a worker (without a client, this machine) has for each thread. Limits ``tile="auto"``
        and what runs untiled, such as the head of a detector.
    keep_limit : int or str, optional
        Bytes that all tiles together may keep from one pass to the next; by default a quarter of
        the memory of all workers. What exceeds it is computed again in the next pass, from the
        image if need be, which is then read once for each pass: memory no longer grows with the
        image, and time grows with the number of passes. 0 keeps nothing but what a task needs
        whole.

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
    if exact and overlap is not None:
        raise InputError(
            f"overlap is {overlap!r} and exact is True; exact tiles take the pixels that they need",
            "leave overlap out, or pass exact=False",
            option="overlap",
            suggestions=[Suggestion("overlap"), Suggestion("exact", False)],
        )
    wanted = resolve_outputs(outputs, model.facts.outputs, model._facts.known_values)
    named = named_inputs(model, image, wanted.names)
    if not exact:
        model, spec, picture = _for_blending(named, axes)
        return blend(model, picture, spec, tile=tile, axes=axes, outputs=outputs, overlap=overlap)
    given = as_input_image(named.values[named.image], named.spec)
    tiled = _tiled_axes(named, given.shape, axes)
    model, companions, images = split_companions(named, given.shape, tiled)
    limit = task_limit(memory_limit, any_cluster(current_client()))
    analysis = _analysis(model, named.image, given.shape, tiled, companions, wanted.names, limit)
    plan = _plan(analysis, tile, wanted.names, limit, is_limited=memory_limit is not None)
    plan = with_passes(plan, model._facts.costs)
    plan = with_bounded_tiles(plan, kept_limit(keep_limit, any_cluster(current_client())))
    data = {named.image: pad_to(given.data, analysis.shape, analysis.multiple)}
    for name, each in images.items():
        data[name] = pad_to(each.data, companions[name].at(analysis.shape))
    arrays = _arrays(model, plan, data)
    if not given.is_lazy:
        arrays = compute_together(arrays)
    results = {}
    for name in wanted.names:
        value = _cropped(arrays[name], name, analysis, given.shape)
        others = {}
        if given.labelled is not None:
            shapes = {each: companions[each].at(analysis.shape) for each in companions}
            others = untiled_axes(model, named.spec, analysis.shape, tiled, name, shapes)
        borders = borders_on_image(plan.flow, analysis.deficits, name)
        results[name] = in_form_of(given, value, name, plan.places(name), borders, others)
    return wanted.shape_result(results)


def _for_blending(named: NamedInputs, axes: Sequence[int] | None) -> tuple[Model, TensorSpec, Any]:
    """Return a model of one input with that input, and the image; refuse a second image."""
    picture = named.values[named.image]
    if not named.others:
        return named.model, named.spec, picture
    shape = as_input_image(picture, named.spec).shape
    model, companions, _ = split_companions(named, shape, _tiled_axes(named, shape, axes))
    if companions:
        name = next(iter(companions))
        raise InputError(
            f"inputs {named.image!r} and {name!r} are both images; exact=False takes one",
            "leave out exact=False, or use model.predict",
            option="exact",
            input=name,
            suggestions=[Suggestion("exact", True)],
        )
    return model, model.inputs[0], picture


def _tiled_axes(
    named: NamedInputs, shape: tuple[int, ...], axes: Sequence[int] | None
) -> tuple[int, ...]:
    """Return the tiled axes of the image, ascending: those named, or those of windows."""
    spec, rank = named.spec, len(shape)
    if axes is None:
        facts = named.model._facts
        others = named.shapes()
        return window_axes(facts.graph, facts.schemas, facts.custom_axes, spec, shape, others)
    tiled = tuple(axis % rank for axis in axes if -rank <= axis < rank)
    if not tiled or len(set(tiled)) != len(axes):
        raise InputError(
            f"axes is {tuple(axes)}; the model takes {spec}",
            f"name different axes from 0 to {rank - 1}",
            option="axes",
            input=spec.name,
            numbers={"rank": rank},
        )
    return tuple(sorted(tiled))


def _cropped(value: Any, name: str, analysis: TilingAnalysis, shape: tuple[int, ...]) -> Any:
    """Return an output without the positions that come from padding the image."""
    places = analysis.flow.places(name)
    lengths = {k: shape[k] for k in analysis.flow.axes if shape[k] != analysis.shape[k]}
    deficits = {k: analysis.deficits.get((name, k), Fraction(0)) for k in places}
    return crop_padding(value, places, lengths, deficits)


def _analysis(
    model: Model,
    image: str,
    shape: tuple[int, ...],
    tiled: tuple[int, ...],
    companions: Mapping[str, Companion],
    outputs: tuple[str, ...],
    limit: int,
) -> TilingAnalysis:
    """Return how the image goes through the model, or refuse what has no exact tiles."""
    facts = model._facts
    random, _ = random_nodes(facts.graph, outputs)
    if random:
        raise InputError(
            f"node {random[0]!r} draws random numbers, which differ from tile to tile",
            "pass exact=False, or use model.predict",
            node=random[0],
            suggestions=[Suggestion("exact", False)],
        )
    for name in (image, *companions):
        if name in outputs:
            raise InputError(
                f"output {name!r} is an input of the model",
                "name outputs that the model computes",
                option="outputs",
                input=name,
            )
    request = TilingRequest(
        facts.graph,
        facts.schemas,
        facts.custom_axes,
        image,
        shape,
        tiled,
        outputs,
        limit,
        companions,
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


def _arrays(model: Model, plan: TilePlan, data: Mapping[str, Any]) -> Mapping[str, da.Array]:
    """Return the lazy outputs of a plan for its images: numpy or dask arrays by input."""
    if dask.config.get("array.query-planning", False):
        raise InputError(
            "a tiled prediction cannot become a dask.array while array.query-planning is on",
            "set array.query-planning to false",
            option="array.query-planning",
            suggestions=[Suggestion("array.query-planning", False)],
        )
    images = {
        name: each if isinstance(each, da.Array) else _in_tiles(each, plan, name)
        for name, each in data.items()
    }
    borders = {k: grid.borders for k, grid in plan.grids.items()}
    names = [image.name for image in images.values()]
    steps = [(index, step.level, step.is_untiled) for index, step in plan.flow.steps.items()]
    kept = None if plan.flow.kept is None else sorted(plan.flow.kept)
    token = digest(model.__dask_tokenize__(), names, borders, plan.outputs, steps, kept)
    graph = TileGraph(plan, Parts(plan, model), token, cuts_first=current_client() is not None)
    each_pass = [images, *_read_again(images, plan)]
    graph.build(each_pass)
    read = [image for each in each_pass for image in each.values()]
    return as_arrays(graph, read, plan.outputs)


def _read_again(images: Mapping[str, da.Array], plan: TilePlan) -> list[dict[str, da.Array]]:
    """Return copies of the images for passes that compute from them again.

    Passes that shared the tasks that load the image would hold all of it from the first to the last
    one.
    """
    if plan.flow.kept is None:
        return []
    return [
        {name: clone(image, seed=f"{image.name}-{number}") for name, image in images.items()}
        for number in range(1, plan.passes)
    ]


def _in_tiles(array: np.ndarray, plan: TilePlan, name: str) -> da.Array:
    """Return an image in memory as a dask array with a chunk for each tile."""
    chunks: list[tuple[int, ...]] = [(size,) for size in array.shape]
    for k, place in plan.places(name).items():
        ends = [plan.tile(name, k, number) for number in plan.grids[k].tiles]
        chunks[place.axis] = tuple(stop - start for start, stop in ends)
    # Computed at once and never again: hashing the pixels for a name would be wasted.
    key = f"image-{uuid.uuid4().hex}"
    image: da.Array = da.from_array(array, chunks=tuple(chunks), name=key)
    return image
