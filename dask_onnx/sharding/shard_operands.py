"""Operands that hold sizes or indices (of Reshape, Expand, Slice ...) as a shard needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto, helper

from dask_onnx.analysis.axes.view import DEPENDENT, Known
from dask_onnx.core.specs import TensorSpec
from dask_onnx.sharding.shard_layout import Bounds, Layout

Array = npt.NDArray[Any]
Specs = Mapping[str, TensorSpec]
Constants = Callable[[str], Array | None]
"""Function from the name of a small tensor to its value, if it is known."""

_TO_THE_END = np.iinfo(np.int64).max
"""End of a slice that reaches to the end of any axis."""


@dataclass(frozen=True, slots=True, eq=False)
class LocalOperand:
    """Input of a node whose numbers differ between a shard and the whole."""

    index: int
    """Position among the node's inputs."""
    whole: Array
    """Integers for the unsharded node."""
    is_scaled: Array
    """bool, shape of `whole`: numbers proportional to the number of positions."""
    shift: int = 0
    """Amount added to every number for each position before the shard."""
    is_clipped: bool = False
    """True for indices of positions, which become the nearest ones that the shard has."""

    def of_shard(self, bounds: Bounds, shard: int) -> Array:
        """Return the operand for one shard."""
        size, start = bounds.sizes[shard], bounds.offsets[shard]
        scaled = np.where(self.is_scaled, self.whole // bounds.positions * size, self.whole)
        found = scaled + self.shift * start
        found = np.clip(found, 0, size - 1) if self.is_clipped else found
        return np.array(found, self.whole.dtype)


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """Value that follows from shapes, equal for all shards."""

    array: Array


def marked_operands(
    proto: NodeProto,
    input_layouts: Sequence[Layout | None],
    specs: Specs,
    constants: Constants,
    positions: int,
) -> dict[str, Known]:
    """Return operands with marks by which the node's rule sees that they grow with the shard.

    They do so once `local_operand` has replaced them: ends of slices, and sizes of Resize, along
    the sharded axis.
    """
    layout = input_layouts[0] if input_layouts else None
    if layout is None or proto.domain:
        return {}
    if proto.op_type == "Slice" and len(proto.input) > 2:
        bounds = _slice_bounds(proto, specs, constants)
        if bounds is None:
            return {}
        _, ends, axes = bounds
        size = _shape(specs, proto.input[0])[layout.axis]
        marks, seen = np.zeros(len(ends), np.uint8), ends.copy()
        for place, axis in enumerate(axes):
            if axis == layout.axis and _is_multiple(ends[place], size, positions * layout.inner):
                marks[place], seen[place] = DEPENDENT, min(ends[place], size or 0)
        return {proto.input[2]: Known(seen, marks)}
    if proto.op_type == "Resize" and len(proto.input) > 3 and proto.input[3]:
        sizes = constants(proto.input[3])
        if sizes is None:
            return {}
        marks = np.zeros(len(sizes), np.uint8)
        for place, axis in enumerate(_attribute(proto, "axes") or range(len(sizes))):
            marks[place] = DEPENDENT if axis == layout.axis else 0
        return {proto.input[3]: Known(sizes, marks)}
    return {}


def local_operand(
    proto: NodeProto,
    input_layouts: Sequence[Layout | None],
    output_layouts: Sequence[Layout | None],
    specs: Specs,
    constants: Constants,
    positions: int,
) -> tuple[LocalOperand, ...] | None:
    """Return the operands to replace so that a node returns a shard; None if that is not possible.

    Parameters
    ----------
    input_layouts, output_layouts : sequence of Layout or None
        Layouts of the shard's inputs and outputs; None where a value is whole.
    positions : int
        Size of the sharded axis.
    """
    if proto.domain:
        return ()
    rule = _RULES.get(proto.op_type)
    if rule is None:
        return ()
    return rule(OperandNode(proto, input_layouts, output_layouts, specs, constants, positions))


@dataclass(frozen=True, slots=True)
class OperandNode:
    """Node with the known shapes and constants around it."""

    proto: NodeProto
    input_layouts: Sequence[Layout | None]
    output_layouts: Sequence[Layout | None]
    specs: Specs
    constants: Constants
    positions: int

    def operand(self, index: int) -> Array | None:
        """Return the value of an input; None if it is left out or unknown."""
        if index >= len(self.proto.input) or not self.proto.input[index]:
            return None
        return self.constants(self.proto.input[index])

    def shape(self, name: str) -> tuple[int | None, ...]:
        """Return the sizes of a value; empty if not even the rank is known."""
        return _shape(self.specs, name)


_Found = tuple[LocalOperand, ...] | None


def _target(node: OperandNode) -> _Found:
    """Replace the target shape of Reshape or Expand by the output shape of the shard."""
    layout = node.output_layouts[0]
    shape = _shape(node.specs, node.proto.output[0])
    if layout is None or any(size is None for size in shape):
        return None
    if _is_relative(node, layout):
        return ()
    whole = np.array(shape, np.int64)
    return (LocalOperand(1, whole, np.arange(len(shape)) == layout.axis),)


def _is_relative(node: OperandNode, layout: Layout) -> bool:
    """Return whether a target shape as it is gives the right shape on a shard as well."""
    target = node.operand(1)
    if target is None:
        return False
    if node.proto.op_type == "Expand":
        place = layout.axis - len(_shape(node.specs, node.proto.output[0])) + len(target)
        return place < 0 or int(target[place]) == 1
    source = node.input_layouts[0]
    if source is None or _attribute(node.proto, "allowzero") or layout.axis >= len(target):
        return False
    copies = [i for i, size in enumerate(target) if size == 0]
    same = source.axis == layout.axis and source.blocks == layout.blocks
    if int(target[layout.axis]) == 0:
        return same
    return int(target[layout.axis]) == -1 and source.axis not in copies


def _slice(node: OperandNode) -> _Found:
    """Replace the bounds of a Slice along the sharded axis."""
    layout = node.input_layouts[0]
    if layout is None or len(node.proto.input) < 3:
        return ()
    bounds = _slice_bounds(node.proto, node.specs, node.constants)
    if bounds is None:
        return ()
    starts, ends, axes = bounds
    if layout.axis not in axes:
        return ()
    place = axes.index(layout.axis)
    size = _shape(node.specs, node.proto.input[0])[layout.axis]
    if size is None:
        return None
    start, end = (_clipped(int(bound[place]), size) for bound in (starts, ends))
    is_here = np.arange(len(axes)) == place
    operands = []
    if start:
        operands.append(LocalOperand(1, np.where(is_here, start, starts), is_here))
    if end < size:
        operands.append(LocalOperand(2, np.where(is_here, end, ends), is_here))
    elif int(ends[place]) < _FAR:
        whole = np.where(is_here, _TO_THE_END if ends.dtype == np.int64 else 2**31 - 1, ends)
        operands.append(LocalOperand(2, whole.astype(ends.dtype), np.zeros(len(axes), bool)))
    return tuple(operands)


_FAR = 2**31 - 1
"""Smallest end that ONNX models use for "to the end of the axis"."""


def _split(node: OperandNode) -> _Found:
    """Scale the sizes of a Split along the sharded axis."""
    layout, sizes = node.input_layouts[0], node.operand(1)
    rank = len(_shape(node.specs, node.proto.input[0]))
    if layout is None or (_attribute(node.proto, "axis") or 0) % max(rank, 1) != layout.axis:
        return ()
    if sizes is None:
        # Sizes in an attribute are fixed; without any, all outputs have the same size.
        return None if _attribute(node.proto, "split") else ()
    return (LocalOperand(1, sizes, np.ones(sizes.shape, bool)),)


def _resize(node: OperandNode) -> _Found:
    """Scale the target size of a Resize along the sharded axis."""
    layout, sizes = node.input_layouts[0], node.operand(3)
    if layout is None or sizes is None or not sizes.size:
        return ()
    axes = list(_attribute(node.proto, "axes") or range(len(sizes)))
    return (LocalOperand(3, sizes, np.array([axis == layout.axis for axis in axes])),)


_RULES: Mapping[str, Callable[[OperandNode], _Found]] = {
    "Reshape": _target,
    "Expand": _target,
    "Slice": _slice,
    "Split": _split,
    "Resize": _resize,
}


def _slice_bounds(
    proto: NodeProto, specs: Specs, constants: Constants
) -> tuple[Array, Array, list[int]] | None:
    """Return starts, ends and non-negative axes of a Slice; None where they are unknown."""
    starts, ends = constants(proto.input[1]), constants(proto.input[2])
    if starts is None or ends is None:
        return None
    rank = len(_shape(specs, proto.input[0]))
    if len(proto.input) > 3 and proto.input[3]:
        axes = constants(proto.input[3])
        if axes is None or not rank:
            return None
        return starts, ends, [int(axis) % rank for axis in axes.reshape(-1)]
    return starts, ends, list(range(len(starts)))


def _is_multiple(end: int, size: int | None, block: int) -> bool:
    """Return whether a slice ends at the end of the axis, or at a boundary of whole repetitions."""
    return size is not None and (end >= size or (end > 0 and end % block == 0))


def _clipped(bound: int, size: int) -> int:
    """Return a slice bound as an index between 0 and the size of the axis."""
    return min(max(bound + size if bound < 0 else bound, 0), size)


def _shape(specs: Specs, name: str) -> tuple[int | None, ...]:
    spec = specs.get(name)
    if spec is None or spec.shape is None:
        return ()
    return tuple(size if isinstance(size, int) else None for size in spec.shape)


def _attribute(proto: NodeProto, name: str) -> Any:
    found = next((a for a in proto.attribute if a.name == name), None)
    return None if found is None else helper.get_attribute_value(found)
