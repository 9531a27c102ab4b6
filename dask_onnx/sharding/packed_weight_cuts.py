"""Cuts of com.microsoft.MatMulNBits, whose weights are packed in blocks of rows."""

from __future__ import annotations

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.sharding.node_cuts import Step, stop
from dask_onnx.sharding.shard_layout import Layout

_WEIGHT, _SCALES, _ZEROS, _INDICES, _BIAS = 1, 2, 3, 4, 5


def is_packed(view: NodeView) -> bool:
    """Return whether a node is a product with weights of a few bits."""
    return view.proto.domain == "com.microsoft" and view.op == "MatMulNBits"


def packed_columns(view: NodeView, outer: int) -> Step:
    """Return the step of a product cut by columns.

    Columns are the first axis of all its parameters.
    """
    columns = view.attr("N")
    if columns % (outer * view.positions):
        name = view.proto.input[_WEIGHT]
        return stop(
            Kind.FACTORED,
            f"{columns} columns of {name!r} cannot be divided into {view.positions} shards",
        )
    cuts = {}
    for index in (_WEIGHT, _SCALES, _ZEROS, _BIAS):
        if view.has(index):
            size = view.size(index, 0)
            if size is None or size % columns:
                return stop(Kind.OPAQUE, f"the shape of {view.proto.input[index]!r} is unknown")
            cuts[index] = Layout(0, outer, size // (outer * view.positions))
    rank = len(view.out_shape() or (0, 0))
    result = Dependence(Kind.INDEPENDENT, rank - 1, outer, columns // (outer * view.positions))
    return Step("through", view.all(result), cuts, attributes={"N": columns // view.positions})


def packed_rows(view: NodeView) -> Step:
    """Return the step of a product whose data are cut along the axis that is summed over."""
    dep, block, bits = view.dep(0), view.attr("block_size"), view.attr("bits", 4)
    rows, blocks = view.attr("K"), view.size(_WEIGHT, 1)
    if blocks is None or blocks * block != rows or dep.inner % block or view.has(_INDICES):
        return stop(
            Kind.CONTRACTED,
            f"shards of {dep.inner} rows end inside blocks of {block} of its weights",
        )
    blocks_per_shard = dep.inner // block
    cuts = {_WEIGHT: Layout(1, dep.outer, blocks_per_shard)}
    scales = _along_blocks(view, _SCALES, dep.outer, blocks_per_shard)
    if scales is not None:
        cuts[_SCALES] = scales
    if view.has(_ZEROS):
        is_whole_bytes = not blocks_per_shard * bits % 8 and view.size(_ZEROS, -1) != view.size(
            _SCALES, -1
        )
        zeros = _along_blocks(
            view,
            _ZEROS,
            dep.outer,
            blocks_per_shard * bits // 8 if is_whole_bytes else blocks_per_shard,
        )
        if zeros is not None:
            cuts[_ZEROS] = zeros
    for index in (_SCALES, _ZEROS):
        if view.has(index) and index not in cuts:
            return stop(
                Kind.CONTRACTED, f"{view.proto.input[index]!r} cannot be cut into whole bytes"
            )
    first_shard_inputs = frozenset((_BIAS,)) if view.has(_BIAS) else frozenset()
    return Step("sum", view.all(FREE), cuts, first_shard_inputs, {"K": rows // view.positions})


def _along_blocks(view: NodeView, index: int, outer: int, inner: int) -> Layout | None:
    """Return the cut of scales or zero points, with shape (columns, blocks) or flat."""
    shape, columns = view.shape(index), view.attr("N")
    if shape is None or None in shape:
        return None
    of_column = outer * view.positions * inner
    if len(shape) == 2 and shape[1] == of_column:
        return Layout(1, outer, inner)
    if len(shape) == 1 and shape[0] == columns * of_column:
        return Layout(0, columns * outer, inner)
    return None
