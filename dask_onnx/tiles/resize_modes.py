"""Coordinate modes of Resize that mean other coordinates on a tile than on the whole image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.weights import is_external

_MODE = "coordinate_transformation_mode"
"""Attribute of Resize."""


def write_half_pixel(
    node: onnx.NodeProto,
    specs: Mapping[str, TensorSpec],
    tensors: Mapping[str, onnx.TensorProto],
) -> bool:
    """Replace the coordinate mode of a Resize by ``half_pixel``, in place, where they are equal.

    ``pytorch_half_pixel`` differs along axes of one output element only, and
    ``half_pixel_symmetric`` along axes whose size has been rounded. Neither may be so on the whole
    image and yet be on a tile. The formulas are those of the ONNX operator Resize.

    Parameters
    ----------
    node : NodeProto
    specs : mapping of str to TensorSpec
        Types and shapes of all values for the whole image.
    tensors : mapping of str to TensorProto
        Initializers of the graph.

    Returns
    -------
    bool
        True if the node has changed.
    """
    place = next((i for i, each in enumerate(node.attribute) if each.name == _MODE), None)
    sizes = _sizes(node, specs)
    if place is None or sizes is None:
        return False
    mode = node.attribute[place].s
    is_equal = (mode == b"pytorch_half_pixel" and is_longer_than_one(*sizes)) or (
        mode == b"half_pixel_symmetric" and _is_exact(node, sizes, tensors)
    )
    if is_equal:
        node.attribute[place].CopyFrom(helper.make_attribute(_MODE, "half_pixel"))
    return is_equal


def is_longer_than_one(before: Sequence[int | None], after: Sequence[int | None]) -> bool:
    """Return whether no axis has been resized to one element, given the shapes."""
    return all(new != 1 or old == new for old, new in zip(before, after, strict=True))


def _sizes(
    node: onnx.NodeProto, specs: Mapping[str, TensorSpec]
) -> tuple[list[int], list[int]] | None:
    """Return the shapes before and after a node; None if a size is unknown."""
    shapes = []
    for name in (node.input[0], node.output[0]):
        spec = specs.get(name)
        sizes = [dim for dim in (spec.shape if spec and spec.shape else ()) if isinstance(dim, int)]
        if spec is None or spec.shape is None or len(sizes) < len(spec.shape):
            return None
        shapes.append(sizes)
    before, after = shapes
    return (before, after) if len(before) == len(after) else None


def _is_exact(
    node: onnx.NodeProto,
    sizes: tuple[list[int], list[int]],
    tensors: Mapping[str, onnx.TensorProto],
) -> bool:
    """Return whether no size has been rounded: it was given, or is the product with a scale."""
    if len(node.input) > 3 and node.input[3]:
        return True
    scales = tensors.get(node.input[2]) if len(node.input) > 2 else None
    if scales is None or is_external(scales):
        return False
    values = numpy_helper.to_array(scales).reshape(-1)
    rank = len(sizes[0])
    named = next((each.ints for each in node.attribute if each.name == "axes"), range(rank))
    return len(values) == len(named) and all(
        np.float32(sizes[1][axis % rank] / sizes[0][axis % rank]) == scale
        for axis, scale in zip(named, values, strict=True)
    )
