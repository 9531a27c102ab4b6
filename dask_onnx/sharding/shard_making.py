"""Operators that make positions out of shapes (constants, broadcasts, triangles), on a shard."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.shard_operands import LocalOperand, OperandNode


@dataclass(frozen=True, slots=True)
class Made:
    """How a node makes a slice of its first output."""

    takes: tuple[Layout | None, ...]
    """For each input the slice that it needs; None for the whole."""
    operands: tuple[LocalOperand, ...]


def made_of_shapes(node: OperandNode) -> Made | None:
    """Return how a node makes the slice of its first output that ``node.gives`` asks for.

    None where an operator does so in no way of its own, other than by its rule of the algebra of
    axes.
    """
    rule = _MADE.get(node.proto.op_type)
    layout = node.gives[0]
    if rule is None or layout is None or layout.blocks != 1 or node.proto.domain:
        return None
    return rule(node, layout)


def _constant_of_shape(node: OperandNode, layout: Layout) -> Made | None:
    operand = _local_shape(node, layout, 0)
    return None if operand is None else Made((None,), (operand,))


def _expand(node: OperandNode, layout: Layout) -> Made | None:
    """Only along axes that the input is repeated on."""
    before, after = node.shape(node.proto.input[0]), node.shape(node.proto.output[0])
    own = layout.axis - len(after) + len(before)
    operand = _local_shape(node, layout, 1)
    if operand is None or (own >= 0 and before[own] != 1):
        return None
    return Made((None, None), (operand,))


def _local_shape(node: OperandNode, layout: Layout, index: int) -> LocalOperand | None:
    shape = node.shape(node.proto.output[0])
    if not shape or None in shape:
        return None
    return LocalOperand(index, np.array(shape, np.int64), np.arange(len(shape)) == layout.axis)


def _trilu(node: OperandNode, layout: Layout) -> Made | None:
    """The diagonal of a shard of rows lies as much further right as there are rows in front."""
    rank = len(node.shape(node.proto.output[0]))
    if layout.axis < rank - 2:
        return None
    is_given = len(node.proto.input) > 1 and bool(node.proto.input[1])
    diagonal = node.operand(1) if is_given else np.array(0, np.int64)
    if diagonal is None:
        return None
    shift = 1 if layout.axis == rank - 2 else -1
    operand = LocalOperand(1, diagonal, np.zeros(diagonal.shape, bool), shift)
    return Made((layout, *(None,) * (len(node.proto.input) - 1)), (operand,))


_MADE: Mapping[str, Callable[[OperandNode, Layout], Made | None]] = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Trilu": _trilu,
}
