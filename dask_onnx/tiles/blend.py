"""Overlapping tiles, blended: an approximation for models that have no exact tiles."""

from __future__ import annotations

import itertools
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Task, TaskRef
from onnx.shape_inference import InferenceError

from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.api.model import Model
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.collections.request_checks import resolve_outputs
from dask_onnx.collections.run_options import Outputs
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import StageTask, digest
from dask_onnx.tiles.part_request import part_here
from dask_onnx.tiles.pictures import Picture, as_given, as_picture, computed, cut_back
from dask_onnx.tiles.places import Place
from dask_onnx.tiles.ramps import Row, chunk_borders, covering, row_of_tiles, weights
from dask_onnx.tiles.survey import window_axes
from dask_onnx.tiles.tile_tasks import OnceCall, run_once, take_value

DEFAULT_OVERLAP = 64
_LARGEST_RATIO = 64

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Grid:
    """Where a cut axis of the picture lies in an output."""

    axis: int
    ratio: Fraction
    """Positions of the output for each pixel."""


@dataclass(frozen=True, slots=True)
class PasteSpec:
    """How the tiles that have some of a chunk are added up."""

    position: int | None
    """Of the output in what the tasks of tiles give."""
    shape: tuple[int, ...]
    slices: tuple[tuple[slice, ...], ...]
    """Of each tile."""
    places: tuple[tuple[slice, ...], ...]
    """Of each tile in the chunk."""
    weights: tuple[tuple[tuple[int, npt.NDArray[np.float64]], ...], ...]
    """For each tile the weights along some axes."""


def paste(spec: PasteSpec, *tiles: Any) -> Array:
    """Return a chunk of the result: what tiles give there, weighted."""
    tiles = tuple(np.asarray(take_value(tile, spec.position)) for tile in tiles)
    kind = tiles[0].dtype
    if len(tiles) == 1:
        return np.ascontiguousarray(tiles[0][spec.slices[0]])
    total = np.zeros(spec.shape, np.float64 if kind == np.float64 else np.float32)
    for tile, own, place, ramps in zip(tiles, spec.slices, spec.places, spec.weights, strict=True):
        part = tile[own].astype(total.dtype)
        for axis, ramp in ramps:
            form = [1] * part.ndim
            form[axis] = -1
            part *= ramp.reshape(form).astype(total.dtype)
        total[place] += part
    return (np.rint(total) if kind.kind in "iu" else total).astype(kind)


def blend(
    model: Model,
    image: Any,
    spec: TensorSpec,
    *,
    tile: Any,
    axes: Sequence[int] | None,
    outputs: Outputs,
    overlap: int | Sequence[int] | None,
) -> Any:
    """Run the whole model on overlapping tiles and blend them; see `predict_tiled`.

    Raises
    ------
    InputError
        The tile is not larger than twice the overlap, the model does not take tiles of that size,
        or an output has no pixels, or none that grow with the picture.
    """
    free = TensorSpec(spec.name, spec.dtype, _opened(spec))
    picture = as_picture(image, free)
    facts = model._facts
    if axes is None:
        cut = window_axes(facts.graph, facts.schemas, facts.custom_axes, spec, picture.shape)
    else:
        cut = tuple(sorted(axis % len(picture.shape) for axis in axes))
    lengths = _lengths(tile, cut, spec, picture)
    overlaps = _overlaps(overlap, cut, lengths)
    wanted = resolve_outputs(outputs, model.facts.outputs, facts.known_values)
    grids = {name: _grids(model, spec, picture.shape, lengths, name) for name in wanted.names}
    align = {
        k: math.lcm(1, *(g[k].ratio.denominator for g in grids.values() if k in g)) for k in cut
    }
    given = picture.shape
    picture = _filled(picture, spec, lengths, align)
    rows = {k: row_of_tiles(picture.shape[k], lengths[k], overlaps[k], align[k]) for k in cut}
    lazy = _Blender(model, spec, picture, rows, grids, wanted.names).arrays()
    for name, value in lazy.items():
        places = _as_places(grids[name], value.shape)
        lazy[name] = cut_back(value, places, {k: given[k] for k in cut})
    results: Mapping[str, Any] = lazy
    if not picture.is_lazy:
        results = computed(lazy)
    return wanted.shape_result(
        {
            name: as_given(picture, results[name], name, _as_places(grids[name], value.shape))
            for name, value in lazy.items()
        }
    )


def _filled(
    picture: Picture, spec: TensorSpec, lengths: Mapping[int, int], align: Mapping[int, int]
) -> Picture:
    """The picture, padded at the end until it holds tiles of the one size that the model takes."""
    shape = list(picture.shape)
    for k, length in lengths.items():
        if spec.shape is not None and isinstance(spec.shape[k], int):
            shape[k] = length + -(-max(shape[k] - length, 0) // align[k]) * align[k]
    widths = [(0, new - old) for old, new in zip(picture.shape, shape, strict=True)]
    if not any(after for _, after in widths):
        return picture
    pad = da.pad if picture.is_lazy else np.pad
    return replace(picture, data=pad(picture.data, widths, mode="edge"))


def _opened(spec: TensorSpec) -> tuple[Any, ...] | None:
    """The model's shape without the sizes behind the channels, which may be those of a tile."""
    if spec.shape is None:
        return None
    return tuple(None if axis > 1 else dim for axis, dim in enumerate(spec.shape))


def _lengths(tile: Any, cut: Sequence[int], spec: TensorSpec, picture: Picture) -> dict[int, int]:
    """Pixels of a tile along each axis: the model's own where it takes one size only."""
    fixed = {k: dim for k in cut if spec.shape and isinstance(dim := spec.shape[k], int)}
    if isinstance(tile, str):
        if len(fixed) != len(cut):
            raise InputError(
                f"tile is {tile!r}, which exact=False does not choose",
                "give pixels, as tile=1024",
            )
        sizes = [fixed[k] for k in cut]
    else:
        sizes = [tile] * len(cut) if isinstance(tile, int) else [int(size) for size in tile]
    if len(sizes) != len(cut) or any(size < 1 for size in sizes):
        raise InputError(
            f"tile is {tile!r}; axes {tuple(cut)} are cut", "give pixels, one number for each axis"
        )
    lengths = dict(zip(cut, sizes, strict=True))
    for k, dim in fixed.items():
        if lengths[k] != dim:
            raise InputError(
                f"tile is {lengths[k]} on axis {k}; the model takes {spec}",
                f"make it {dim}, or leave it to tile='auto'",
            )
    return {
        k: length if k in fixed else min(length, picture.shape[k]) for k, length in lengths.items()
    }


def _overlaps(
    overlap: int | Sequence[int] | None, cut: Sequence[int], lengths: Mapping[int, int]
) -> dict[int, int]:
    overlap = DEFAULT_OVERLAP if overlap is None else overlap
    each = [overlap] * len(cut) if isinstance(overlap, int) else list(overlap)
    found = dict(zip(cut, each, strict=False))
    if len(each) != len(cut) or any(
        not isinstance(size, int) or not 0 <= 2 * size <= lengths[k] for k, size in found.items()
    ):
        raise InputError(
            f"overlap is {overlap!r}, tiles have {tuple(lengths.values())} pixels",
            "give pixels, at most half of the tile on each axis",
        )
    return found


def _grids(
    model: Model,
    spec: TensorSpec,
    shape: Sequence[int],
    lengths: Mapping[int, int],
    output: str,
) -> dict[int, Grid]:
    """Where each cut axis lies in an output, told from its shapes for tiles of two sizes."""
    tile = [lengths.get(axis, size) for axis, size in enumerate(shape)]
    before = _shape_for(model, spec, tile, output)
    found = {}
    for k, length in lengths.items():
        if spec.shape is not None and isinstance(spec.shape[k], int):
            # One size only: rows and columns are taken to stand as far from the end as they do
            # in the input.
            grown = [len(before) - len(shape) + k]
        else:
            twice = [size * (1 + (axis == k)) for axis, size in enumerate(tile)]
            after = _shape_for(model, spec, twice, output)
            grown = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        if len(grown) != 1 or not 0 <= grown[0] < len(before):
            raise InputError(
                f"output {output!r} of {tuple(before)} has no pixels along axis {k} of the picture",
                "name outputs= that have, or use model.predict",
            )
        ratio = Fraction(before[grown[0]], length)
        if max(ratio.numerator, ratio.denominator) > _LARGEST_RATIO:
            raise InputError(
                f"output {output!r} has {before[grown[0]]} positions for {length} pixels of a tile "
                f"along axis {k}, which is no simple stride",
                "choose a tile that the model's strides divide",
            )
        found[k] = Grid(grown[0], ratio)
    return found


def _shape_for(model: Model, spec: TensorSpec, shape: Sequence[int], output: str) -> list[int]:
    facts = model._facts
    try:
        specs = infer_shapes(facts.graph, {spec.name: tuple(shape)}, facts.schemas)
    except InferenceError as error:
        raise InputError(
            f"the model does not take a tile of {tuple(shape)}: {str(error).splitlines()[0]}",
            "choose another tile; many models take multiples of 32",
        ) from error
    dims = specs[output].shape if output in specs else None
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        raise InputError(
            f"the shape of output {output!r} does not follow from the graph",
            "name other outputs, or use model.predict",
        )
    return [int(dim) for dim in dims if isinstance(dim, int)]


def _as_places(grids: Mapping[int, Grid], shape: Sequence[int]) -> dict[int, Place]:
    return {
        k: Place(grid.axis, 1, 1, shape[grid.axis], 1 / grid.ratio) for k, grid in grids.items()
    }


class _Blender:
    """The tasks of one blended prediction."""

    def __init__(
        self,
        model: Model,
        spec: TensorSpec,
        picture: Picture,
        rows: Mapping[int, Row],
        grids: Mapping[str, Mapping[int, Grid]],
        outputs: tuple[str, ...],
    ) -> None:
        self.model, self.spec, self.picture = model, spec, picture
        self.rows, self.grids, self.outputs = rows, grids, outputs
        self.axes = tuple(rows)
        self.tasks: dict[Any, Any] = {}

    def arrays(self) -> dict[str, da.Array]:
        """A lazy array for each output, with a chunk for each tile."""
        image = self.picture.data
        if not self.picture.is_lazy:
            chunks = tuple(
                self.rows[axis].length if axis in self.rows else size
                for axis, size in enumerate(image.shape)
            )
            image = da.from_array(image, chunks=chunks, name=f"image-{uuid.uuid4().hex}")
        part = self.model.extract(outputs=list(self.outputs))
        inline, supplies, layers = part_here(part, self.outputs)
        token = digest(
            self.model.__dask_tokenize__(), image.name, dict(self.rows), self.outputs, "blend"
        )
        call = OnceCall(inline, (self.spec.name,), self.outputs)
        crops: dict[str, da.Array] = {}
        for tile in itertools.product(*(range(len(self.rows[k].starts)) for k in self.axes)):
            crop = image[self._crop(tile, image.ndim)].rechunk(-1)
            crops[crop.name] = crop
            source = TaskRef((crop.name, *(0,) * crop.ndim))
            key = (f"blend_{inline.label}-{token}", *tile)
            self.tasks[key] = StageTask(key, run_once, call, source, *supplies)
        inputs: Any = list(crops.values())
        graph = HighLevelGraph.from_collections("crops", {}, inputs)
        base = f"blend-{token}"
        all_layers = {**graph.layers, **{k: MaterializedLayer(v) for k, v in layers.items()}}
        dependencies = {name: set(deps) for name, deps in graph.dependencies.items()}
        dependencies |= {key: set() for key in layers}
        all_layers[base] = MaterializedLayer(
            self.tasks, annotations={"retries": effective_retries(None)}
        )
        dependencies[base] = {*crops, *layers}
        tiles = f"blend_{inline.label}-{token}"
        return {
            name: self._output(name, tiles, base, all_layers, dependencies, token)
            for name in self.outputs
        }

    def _crop(self, tile: Sequence[int], rank: int) -> tuple[slice, ...]:
        at = dict(zip(self.axes, tile, strict=True))
        return tuple(
            slice(*self.rows[axis].tile(at[axis])) if axis in at else slice(None)
            for axis in range(rank)
        )

    def _output(
        self,
        name: str,
        tiles: str,
        base: str,
        layers: Mapping[str, Any],
        dependencies: Mapping[str, set[str]],
        token: str,
    ) -> da.Array:
        grids, shape = self.grids[name], self._shape(name)
        by_axis = {grid.axis: k for k, grid in grids.items()}
        borders = [
            chunk_borders(self.rows[by_axis[axis]], grids[by_axis[axis]].ratio, size)
            if axis in by_axis
            else (0, size)
            for axis, size in enumerate(shape)
        ]
        ramps = {k: weights(self.rows[k], grids[k].ratio, shape[grids[k].axis]) for k in grids}
        position = self.outputs.index(name) if len(self.outputs) > 1 else None
        own, tasks = f"blended_{name}-{digest(token, name)}", {}
        for place in itertools.product(*(range(len(b) - 1) for b in borders)):
            region = [b[i : i + 2] for b, i in zip(borders, place, strict=True)]
            tasks[own, *place] = self._paste((own, *place), tiles, position, region, grids, ramps)
        graph = HighLevelGraph(
            {**layers, own: MaterializedLayer(tasks)}, {**dependencies, own: {base}}
        )
        dtype = self.model._facts.typed(name).dtype
        chunks = tuple(tuple(np.diff(b).tolist()) for b in borders)
        return da.Array(graph, own, chunks, dtype=dtype, meta=np.empty((0,) * len(shape), dtype))

    def _shape(self, name: str) -> list[int]:
        """Of an output for the whole picture."""
        last = list(self.picture.shape)
        for k, row in self.rows.items():
            start, stop = row.tile(len(row.starts) - 1)
            last[k] = stop - start
        shape = _shape_for(self.model, self.spec, last, name)
        for k, grid in self.grids[name].items():
            shape[grid.axis] += int(self.rows[k].starts[-1] * grid.ratio)
        return shape

    def _paste(
        self,
        key: Any,
        tiles: str,
        position: int | None,
        region: Sequence[Sequence[int]],
        grids: Mapping[int, Grid],
        ramps: Mapping[int, Any],
    ) -> Task:
        along = [covering(ramps[k], *region[grids[k].axis]) for k in self.axes]
        references, slices, places, weighted = [], [], [], []
        for combination in itertools.product(*along):
            own = [slice(None)] * len(region)
            place = [slice(0, stop - start) for start, stop in region]
            some, tile = [], []
            for k, each in zip(self.axes, combination, strict=True):
                number, part, where, ramp = each
                own[grids[k].axis], place[grids[k].axis] = part, where
                some.append((grids[k].axis, ramp))
                tile.append(number)
            references.append(TaskRef((tiles, *tile)))
            slices.append(tuple(own))
            places.append(tuple(place))
            weighted.append(tuple(some))
        shape = tuple(stop - start for start, stop in region)
        spec = PasteSpec(position, shape, tuple(slices), tuple(places), tuple(weighted))
        return Task(key, paste, spec, *references)
