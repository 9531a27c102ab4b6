"""The caller's image as an array that the model takes, and results in the form of that image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import dask.array as da
import numpy as np

from dask_onnx.cluster.current_scheduler import compute_now
from dask_onnx.collections.kinds import is_dataarray
from dask_onnx.core.dask_internals import meta_of
from dask_onnx.core.errors import InputError, Suggestion
from dask_onnx.core.specs import TensorSpec
from dask_onnx.runtime.input_values import as_input, check_dtype
from dask_onnx.tiles.image_borders import Borders
from dask_onnx.tiles.output_labels import with_labels
from dask_onnx.tiles.places import Place, Places


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image of the caller, as an array of the model's rank."""

    data: Any
    """numpy or dask array, with the batch axis."""
    is_lazy: bool
    """True if `data` is a dask array."""
    is_single: bool
    """True if the caller's image has no batch axis."""
    labelled: Any = None
    """The caller's DataArray, if the image is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape with the batch axis."""
        return tuple(self.data.shape)


def as_input_image(image: Any, spec: TensorSpec) -> InputImage:
    """Return an image as an array of the model's rank.

    Parameters
    ----------
    image : dask.array, array-like or xarray.DataArray
    spec : TensorSpec
        Input of the model.

    Raises
    ------
    InputError
        The table of conversions does not take its dtype or values, its rank or a fixed size differ
        from those of the input, or the image is empty or of unknown size.
    """
    labelled = image if is_dataarray(image) else None
    data = image.data if labelled is not None else image
    is_lazy = isinstance(data, da.Array)
    if hasattr(data, "dtype"):
        check_dtype(data.dtype, spec, option="image")
    if not is_lazy:
        data = as_input(data, spec)
    rank = len(spec.shape) if spec.shape is not None else data.ndim
    is_single = data.ndim == rank - 1
    if is_single:
        data = data[None]
    if is_lazy and spec.dtype is not None and (data.dtype != spec.dtype or _is_masked(data)):
        meta = np.empty((0,) * data.ndim, spec.dtype)
        data = data.map_blocks(as_input, spec, dtype=spec.dtype, meta=meta)
    _check(data, spec, is_single=is_single)
    return InputImage(data, is_lazy, is_single, labelled)


def _is_masked(data: da.Array) -> bool:
    return isinstance(meta_of(data), np.ma.MaskedArray)


def _check(data: Any, spec: TensorSpec, *, is_single: bool) -> None:
    """Compare an image with the input of the model."""
    if spec.shape is None:
        return
    shape = data.shape[1:] if is_single else data.shape
    if data.ndim != len(spec.shape):
        raise InputError(
            f"the image has rank {len(shape)}, shape {shape}; the model takes {spec}",
            "pass an image with every axis of the input; the batch axis may be left out",
            option="image",
            input=spec.name,
            numbers={"rank": len(shape), "expected_rank": len(spec.shape)},
        )
    if any(size != size for size in data.shape):
        raise InputError(
            f"the image has an unknown size, shape {shape}",
            "call compute_chunk_sizes() on it first",
            option="image",
            input=spec.name,
        )
    if 0 in data.shape:
        raise InputError(
            f"the image is empty: shape {shape}",
            "pass an image with pixels",
            option="image",
            input=spec.name,
        )
    for axis, (size, dim) in enumerate(zip(data.shape, spec.shape, strict=True)):
        if isinstance(dim, int) and dim != size:
            _refuse_size(spec, axis, size, dim)


def _refuse_size(spec: TensorSpec, axis: int, size: int, expected: int) -> None:
    is_spatial = axis > 1
    raise InputError(
        f"the image has size {size} on axis {axis}; the model takes {spec}",
        "pass exact=False to run a model of fixed size on overlapping tiles of that size, or use "
        "detect_sliced for a detector"
        if is_spatial
        else f"pass an image of size {expected} on axis {axis}",
        option="image",
        input=spec.name,
        axis=axis,
        numbers={"size": size, "expected_size": expected},
        suggestions=[Suggestion("exact", False)] if is_spatial else [],
    )


def pad_to(data: Any, shape: Sequence[int], multiple: int | None = None) -> Any:
    """Return an image padded at the end with its last pixels, and warn if that changes it.

    Parameters
    ----------
    data : numpy or dask array
    shape : sequence of int
        Shape of the result.
    multiple : int, optional
        Number of pixels of which the model accepts multiples only, for the warning; None for a
        second image, which is padded without one.
    """
    widths = [(0, new - old) for old, new in zip(data.shape, shape, strict=True)]
    if not any(after for _, after in widths):
        return data
    if multiple is not None:
        warnings.warn(
            f"the model accepts multiples of {multiple} pixels: the image of shape "
            f"{tuple(data.shape)} is padded to {tuple(shape)} with its last pixels, and the result "
            "is cropped. Near the end, the result is that of the padded image",
            stacklevel=3,
        )
    module = da if isinstance(data, da.Array) else np
    return module.pad(data, widths, mode="edge")


def crop_padding(
    value: Any,
    places: Places,
    lengths: Mapping[int, int],
    deficits: Mapping[int, Fraction] | None = None,
) -> Any:
    """Return a result without the positions that come from padding.

    Parameters
    ----------
    value : array
    places : Places
        Locations of the tiled axes in it.
    lengths : mapping of int to int
        Tiled axis to the pixels of the image before it was padded.
    deficits : mapping of int to Fraction, optional
        Tiled axis to the positions that the result has less than the image at its stride.
    """
    index: list[slice] = [slice(None)] * value.ndim
    for k, place in places.items():
        if k in lengths and place.is_separate:
            positions = Fraction(lengths[k]) / place.stride - (deficits or {}).get(k, 0)
            index[place.axis] = slice(0, max(math.ceil(positions), 0))
    return value[tuple(index)]


def compute_together(arrays: Mapping[str, da.Array]) -> dict[str, Any]:
    """Compute arrays in one graph, on the scheduler that Dask would use; inline inside a task."""
    return dict(zip(arrays, compute_now(list(arrays.values())), strict=True))


def in_form_of(
    image: InputImage,
    value: Any,
    name: str,
    places: Places,
    borders: Borders,
    untiled: Mapping[int, Place],
) -> Any:
    """Return a result in the form of the image: labelled as it is, and with or without batch axis.

    Parameters
    ----------
    image : InputImage
    value : array
        Result, with the batch axis.
    name : str
        Name of the output.
    places : Places
        Locations of the tiled axes in the result.
    borders : Borders
        Where the first position of the result starts on the image, along tiled axes.
    untiled : mapping of int to Place
        Other axes of the image to their locations in the result.
    """
    is_single = image.is_single and value.ndim > 0 and value.shape[0] == 1
    if image.labelled is not None:
        value = with_labels(image.labelled, value, name, places, borders, untiled, image.is_single)
    return value[0] if is_single else value
