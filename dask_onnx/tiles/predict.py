"""`predict_tiled`: a picture or volume through a model, tile by tile, as if it were the whole."""

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
from dask_onnx.cluster.delivery import current_client
from dask_onnx.cluster.placement import any_cluster
from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import digest
from dask_onnx.tiles.blend import blend
from dask_onnx.tiles.budget import automatic_tile, check_tile, task_limit
from dask_onnx.tiles.model_parts import Parts
from dask_onnx.tiles.passes import with_passes
from dask_onnx.tiles.pictures import Picture, as_given, as_picture, computed, cut_back, padded
from dask_onnx.tiles.survey import Question, Survey, survey, window_axes
from dask_onnx.tiles.tile_arrays import as_arrays
from dask_onnx.tiles.tile_graph import TileGraph
from dask_onnx.tiles.tile_plan import TilePlan

Tile = int | Sequence[int] | Literal["auto"]


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
    """Run a model on a picture or volume tile by tile; the result is that of the whole.

    For every tile the pixels that it needs are worked out by going backwards through the graph, so
    that no result depends on where the picture was cut; it equals that of ``model.predict`` on the
    whole picture up to floating-point rounding. Where the model looks at all pixels at once (global
    pooling, squeeze-and-excite, instance, group and layer normalisation), tiles are gone through in
    passes: each gives a partial statistic, which are put together, and the next pass goes on from
    the tiles of the one before. Keys and values of an attention are gathered; behind it, nodes
    whose activations are small run on the whole.

    Parameters
    ----------
    model : Model
        Of one input.
    image : dask.array, numpy.ndarray or xarray.DataArray
        Of the model's rank, as (1, 3, H, W) or (1, C, D, H, W), or without the batch axis. numpy is
        computed now, on the scheduler that Dask would use; dask stays lazy, whatever its chunks.
    tile : int, sequence of int, or "auto", default 1024
        Pixels of a tile along each axis that is cut, rounded down to a multiple of what the model's
        strides need (at least one). "auto": the largest whose activations fit half of what a
        worker's thread has.
    axes : sequence of int, optional
        Axes of the model's input that are cut; by default the open ones behind the first along
        which the model slides a window.
    outputs : None, str or sequence of str, optional
        As for ``model.predict``.
    exact : bool, default True
        False runs the whole model on overlapping tiles and blends them with linear ramps: an
        approximation, for models that have no exact tiles or take one size only. How far it is from
        the whole, `tiling_drift` measures on a sample that fits in memory.
    overlap : int or sequence of int, optional
        For ``exact=False``: pixels that neighbours share; 64 by default.
    memory_limit : int or str, optional
        Bytes of activations that a task may take, such as "2GiB"; by default half of what a thread
        of a worker has (of this machine, without a client). Limits ``tile="auto"``, and what is run
        on the whole behind an attention.

    Returns
    -------
    as `image`
        dask.array with a chunk for each tile, numpy.ndarray, or DataArray with the coordinates of
        the rows and columns (interpolated where the output has another stride) and, where it has
        the picture's grid, the attributes; several outputs in a dict. An output without pixels has
        one chunk.

    Raises
    ------
    InputError
        The picture does not fit the model; the model has no exact tiles along an axis: the message
        names axis, value, node, kind and what to do; not even the smallest tile fits the memory.
    StageError, StoreError
        From a worker, when the result is computed.

    Warns
    -----
    UserWarning
        The model refuses the picture's size and takes multiples of some number only: the picture is
        padded at the end with its last pixels, and the result is cut back. Near that border it is
        the model's result for the padded picture.
    """
    spec = _input_of(model)
    if not exact:
        return blend(model, image, spec, tile=tile, axes=axes, outputs=outputs, overlap=overlap)
    if overlap is not None:
        raise InputError(
            "overlap is for exact=False; exact tiles take what they need",
            "leave overlap out, or pass exact=False",
        )
    picture = as_picture(image, spec)
    wanted = resolve_outputs(outputs, model.facts.outputs, model._facts.known_values)
    limit = task_limit(memory_limit, any_cluster(current_client()))
    found = _survey(model, spec, picture, axes, wanted.names, limit)
    plan = _plan(found, tile, wanted.names, limit, is_limited=memory_limit is not None)
    plan = with_passes(plan, model._facts.costs)
    data = padded(picture.data, found.shape, found.multiple)
    arrays = _arrays(model, plan, data, is_lazy=picture.is_lazy)
    lengths = {k: picture.shape[k] for k in plan.grids if picture.shape[k] != found.shape[k]}
    if not picture.is_lazy:
        arrays = computed(arrays)
    results = {
        name: as_given(
            picture, cut_back(arrays[name], plan.places(name), lengths), name, plan.places(name)
        )
        for name in wanted.names
    }
    return wanted.shape_result(results)


def _input_of(model: Model) -> TensorSpec:
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise InputError(
            f"the model has {len(model.inputs)} inputs ({names}); tiles are cut of one",
            "take the part behind the others: model.extract(inputs=[...])",
        )
    return model.inputs[0]


def _survey(
    model: Model,
    spec: TensorSpec,
    picture: Picture,
    axes: Sequence[int] | None,
    outputs: tuple[str, ...],
    limit: int,
) -> Survey:
    facts = model._facts
    rank = len(picture.shape)
    random, _ = random_nodes(facts.graph, outputs)
    if random:
        raise InputError(
            f"node {random[0]!r} draws random numbers, which differ from tile to tile",
            "pass exact=False, or use model.predict",
        )
    if spec.name in outputs:
        raise InputError(
            f"output {spec.name!r} is the picture itself", "name outputs that the model makes"
        )
    if axes is None:
        cut = window_axes(facts.graph, facts.schemas, facts.custom_axes, spec, picture.shape)
    else:
        cut = tuple(axis % rank for axis in axes if -rank <= axis < rank)
        if not cut or len(set(cut)) != len(axes):
            raise InputError(
                f"axes is {tuple(axes)}; the model takes {spec}",
                f"name different axes from 0 to {rank - 1}",
            )
    question = Question(
        facts.graph,
        facts.schemas,
        facts.custom_axes,
        spec.name,
        picture.shape,
        tuple(sorted(cut)),
        outputs,
        limit,
    )
    return survey(question)


def tile_sizes(tile: Tile, axes: Sequence[int]) -> dict[int, int]:
    """Return the pixels of a tile along each axis.

    Raises
    ------
    InputError
        Not a positive number, or not one for each axis.
    """
    sizes: list[Any] = []
    if isinstance(tile, int | np.integer):
        sizes = [tile] * len(axes)
    elif not isinstance(tile, str):
        sizes = list(tile)
    is_whole = all(isinstance(size, int | np.integer) and size > 0 for size in sizes)
    if len(sizes) != len(axes) or not is_whole:
        raise InputError(
            f"tile is {tile!r}; axes {tuple(axes)} are cut",
            'give a number of pixels, one for each of these axes, or "auto"',
        )
    return {axis: int(size) for axis, size in zip(axes, sizes, strict=True)}


def _plan(
    found: Survey, tile: Tile, outputs: tuple[str, ...], limit: int, *, is_limited: bool
) -> TilePlan:
    axes = found.flow.axes
    if isinstance(tile, str) and tile == "auto":
        slots = any_cluster(current_client()).slots
        return found.plan(automatic_tile(found, outputs, limit, slots), outputs)
    plan = found.plan(tile_sizes(tile, axes), outputs)
    if is_limited:
        check_tile(plan, limit)
    return plan


def _arrays(model: Model, plan: TilePlan, data: Any, *, is_lazy: bool) -> Mapping[str, da.Array]:
    if dask.config.get("array.query-planning", False):
        raise InputError(
            "a tiled prediction cannot become a dask.array while array.query-planning is on",
            "set array.query-planning to false",
        )
    if is_lazy:
        image = data
    else:
        grids = plan.grids
        chunks = tuple(
            tuple(np.diff(grids[axis].borders).tolist()) if axis in grids else (size,)
            for axis, size in enumerate(data.shape)
        )
        image = da.from_array(data, chunks=chunks, name=f"image-{uuid.uuid4().hex}")
    borders = {k: grid.borders for k, grid in plan.grids.items()}
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
    """Measure how far blended tiles are from the whole, on a picture that fits in memory.

    Parameters
    ----------
    model, tile, overlap, axes, outputs
        As for `predict_tiled` with ``exact=False``.
    sample : numpy.ndarray
        A picture larger than one tile; it is run as a whole too, in this process.

    Returns
    -------
    dict of output to TilingDrift

    Raises
    ------
    InputError, StageError, StoreError
    """
    spec = _input_of(model)
    wanted = resolve_outputs(outputs, model.facts.outputs, model._facts.known_values)
    names = list(wanted.names)
    picture = as_picture(np.asarray(sample), spec)
    whole = model(picture.data, outputs=names, batch_size=None)
    tiled = predict_tiled(
        model,
        picture.data,
        tile=tile,
        axes=axes,
        outputs=names,
        exact=False,
        overlap=overlap,
    )
    return {name: _drift(np.asarray(whole[name]), np.asarray(tiled[name])) for name in names}


@dataclass(frozen=True, slots=True)
class TilingDrift:
    """How far tiles are from the whole, in the units of the output."""

    largest: float
    """Difference of any element."""
    mean: float
    """Mean of the absolute differences."""
    scale: float
    """Largest absolute value of the whole, to compare with."""


def _drift(whole: np.ndarray, tiled: np.ndarray) -> TilingDrift:
    wide = whole.astype(np.float64)
    difference = np.abs(wide - tiled.astype(np.float64))
    return TilingDrift(
        float(difference.max(initial=0)),
        float(difference.mean()) if difference.size else 0.0,
        float(np.abs(wide).max(initial=0)),
    )
