"""Nodes that work across rows: told by their kind, and by the shapes that inference gives for two
numbers of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
from onnx import helper

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.analysis.shapes import Schemas, is_standard
from dask_onnx.specs import Dim, TensorSpec
from dask_onnx.weights import with_bodies

PROBES = (7, 11)
"""Two batch sizes: primes that real dimensions seldom are."""

_SHAPE_READERS = frozenset(["Shape", "Size"])
_ALONG_AXIS = {
    "Softmax": -1,
    "LogSoftmax": -1,
    "Hardmax": -1,
    "TopK": -1,
    "LpNormalization": -1,
    "LayerNormalization": -1,
    "CumSum": None,
    "ReverseSequence": None,
}
"""Operators that keep an axis yet mix along it, with the default of their ``axis`` attribute."""
_RECURRENT = frozenset(["RNN", "GRU", "LSTM", "DynamicQuantizeLSTM"])

_BROADCASTING = frozenset(
    """Add Sub Mul Div Pow Mod Max Min Sum Mean And Or Xor Equal Less LessOrEqual Greater
    GreaterOrEqual BitwiseAnd BitwiseOr BitwiseXor BitShift Where PRelu""".split()
)


class Rows:
    """Compares the shapes that inference gave for two batch sizes."""

    def __init__(self, few: Mapping[str, TensorSpec], many: Mapping[str, TensorSpec]) -> None:
        self._few, self._many = few, many
        # A value may be read by many nodes, each of which asks.
        self._dims: dict[str, list[tuple[Dim, Dim]] | None] = {}
        self._growing: dict[str, list[int]] = {}
        self._from_last: dict[str, tuple[frozenset[int], frozenset[int]]] = {}

    def dims(self, name: str) -> list[tuple[Dim, Dim]] | None:
        """Both sizes of each axis; None where not even the rank is known."""
        if name not in self._dims:
            self._dims[name] = self._find_dims(name)
        return self._dims[name]

    def _find_dims(self, name: str) -> list[tuple[Dim, Dim]] | None:
        few, many = self._few.get(name), self._many.get(name)
        if few is None or many is None or few.shape is None or many.shape is None:
            return None
        if len(few.shape) != len(many.shape):
            return None
        return list(zip(few.shape, many.shape, strict=True))

    def growing(self, name: str) -> list[int]:
        """Axes whose size changes with the batch."""
        if name not in self._growing:
            self._growing[name] = [
                axis
                for axis, (few, many) in enumerate(self.dims(name) or [])
                if isinstance(few, int) and isinstance(many, int) and few != many
            ]
        return self._growing[name]

    def from_last(self, name: str) -> tuple[frozenset[int], frozenset[int]]:
        """Axes, counted from the last: those whose size changes with the batch, and those that have
        another of their own, which is not broadcast."""
        if name not in self._from_last:
            dims = self.dims(name) or []
            self._from_last[name] = (
                frozenset(axis - len(dims) for axis in self.growing(name)),
                frozenset(
                    axis - len(dims)
                    for axis, (few, many) in enumerate(dims)
                    if isinstance(few, int) and few == many and few != 1
                ),
            )
        return self._from_last[name]

    def is_proportional(self, name: str, axis: int) -> bool:
        few, many = (self.dims(name) or [])[axis]
        assert isinstance(few, int) and isinstance(many, int)
        return few * PROBES[1] == many * PROBES[0]

    def is_known(self, name: str) -> bool:
        dims = self.dims(name)
        return dims is not None and all(isinstance(a, int) and isinstance(b, int) for a, b in dims)

    def axis(self, name: str) -> int | None:
        """The axis that carries rows. Where inference fell silent, axis 0 is believed to."""
        growing = self.growing(name)
        if len(growing) == 1:
            few, _ = (self.dims(name) or [])[growing[0]]
            return growing[0] if few == PROBES[0] else None
        if growing:
            return None
        spec, dims = self._few.get(name), self.dims(name)
        if spec is None or spec.dtype is None:
            return None  # a sequence or a map: nothing to cut or join
        if dims is None:
            return 0
        return 0 if dims and not isinstance(dims[0][0], int) else None

    def row_sizes(self, name: str) -> tuple[int | float, ...] | None:
        dims, axis = self.dims(name), self.axis(name)
        if dims is None:
            return None
        return tuple(
            1 if i == axis and few == PROBES[0] else _agreed(few, many)
            for i, (few, many) in enumerate(dims)
        )


def _agreed(few: Dim, many: Dim) -> int | float:
    return few if isinstance(few, int) and few == many else float("nan")


def is_training(node: onnx.NodeProto, op_type: str) -> bool:
    if node.op_type != op_type:
        return False
    if op_type == "Dropout":
        return len(node.input) > 2 and bool(node.input[2])
    return bool(attribute_of(node, "training_mode", 0))


def attribute_of(node: onnx.NodeProto, name: str, default: object) -> object:
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def by_kind(facts: GraphFacts) -> Iterator[str]:
    """Nodes that mix rows whatever their shapes are."""
    for node in facts.nodes:
        for inner in with_bodies(facts.proto.graph.node[node.index]):
            if inner.op_type.startswith("DynamicQuantize") or is_training(
                inner, "BatchNormalization"
            ):
                yield node.name
                break


def mixing(facts: GraphFacts, rows: Rows) -> Iterator[str]:
    """Nodes that, by the shapes of their inputs and outputs, work across rows."""
    for node in facts.nodes:
        if node.op_type in _SHAPE_READERS:
            continue
        if not any(map(rows.growing, node.reads)):
            continue
        if (
            _mixes_along(facts, node, rows)
            or _loses_rows(node, rows)
            or _meets_other_rows(node, rows)
        ):
            yield node.name


def opaque_nodes(
    facts: GraphFacts, rows: Rows, outputs: tuple[str, ...], schemas: Schemas
) -> Iterator[str]:
    """Nodes that get rows, and of whose outputs it cannot be told whether they still have them,
    or what an operator that only the caller knows does with them."""
    carriers = {name for name in facts.inputs if rows.growing(name)}
    for node in facts.nodes:
        if node.op_type in _SHAPE_READERS or carriers.isdisjoint(node.reads):
            continue
        if not is_standard(node.domain) and (node.domain, node.op_type) not in schemas:
            yield node.name
            continue
        for name in node.outputs:
            if rows.growing(name):
                carriers.add(name)
            elif not rows.is_known(name) and (name in facts.consumers or name in outputs):
                yield node.name
                break


def _meets_other_rows(node: NodeFacts, rows: Rows) -> bool:
    """Rows are combined, one by one, with something that has a size of its own on that axis."""
    if node.op_type not in _BROADCASTING:
        return False
    growing, kept = zip(*map(rows.from_last, node.inputs), strict=True)
    return not frozenset().union(*growing).isdisjoint(frozenset().union(*kept))


def _loses_rows(node: NodeFacts, rows: Rows) -> bool:
    """No output has rows any more, or one has them twice, or more of them than came in."""
    known = [name for name in node.outputs if rows.is_known(name)]
    if known and len(known) == len(node.outputs) and not any(rows.growing(n) for n in known):
        return True
    return any(
        len(rows.growing(name)) > 1
        or any(not rows.is_proportional(name, axis) for axis in rows.growing(name))
        for name in known
    )


def _mixes_along(facts: GraphFacts, node: NodeFacts, rows: Rows) -> bool:
    if not node.inputs or not node.inputs[0]:
        return False
    growing, dims = rows.growing(node.inputs[0]), rows.dims(node.inputs[0])
    if not growing or dims is None:
        return False
    proto = facts.proto.graph.node[node.index]
    if node.op_type in _RECURRENT:
        sequence_axis = 1 if attribute_of(proto, "layout", 0) else 0
        return sequence_axis in growing
    if node.op_type in _ALONG_AXIS:
        axis = attribute_of(proto, "axis", _ALONG_AXIS[node.op_type])
        if node.op_type == "CumSum":
            axis = _constant_axis(facts, node.inputs[1])
        if node.op_type == "ReverseSequence":
            axis = attribute_of(proto, "time_axis", 0)
        return isinstance(axis, int) and axis % len(dims) in growing
    if node.op_type == "MeanVarianceNormalization":
        mixed = attribute_of(proto, "axes", [0, 2, 3])
        assert isinstance(mixed, list | tuple)
        return any(axis % len(dims) in growing for axis in mixed)
    return False


def _constant_axis(facts: GraphFacts, name: str) -> int | None:
    for tensor in facts.proto.graph.initializer:
        if tensor.name == name:
            return int(onnx.numpy_helper.to_array(tensor).reshape(-1)[0])
    return None
