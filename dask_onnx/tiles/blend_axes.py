"""Location of the tiled axes in the outputs of a model that runs on overlapping tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from onnx.shape_inference import InferenceError

from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.api.model import Model
from dask_onnx.core.errors import InputError
from dask_onnx.core.specs import TensorSpec
from dask_onnx.tiles.places import Place

_LARGEST_RATIO = 64
"""Largest numerator or denominator of output positions for each pixel: larger ones are no stride,
but an output whose size does not grow with the image in proportion."""


@dataclass(frozen=True, slots=True)
class OutputAxis:
    """Location of a tiled axis in an output."""

    axis: int
    """Axis of the output."""
    ratio: Fraction
    """Output positions for each pixel."""


def output_axes(
    model: Model,
    spec: TensorSpec,
    shape: Sequence[int],
    lengths: Mapping[int, int],
    output: str,
) -> dict[int, OutputAxis]:
    """Return where each tiled axis lies in an output, from its shapes for tiles of two sizes.

    Parameters
    ----------
    model : Model
    spec : TensorSpec
        Input of the model.
    shape : sequence of int
        Shape of the image, with the batch axis.
    lengths : mapping of int to int
        Tiled axis to the pixels of a tile.
    output : str
        Name of the output.

    Raises
    ------
    InputError
        The output does not grow with an axis, not in proportion, or the model refuses the tile.
    """
    tile = [lengths.get(axis, size) for axis, size in enumerate(shape)]
    before = shape_for(model, spec, tile, output)
    found = {}
    for k, length in lengths.items():
        if spec.shape is not None and isinstance(spec.shape[k], int):
            # The model accepts one size only, so that growth cannot be observed: assume that rows
            # and columns are as far from the last axis as they are in the input.
            grown = [len(before) - len(shape) + k]
        else:
            twice = [size * (1 + (axis == k)) for axis, size in enumerate(tile)]
            after = shape_for(model, spec, twice, output)
            grown = [axis for axis, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        if len(grown) != 1 or not 0 <= grown[0] < len(before):
            raise InputError(
                f"output {output!r} of shape {tuple(before)} has no axis that grows with axis {k} "
                "of the image",
                "name outputs= that have the image's axes, or use model.predict",
                option="outputs",
                input=output,
                axis=k,
            )
        positions = before[grown[0]]
        ratio = Fraction(positions, length)
        if max(ratio.numerator, ratio.denominator) > _LARGEST_RATIO:
            raise InputError(
                f"output {output!r} has {positions} positions for {length} pixels of a tile along "
                f"axis {k}, which is no simple ratio",
                "choose a tile size that the strides of the model divide",
                option="tile",
                input=output,
                axis=k,
                numbers={"positions": positions, "pixels": length},
            )
        found[k] = OutputAxis(grown[0], ratio)
    return found


def shape_for(model: Model, spec: TensorSpec, shape: Sequence[int], output: str) -> list[int]:
    """Return the shape of an output for a tile.

    Parameters
    ----------
    model : Model
    spec : TensorSpec
        Input of the model.
    shape : sequence of int
        Shape of the tile, with the batch axis.
    output : str
        Name of the output.

    Raises
    ------
    InputError
        The model refuses the tile, or ONNX cannot infer the output's shape.
    """
    facts = model._facts
    try:
        specs = infer_shapes(facts.graph, {spec.name: tuple(shape)}, facts.schemas, is_strict=True)
    except InferenceError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"the model does not accept a tile of shape {tuple(shape)}: {reason}",
            "choose another tile size; many models accept multiples of 32",
            option="tile",
            input=spec.name,
            reason=reason,
        ) from error
    dims = specs[output].shape if output in specs else None
    if dims is None or not all(isinstance(dim, int) for dim in dims):
        raise InputError(
            f"cannot infer the shape of output {output!r} from the graph",
            "name other outputs, or use model.predict",
            option="outputs",
            input=output,
        )
    return [int(dim) for dim in dims if isinstance(dim, int)]


def as_places(axes: Mapping[int, OutputAxis], shape: Sequence[int]) -> dict[int, Place]:
    """Return the locations of the tiled axes in an output of some shape."""
    return {k: Place(axis.axis, 1, 1, shape[axis.axis], 1 / axis.ratio) for k, axis in axes.items()}
