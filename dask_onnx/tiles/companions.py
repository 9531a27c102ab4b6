"""Inputs of a model beside the image: cut into tiles with it, or given once as constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, NamedTuple

import dask.array as da
import numpy as np
import onnx
from dask.delayed import Delayed
from dask.utils import format_bytes
from onnx import numpy_helper

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.api.model import Model
from dask_onnx.collections.extraction import with_fed_defaults
from dask_onnx.collections.kinds import is_dataarray
from dask_onnx.collections.request_checks import resolve_feeds
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.runtime.input_values import as_input
from dask_onnx.tiles.graph_rewrites import replace_proto
from dask_onnx.tiles.image_input import InputImage, as_input_image

_LARGEST_CONSTANT = 64 * 2**20
"""Bytes of an input that is given once: it becomes part of the model that travels to workers."""
_LARGEST_STRIDE = 64
"""Pixels of the image for one of a second, smaller image; larger ratios are chance."""
_MIN_IMAGE_RANK = 2


class Companion(NamedTuple):
    """A second image: an input that is cut into tiles with the image."""

    shape: tuple[int, ...]
    """Shape for the whole image, with the batch axis."""
    axes: Mapping[int, int]
    """Tiled axis of the image to the axis of this input."""
    strides: Mapping[int, int]
    """Tiled axis to the pixels of the image for one of this input."""

    def at(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape that belongs to an image of another shape."""
        sizes = list(self.shape)
        for k, axis in self.axes.items():
            sizes[axis] = shape[k] // self.strides[k]
        return tuple(sizes)

    @property
    def largest_stride(self) -> int:
        """Pixels of the image for one of this input, along the axis where there are most."""
        return max(self.strides.values())


@dataclass(frozen=True, slots=True)
class NamedInputs:
    """Inputs that the wanted outputs need, and which of them is the image."""

    model: Model
    """The model, with optional inputs that are given as inputs."""
    image: str
    """Name of the input that is the image."""
    values: Mapping[str, Any]
    """Values that the caller gave, by name of the input."""

    @property
    def spec(self) -> TensorSpec:
        """Input of the model that takes the image."""
        return next(spec for spec in self.model.inputs if spec.name == self.image)

    @property
    def others(self) -> dict[str, Any]:
        """Inputs beside the image."""
        return {name: value for name, value in self.values.items() if name != self.image}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs beside the image."""
        specs = {spec.name: spec for spec in self.model.inputs}
        return {name: _shape_of(value, specs[name]) for name, value in self.others.items()}


def named_inputs(model: Model, x: Any, outputs: Sequence[str]) -> NamedInputs:
    """Return the inputs by name, and find the image among them.

    The image is the input along which a node of the model slides a window; of several, or of none,
    the one with the most elements.

    Parameters
    ----------
    model : Model
    x : array, or mapping of str to array
        The one input that the outputs need, or inputs by name.
    outputs : sequence of str
        Names of the wanted outputs.

    Raises
    ------
    InputError
        An input is missing or unknown, or one array is given for several inputs.
    """
    facts = with_fed_defaults(model._facts, x)
    model = model if facts is model._facts else Model._of(facts)
    needed = [spec.name for spec in facts.inputs_of(tuple(outputs))]
    if not needed:
        needed = [spec.name for spec in model.inputs[:1]]
    feeds = resolve_feeds(x, model.inputs, needed)
    if not feeds:
        raise InputError(
            "the model has no input that could be an image", "use model.predict", option="model"
        )
    names = list(feeds)
    if len(names) > 1:
        specs = {spec.name: spec for spec in model.inputs}
        shapes = {name: _shape_of(value, specs[name]) for name, value in feeds.items()}
        names.sort(key=lambda name: _rank_as_image(model, name, shapes), reverse=True)
    return NamedInputs(model, names[0], feeds)


def _rank_as_image(
    model: Model, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[bool, float]:
    """Return a key by which the image comes last: is a window slid over it, and its elements."""
    shape, facts = shapes[name], model._facts
    if len(shape) < _MIN_IMAGE_RANK:
        return False, 0.0
    specs = infer_shapes(facts.graph, dict(shapes), facts.schemas)
    is_windowed = any(
        dep.kind == Kind.WINDOW
        for axis in range(1, len(shape))
        for dep in propagate(facts.graph, specs, {name: axis}, facts.custom_axes).values()
    )
    return is_windowed, float(np.prod(shape, dtype=float))


def _shape_of(value: Any, spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape of an input as the model takes it: with the batch axis."""
    shape = tuple(np.shape(value) if not hasattr(value, "shape") else value.shape)
    if spec.shape is not None and len(shape) == len(spec.shape) - 1 > 1:
        return (1, *shape)
    return shape


def split_companions(
    named: NamedInputs, shape: Sequence[int], tiled: Sequence[int]
) -> tuple[Model, dict[str, Companion], dict[str, InputImage]]:
    """Return the model with inputs that are given once as constants, and the images to cut.

    An input whose sizes along the tiled axes are those of the image, or a whole fraction of them,
    is cut with it.

    Parameters
    ----------
    named : NamedInputs
    shape : sequence of int
        Shape of the image, with the batch axis.
    tiled : sequence of int
        Tiled axes of the image.

    Returns
    -------
    model : Model
        Its inputs are the image and the companions.
    companions : dict of str to Companion
    images : dict of str to InputImage
        Data of the companions.

    Raises
    ------
    InputError
        An input does not fit the model, or is given once and neither in memory nor small.
    """
    specs = {spec.name: spec for spec in named.model.inputs}
    companions: dict[str, Companion] = {}
    images: dict[str, InputImage] = {}
    constants: dict[str, Any] = {}
    for name, value in named.others.items():
        found = _as_companion(_shape_of(value, specs[name]), shape, tiled)
        if found is None:
            constants[name] = _constant(value, specs[name])
        else:
            images[name] = as_input_image(value, specs[name])
            companions[name] = found
    model = named.model if not constants else with_constants(named.model, constants)
    return model, companions, images


def _as_companion(
    own: tuple[int, ...], shape: Sequence[int], tiled: Sequence[int]
) -> Companion | None:
    """Return how an input of a shape is cut with the image; None if it is given once.

    Axes correspond from the last one, as for a mask without channels beside an image with channels
    first, or from the first one, where channels are last.
    """
    if len(own) < _MIN_IMAGE_RANK or len(own) > len(shape):
        return None
    for shift in dict.fromkeys((len(shape) - len(own), 0)):
        axes = {k: k - shift for k in tiled}
        if not all(0 < axis < len(own) for axis in axes.values()):
            continue
        ratios = {k: Fraction(shape[k], max(own[axis], 1)) for k, axis in axes.items()}
        is_cut = all(
            ratio.denominator == 1 and 1 <= ratio <= _LARGEST_STRIDE for ratio in ratios.values()
        )
        is_smaller = any(ratio > 1 for ratio in ratios.values())
        if is_cut and not (is_smaller and len(own) != len(shape)):
            return Companion(own, axes, {k: int(ratio) for k, ratio in ratios.items()})
    return None


def _constant(value: Any, spec: TensorSpec) -> np.ndarray:
    """Return an input that is given once as an array of the model's dtype, or refuse it."""
    value = value.data if is_dataarray(value) else value
    if isinstance(value, da.Array | Delayed):
        raise InputError(
            f"input {spec.name!r} has not the size of the image, so it is given once for all tiles;"
            f" it is a lazy {type(value).__name__}",
            "compute it first, or give it the size of the image",
            input=spec.name,
        )
    array = np.asarray(as_input(value, spec))
    dims = spec.shape
    if dims is not None and (
        array.ndim != len(dims)
        or any(isinstance(d, int) and d != size for d, size in zip(dims, array.shape, strict=True))
    ):
        raise InputError(
            f"input {spec.name!r} has shape {array.shape}; the model takes {spec}",
            "pass an array of that shape",
            input=spec.name,
            numbers={"rank": array.ndim, "expected_rank": len(dims)},
        )
    if array.nbytes > _LARGEST_CONSTANT:
        raise InputError(
            f"input {spec.name!r} has not the size of the image, so it is given once for all tiles;"
            f" it has {format_bytes(array.nbytes)}, the most is {format_bytes(_LARGEST_CONSTANT)}",
            "make it an initializer of the model",
            input=spec.name,
            numbers={"bytes": array.nbytes, "limit_bytes": _LARGEST_CONSTANT},
        )
    return array


def with_constants(model: Model, arrays: Mapping[str, np.ndarray]) -> Model:
    """Return a model in which some inputs are constants.

    Parameters
    ----------
    model : Model
    arrays : mapping of str to ndarray
        Input to its value.
    """
    facts = model._facts
    proto = onnx.ModelProto()
    proto.CopyFrom(facts.graph.proto)
    kept = [info for info in proto.graph.input if info.name not in arrays]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        for name, array in arrays.items()
    )
    bound = replace_proto(facts.onnx, proto)
    inputs = tuple(spec for spec in bound.inputs if spec.name not in arrays)
    return Model(replace(bound, inputs=inputs), facts.custom, facts.libraries)
