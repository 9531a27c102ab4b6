"""Slices of values that operators make from shapes alone: constants, broadcasts, triangles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dask_onnx.sharding.shard_layout import Layout
from dask_onnx.sharding.shard_operands import LocalOperand, OperandNode


@dataclass(frozen=True, slots=True)
class SliceRecipe:
    """Inputs with which a node makes a slice of its first output."""

    input_layouts: tuple[Layout | None, ...]
    """Layout of the slice of each input; None for the whole input."""
    operands: tuple[LocalOperand, ...]
    """Inputs to be replaced by those of the shard."""


def slice_recipe(node: OperandNode) -> SliceRecipe | None:
    """Return the inputs with which a node makes the requested slice of its first output.

    Returns None for operators that have no such special case; their rule of the axis analysis
    applies.
    """
    rule = _RECIPES.get(node.proto.op_type)
    layout = node.output_layouts[0]
    if rule is None or layout is None or layout.blocks != 1 or node.proto.domain:
        return None
    return rule(node, layout)


def _constant_of_shape(node: OperandNode, layout: Layout) -> SliceRecipe | None:
    operand = _local_shape(node, layout, 0)
    return None if operand is None else SliceRecipe((None,), (operand,))


def _expand(node: OperandNode, layout: Layout) -> SliceRecipe | None:
    """Return the recipe for a slice along an axis on which the input is repeated."""
    before, after = node.shape(node.proto.input[0]), node.shape(node.proto.output[0])
    input_axis = layout.axis - len(after) + len(before)
    operand = _local_shape(node, layout, 1)
    if operand is None or (input_axis >= 0 and before[input_axis] != 1):
        return None
    return SliceRecipe((None, None), (operand,))


def _local_shape(node: OperandNode, layout: Layout, index: int) -> LocalOperand | None:
    """Return the operand that holds the output's shape on a shard."""
    shape = node.shape(node.proto.output[0])
    if not shape or None in shape:
        return None
    return LocalOperand(index, np.array(shape, np.int64), np.arange(len(shape)) == layout.axis)


def _trilu(node: OperandNode, layout: Layout) -> SliceRecipe | None:
    """Return the recipe for a slice of a triangle.

    For a shard of rows the diagonal moves right by the number of rows before it; for columns, left.
    """
    rank = len(node.shape(node.proto.output[0]))
    if layout.axis < rank - 2:
        return None
    is_given = len(node.proto.input) > 1 and bool(node.proto.input[1])
    diagonal = node.operand(1) if is_given else np.array(0, np.int64)
    if diagonal is None:
        return None
    shift = 1 if layout.axis == rank - 2 else -1
    operand = LocalOperand(1, diagonal, np.zeros(diagonal.shape, bool), shift)
    return SliceRecipe((layout, *(None,) * (len(node.proto.input) - 1)), (operand,))


_RECIPES: Mapping[str, Callable[[OperandNode, Layout], SliceRecipe | None]] = {
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Trilu": _trilu,
}
