"""Dask tasks of a blended prediction: crop, run the model on each tile, add the weighted tiles."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import Task, TaskRef

from dask_onnx.api.model import Model
from dask_onnx.cluster.placement import effective_retries
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import StageTask, digest
from dask_onnx.tiles.blend_axes import OutputAxis, shape_for
from dask_onnx.tiles.image_input import InputImage
from dask_onnx.tiles.part_request import inline_part
from dask_onnx.tiles.ramps import AxisTiling, chunk_borders, covering, weights
from dask_onnx.tiles.tile_tasks import UntiledCall, run_untiled, take_value

Array = npt.NDArray[Any]
AxisWeights = tuple[tuple[int, npt.NDArray[np.float64]], ...]
"""Axes, and the weights of the positions along each."""


@dataclass(frozen=True, slots=True)
class PasteSpec:
    """Weighted sum of the tiles that cover one chunk of an output."""

    position: int | None
    """Position of the output in the results of the tiles; None if it is all of them."""
    shape: tuple[int, ...]
    """Shape of the chunk."""
    slices: tuple[tuple[slice, ...], ...]
    """Part of each tile that lies in the chunk."""
    places: tuple[tuple[slice, ...], ...]
    """Location of each of these parts in the chunk."""
    weights: tuple[AxisWeights, ...]
    """Weights of each of these parts."""


def paste(spec: PasteSpec, *tiles: Any) -> Array:
    """Return one chunk of an output: the weighted sum of the tiles that cover it.

    The sum is in float32, or float64 for outputs of that dtype; integer outputs are rounded.
    """
    tiles = tuple(np.asarray(take_value(tile, spec.position)) for tile in tiles)
    dtype = tiles[0].dtype
    if len(tiles) == 1:
        return np.ascontiguousarray(tiles[0][spec.slices[0]])
    total = np.zeros(spec.shape, np.float64 if dtype == np.float64 else np.float32)
    for tile, slices, place, ramps in zip(
        tiles, spec.slices, spec.places, spec.weights, strict=True
    ):
        part = tile[slices].astype(total.dtype)
        for axis, ramp in ramps:
            form = [1] * part.ndim
            form[axis] = -1
            part *= ramp.reshape(form).astype(total.dtype)
        total[place] += part
    return (np.rint(total) if dtype.kind in "iu" else total).astype(dtype)


@dataclass(frozen=True, slots=True)
class _Tasks:
    """Tasks that run the model on tiles, and the layers that they depend on."""

    name: str
    """First element of the tiles' keys."""
    base: str
    """Name of the layer with the tiles."""
    token: str
    layers: Mapping[str, Any]
    dependencies: Mapping[str, set[str]]


@dataclass(frozen=True, slots=True)
class BlendGraph:
    """Tasks of one blended prediction."""

    model: Model
    spec: TensorSpec
    """Input of the model."""
    image: InputImage
    tilings: Mapping[int, AxisTiling]
    """Tiled axis to the tiles along it."""
    output_axes: Mapping[str, Mapping[int, OutputAxis]]
    """Output to the location of each tiled axis in it."""
    outputs: tuple[str, ...]

    @property
    def axes(self) -> tuple[int, ...]:
        """Tiled axes."""
        return tuple(self.tilings)

    def arrays(self) -> dict[str, da.Array]:
        """Return a lazy array for each output, with a chunk for each tile."""
        tiles = self._tiles()
        return {name: self._output(name, tiles) for name in self.outputs}

    def _image_array(self) -> da.Array:
        """Return the image as a dask array, one chunk for each tile if it is a numpy array."""
        image: da.Array = self.image.data
        if not self.image.is_lazy:
            chunks = tuple(
                self.tilings[axis].length if axis in self.tilings else size
                for axis, size in enumerate(self.image.shape)
            )
            # Computed at once and never again: hashing the pixels for a name would be wasted.
            image = da.from_array(self.image.data, chunks=chunks, name=f"image-{uuid.uuid4().hex}")
        return image

    def _tiles(self) -> _Tasks:
        """Return the tasks that run the model on each tile."""
        image = self._image_array()
        part = self.model.extract(outputs=list(self.outputs))
        inline, supplies, supply_layers = inline_part(part, self.outputs)
        token = digest(
            self.model.__dask_tokenize__(), image.name, dict(self.tilings), self.outputs, "blend"
        )
        name, base = f"blend_{inline.label}-{token}", f"blend-{token}"
        call = UntiledCall(inline, (self.spec.name,), self.outputs)
        crops: dict[str, da.Array] = {}
        tasks: dict[Any, Any] = {}
        for tile in itertools.product(*(range(len(self.tilings[k].starts)) for k in self.axes)):
            crop = image[self._crop(tile, image.ndim)].rechunk(-1)
            crops[crop.name] = crop
            source = TaskRef((crop.name, *(0,) * crop.ndim))
            key = (name, *tile)
            tasks[key] = StageTask(key, run_untiled, call, source, *supplies)
        collections: Any = list(crops.values())
        graph = HighLevelGraph.from_collections("crops", {}, collections)
        layers: dict[str, Any] = {
            **graph.layers,
            **{key: MaterializedLayer(layer) for key, layer in supply_layers.items()},
            base: MaterializedLayer(tasks, annotations={"retries": effective_retries(None)}),
        }
        dependencies = {key: set(names) for key, names in graph.dependencies.items()}
        dependencies |= {key: set() for key in supply_layers}
        dependencies[base] = {*crops, *supply_layers}
        return _Tasks(name, base, token, layers, dependencies)

    def _crop(self, tile: Sequence[int], rank: int) -> tuple[slice, ...]:
        at = dict(zip(self.axes, tile, strict=True))
        return tuple(
            slice(*self.tilings[axis].tile(at[axis])) if axis in at else slice(None)
            for axis in range(rank)
        )

    def _output(self, name: str, tiles: _Tasks) -> da.Array:
        """Return one output as a lazy array."""
        axes, shape = self.output_axes[name], self._shape(name)
        tiled = {location.axis: k for k, location in axes.items()}
        borders = [
            chunk_borders(self.tilings[tiled[axis]], axes[tiled[axis]].ratio, size)
            if axis in tiled
            else (0, size)
            for axis, size in enumerate(shape)
        ]
        ramps = {k: weights(self.tilings[k], axes[k].ratio, shape[axes[k].axis]) for k in axes}
        position = self.outputs.index(name) if len(self.outputs) > 1 else None
        own, tasks = f"blended_{name}-{digest(tiles.token, name)}", {}
        for number in itertools.product(*(range(len(b) - 1) for b in borders)):
            region = [b[i : i + 2] for b, i in zip(borders, number, strict=True)]
            spec, numbers = self._paste_spec(position, region, axes, ramps)
            key = (own, *number)
            tasks[key] = Task(key, paste, spec, *(TaskRef((tiles.name, *n)) for n in numbers))
        graph = HighLevelGraph(
            {**tiles.layers, own: MaterializedLayer(tasks)},
            {**tiles.dependencies, own: {tiles.base}},
        )
        dtype = self.model._facts.typed_spec(name).dtype
        chunks = tuple(tuple(np.diff(b).tolist()) for b in borders)
        return da.Array(graph, own, chunks, dtype=dtype, meta=np.empty((0,) * len(shape), dtype))

    def _shape(self, name: str) -> list[int]:
        """Return the shape of an output for the whole image."""
        last_tile = list(self.image.shape)
        for k, tiling in self.tilings.items():
            start, stop = tiling.tile(len(tiling.starts) - 1)
            last_tile[k] = stop - start
        shape = shape_for(self.model, self.spec, last_tile, name)
        for k, location in self.output_axes[name].items():
            shape[location.axis] += int(self.tilings[k].starts[-1] * location.ratio)
        return shape

    def _paste_spec(
        self,
        position: int | None,
        region: Sequence[Sequence[int]],
        axes: Mapping[int, OutputAxis],
        ramps: Mapping[int, Any],
    ) -> tuple[PasteSpec, list[tuple[int, ...]]]:
        """Return the weighted sum for one chunk, and the numbers of the tiles that it reads.

        Parameters
        ----------
        position : int or None
            Position of the output in the results of the tiles.
        region : sequence of (int, int)
            First position of the chunk along each axis, and the one after its last.
        axes : mapping of int to OutputAxis
        ramps : mapping of int to list
            Tiled axis to the weights of its tiles, as `weights` returns them.
        """
        along = [covering(ramps[k], *region[axes[k].axis]) for k in self.axes]
        numbers, slices, places, weighted = [], [], [], []
        for combination in itertools.product(*along):
            part = [slice(None)] * len(region)
            place = [slice(0, stop - start) for start, stop in region]
            for k, tile in zip(self.axes, combination, strict=True):
                part[axes[k].axis], place[axes[k].axis] = tile.part, tile.place
            numbers.append(tuple(tile.number for tile in combination))
            slices.append(tuple(part))
            places.append(tuple(place))
            weighted.append(
                tuple(
                    (axes[k].axis, tile.weights)
                    for k, tile in zip(self.axes, combination, strict=True)
                )
            )
        shape = tuple(stop - start for start, stop in region)
        spec = PasteSpec(position, shape, tuple(slices), tuple(places), tuple(weighted))
        return spec, numbers
