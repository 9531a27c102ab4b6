"""com.microsoft.MatMulNBits, whose weights are packed in blocks of rows: columns or rows cut."""

from __future__ import annotations

from dask_onnx.analysis.axes.dependence import FREE, Dependence, Kind
from dask_onnx.analysis.axes.view import NodeView
from dask_onnx.sharding.node_cuts import Step, stop
from dask_onnx.sharding.shard_layout import Layout

_WEIGHT, _SCALES, _ZEROS, _INDICES, _BIAS = 1, 2, 3, 4, 5


def is_packed(v: NodeView) -> bool:
    """Whether a node is a product with weights of a few bits."""
    return v.proto.domain == "com.microsoft" and v.op == "MatMulNBits"


def packed_columns(v: NodeView, outer: int) -> Step:
    """Return the step of a product whose columns are cut; they are the first axis of all inputs."""
    columns = v.attr("N")
    if columns % (outer * v.positions):
        name = v.proto.input[_WEIGHT]
        return stop(Kind.FACTORED, f"{columns} columns of {name!r} are not {v.positions} shards")
    cuts = {}
    for index in (_WEIGHT, _SCALES, _ZEROS, _BIAS):
        if v.has(index):
            size = v.size(index, 0)
            if size is None or size % columns:
                return stop(Kind.OPAQUE, f"the shape of {v.proto.input[index]!r} is unknown")
            cuts[index] = Layout(0, outer, size // (outer * v.positions))
    rank = len(v.out_shape() or (0, 0))
    result = Dependence(Kind.INDEPENDENT, rank - 1, outer, columns // (outer * v.positions))
    return Step("through", v.all(result), cuts, attributes={"N": columns // v.positions})


def packed_rows(v: NodeView) -> Step:
    """Return the step of a product whose data are cut along what is summed over."""
    dep, block, bits = v.dep(0), v.attr("block_size"), v.attr("bits", 4)
    rows, blocks = v.attr("K"), v.size(_WEIGHT, 1)
    if blocks is None or blocks * block != rows or dep.inner % block or v.has(_INDICES):
        return stop(
            Kind.CONTRACTED,
            f"shards of {dep.inner} rows end inside blocks of {block} of its weights",
        )
    own = dep.inner // block
    cuts = {_WEIGHT: Layout(1, dep.outer, own)}
    scales = _along_blocks(v, _SCALES, dep.outer, own)
    if scales is not None:
        cuts[_SCALES] = scales
    if v.has(_ZEROS):
        is_whole_bytes = not own * bits % 8 and v.size(_ZEROS, -1) != v.size(_SCALES, -1)
        zeros = _along_blocks(v, _ZEROS, dep.outer, own * bits // 8 if is_whole_bytes else own)
        if zeros is not None:
            cuts[_ZEROS] = zeros
    for index in (_SCALES, _ZEROS):
        if v.has(index) and index not in cuts:
            return stop(Kind.CONTRACTED, f"{v.proto.input[index]!r} is not cut into whole bytes")
    once = frozenset((_BIAS,)) if v.has(_BIAS) else frozenset()
    return Step("sum", v.all(FREE), cuts, once, {"K": rows // v.positions})


def _along_blocks(v: NodeView, index: int, outer: int, inner: int) -> Layout | None:
    """The cut of scales or zero points, (columns, blocks) or one after the other."""
    shape, columns = v.shape(index), v.attr("N")
    if shape is None or None in shape:
        return None
    of_column = outer * v.positions * inner
    if len(shape) == 2 and shape[1] == of_column:
        return Layout(1, outer, inner)
    if len(shape) == 1 and shape[0] == columns * of_column:
        return Layout(0, columns * outer, inner)
    return None
