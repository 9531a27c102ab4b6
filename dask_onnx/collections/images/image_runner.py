"""Functions that tasks run: pictures are decoded, prepared, run together by size, and read."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from dask.base import tokenize
from dask.utils import format_bytes

from dask_onnx.collections.bad_rows import (
    Found,
    RowsError,
    crashes_at,
    in_place,
    join_found,
    located,
    run_rows,
)
from dask_onnx.collections.images.geometry import Geometry
from dask_onnx.collections.images.image_inputs import feed_value
from dask_onnx.collections.images.image_results import ImageResult, read_result
from dask_onnx.collections.images.image_settings import ImageSettings
from dask_onnx.collections.inline import InlineGraph, InlineTask
from dask_onnx.collections.run_options import RowOptions
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.core.stage_tasks import Hints, digest
from dask_onnx.runtime.memory_check import room_for

Array = npt.NDArray[Any]
PICTURES_OF_A_TASK = 32
"""Pictures that are decoded and prepared at a time, and those of each task for a list of them."""
_PICTURES = "pictures"
"""Name under which pictures go in and results come out of `run_rows`."""
_RESERVE = 1.25
"""Factor on the bytes that the graph's shapes need, for what ONNX Runtime needs beside them."""


@dataclass(frozen=True, slots=True, eq=False)
class ImageRunner:
    """Function that runs a model on the pictures of one partition."""

    graph: InlineGraph
    """Stages to run."""
    settings: ImageSettings
    """Settings of preparation and of reading results."""
    output_axes: Mapping[str, int | None]
    """Output to its batch axis; None for an output without."""
    feeds: Mapping[str, tuple[TensorSpec, int | None]]
    """Inputs beside the picture's to their specs and batch axes."""
    most_together: int | None
    """Pictures of one run, at most; None for any number."""
    bytes_per_pixel: float
    """Bytes of activations for each pixel of the tensor, as the graph's shapes have it."""
    rows: RowOptions
    """Treatment of bad pictures."""

    @property
    def hints(self) -> Hints:
        """Facts for Dask's scheduler."""
        return self.graph.hints

    @property
    def label(self) -> str:
        """Name of the task on Dask's dashboard."""
        return self.graph.label

    @property
    def needed_bytes_per_pixel(self) -> float:
        """Bytes that a run needs for each pixel of the tensor, with a reserve.

        Those of activations, of the tensor and the resized picture, and of a copy of both.
        """
        layout = self.settings.preparation.layout
        own = 2 * (layout.channels or 3) * (layout.dtype.itemsize + 1)
        return self.bytes_per_pixel * _RESERVE + own

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        stages = digest(sorted(map(str, self.graph.tasks)))
        return stages, tokenize(self.settings), repr(self.rows)

    def __call__(self, sources: Sequence[Any], *supplies: Any) -> Found:
        """Return results of the good pictures, and the errors of the others.

        Parameters
        ----------
        sources : sequence
            Paths, URLs, bytes, images or arrays.
        supplies
            Results of the tasks that bring the model here.
        """
        parts: list[tuple[int, Found]] = []
        for start in range(0, max(len(sources), 1), PICTURES_OF_A_TASK):
            part = sources[start : start + PICTURES_OF_A_TASK]
            parts.append((start, self._run_part(part, supplies)))
            if self.rows.on_error == "raise" and parts[-1][1].errors:
                break
        return join_found(parts)

    def _run_part(self, sources: Sequence[Any], supplies: Sequence[Any]) -> Found:
        def convert(positions: Array | None) -> dict[str, Any]:
            chosen = sources if positions is None else [sources[place] for place in positions]
            return {_PICTURES: self._prepared(chosen)}

        def run(given: Mapping[str, Any]) -> dict[str, Any]:
            return {_PICTURES: self._results(given[_PICTURES], supplies)}

        return run_rows(len(sources), convert, run, stops=self.rows.on_error == "raise")

    def _prepared(self, sources: Sequence[Any]) -> list[tuple[Array, Geometry, str | None]]:
        """Return tensors, geometries and paths of pictures.

        Raises
        ------
        RowsError
            Some cannot be decoded or prepared.
        """
        found, faults = [], {}
        for place, source in enumerate(sources):
            try:
                tensor, geometry = self.settings.preparation(source, self._check_room)
            except InputError as error:
                faults[place] = error
                continue
            found.append((tensor, geometry, path_of(source)))
        if faults:
            raise _PicturesError(faults, len(sources))
        return found

    def _check_room(self, geometry: Geometry) -> None:
        """Refuse a picture that needs more memory than this process may take."""
        height, width = geometry.tensor
        per_pixel = self.needed_bytes_per_pixel
        needed = int(per_pixel * height * width)
        room = room_for(needed)
        if needed <= room:
            return
        side = 32 * max(1, int((room / per_pixel) ** 0.5) // 32)
        raise InputError(
            f"the model needs about {format_bytes(needed)} for a tensor of {height} x {width}; "
            f"{format_bytes(room)} are left in this process",
            f"shrink pictures, as resize='letterbox={side}', give workers more memory, or run "
            "this picture in tiles: predict_tiled, or detect_sliced for a detector",
            option="resize",
            numbers={"needed_bytes": needed, "room_bytes": room, "most_pixels": side},
            suggestions=[
                Suggestion("resize", f"letterbox={side}"),
                Suggestion("worker_memory_limit"),
                Suggestion("tile", "auto"),
            ],
        )

    def _results(
        self, pictures: Sequence[tuple[Array, Geometry, str | None]], supplies: Sequence[Any]
    ) -> list[ImageResult]:
        """Return the results of prepared pictures, those of one size run together."""
        results: list[ImageResult | None] = [None] * len(pictures)
        for places in self._groups(pictures):
            with crashes_at(places):
                outputs = self._run_together([pictures[place][:2] for place in places], supplies)
            for number, place in enumerate(places):
                own = {
                    name: value
                    if (axis := self.output_axes[name]) is None
                    else value.take(number, axis)
                    for name, value in outputs.items()
                }
                _, geometry, path = pictures[place]
                form, options = self.settings.form, self.settings.results
                results[place] = read_result(own, geometry, form, options, path)
        return [result for result in results if result is not None]

    def _groups(
        self, pictures: Sequence[tuple[Array, Geometry, str | None]]
    ) -> Iterator[list[int]]:
        """Yield positions of pictures that run together: of one size, as many as fit."""
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for place, (tensor, _, _) in enumerate(pictures):
            by_shape.setdefault(tensor.shape, []).append(place)
        for places in by_shape.values():
            height, width = pictures[places[0]][1].tensor
            one = self.needed_bytes_per_pixel * height * width
            most = max(1, int(room_for(int(one * len(places))) / max(one, 1)))
            step = min(most, self.most_together or len(places))
            for start in range(0, len(places), step):
                yield places[start : start + step]

    def _run_together(
        self, pictures: Sequence[tuple[Array, Geometry]], supplies: Sequence[Any]
    ) -> dict[str, Array]:
        layout = self.settings.preparation.layout
        tensors = [tensor for tensor, _ in pictures]
        arrays = {layout.name: np.stack(tensors) if layout.is_batch else tensors[0]}
        tensor_size = pictures[0][1].tensor
        for name, (spec, axis) in self.feeds.items():
            given = self.settings.feeds[name]
            value = feed_value(given, spec, tensor_size) if isinstance(given, str) else given
            if not isinstance(value, np.ndarray):  # a sequence or an optional
                arrays[name] = value
                continue
            if axis is not None:
                value = np.repeat(np.expand_dims(value, axis), len(tensors), axis=axis)
            elif spec.rank == value.ndim + 1:
                value = value[None]
            arrays[name] = value
        return self.graph.run(arrays, supplies)

    def raise_first(self, found: Found, where: Callable[[int], str], count: int) -> None:
        """Raise the first error if bad pictures are errors.

        Parameters
        ----------
        found : Found
        where : callable
            Takes a position, and returns the picture's name.
        count : int
            Number of pictures.
        """
        if self.rows.on_error == "raise" and found.errors:
            position = min(found.errors)
            error = found.errors[position]
            if isinstance(error, _PicturesError):
                error = error.of_row(min(error.faults))
            raise located(error, f"{where(position)}: ", position, count) from None


@dataclass(frozen=True, slots=True, eq=False)
class PictureTask(InlineTask):
    """Function of tasks on pictures; subclasses define the call."""

    runner: ImageRunner

    @property
    def inline(self) -> InlineGraph:
        """Stages to run."""
        return self.runner.graph

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return self.runner.__dask_tokenize__()


class _PicturesError(RowsError):
    """Pictures of one part that cannot be prepared, each with its own error."""

    def __init__(self, faults: Mapping[int, InputError], count: int) -> None:
        self.faults = dict(faults)
        self.count = count
        first = self.faults[min(self.faults)]
        super().__init__(
            first.cause,
            first.next_step,
            np.isin(np.arange(count), list(self.faults)),
            **{name: value for name, value in first.fields.items() if name != "numbers"},
        )

    def of_row(self, position: int) -> InputError:
        """Return the error of one picture, with its own fields."""
        return self.faults[position]


def path_of(source: Any) -> str | None:
    """Return the path of a picture that is given as one."""
    return os.fspath(source) if isinstance(source, str | os.PathLike) else None


def results_of(found: Found) -> list[ImageResult]:
    """Return the results of the good pictures, in their order."""
    return [] if found.values is None else list(found.values[_PICTURES])


def in_order(found: Found) -> list[ImageResult | None]:
    """Return the results of all pictures; None in place of bad ones."""
    return in_place(found, results_of(found), None)


def name_of(source: Any, place: int, count: int) -> str:
    """Return the name of a picture in messages: its path, or its position."""
    path = path_of(source)
    return path if path is not None else f"picture {place:,} of {count:,}"
