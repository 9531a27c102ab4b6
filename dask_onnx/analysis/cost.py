"""What nodes cost: floating-point operations, bytes of parameters and of activations, seconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.specs import Kernel, TensorSpec

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Cost of one node for one run."""

    flops: int
    """Floating-point (or integer) operations; a multiplication with addition counts as two."""
    parameter_bytes: int
    """Bytes of the initializers that the node reads, its subgraph bodies included."""
    activation_bytes: int
    """Bytes of the values that it reads and writes, without initializers."""
    conv_flops: int = 0
    """Of `flops`, those of convolutions, whose kernels reach another speed."""

    def __add__(self, other: NodeCost) -> NodeCost:
        return NodeCost(
            self.flops + other.flops,
            self.parameter_bytes + other.parameter_bytes,
            self.activation_bytes + other.activation_bytes,
            self.conv_flops + other.conv_flops,
        )


@dataclass(frozen=True, slots=True)
class CostTable:
    """What turns a NodeCost into seconds. The defaults are one core of a common server CPU."""

    flops_per_second: float = 30e9
    conv_flops_per_second: float = 30e9
    bytes_per_second: float = 8e9
    seconds_per_node: float = 4e-6
    """Dispatch of one operator."""

    python_slowdown: float = 20.0
    """How much longer than ONNX Runtime kernels in Python take: numpy where it has the operation,
    loops of Python where it has not."""
    python_seconds_per_node: float = 30e-6
    seconds_per_task: float = 3e-3
    """What a worker spends on a task besides its work: messages, keys, bookkeeping."""
    seconds_per_hop: float = 6e-3
    """From the end of a task to the start of one that needs it, in another process."""
    link_bytes_per_second: float = 800e6
    """Between processes of one host."""

    def faster(self, factor: float) -> CostTable:
        """The same for a CPU that is so much faster."""
        return replace(
            self,
            flops_per_second=self.flops_per_second * factor,
            conv_flops_per_second=self.conv_flops_per_second * factor,
            bytes_per_second=self.bytes_per_second * factor,
        )

    def hop_seconds(self, size: float) -> float:
        """What a stage spends on receiving `size` bytes: time in which it computes nothing."""
        return self.seconds_per_task + size / self.link_bytes_per_second

    def seconds(self, cost: NodeCost, kernel: Kernel = "onnxruntime") -> float:
        """A roofline: a node is bound by arithmetic or by memory, whichever takes longer."""
        moved = cost.activation_bytes + cost.parameter_bytes
        arithmetic = (cost.flops - cost.conv_flops) / self.flops_per_second
        arithmetic += cost.conv_flops / self.conv_flops_per_second
        work = max(arithmetic, moved / self.bytes_per_second)
        if kernel == "onnxruntime":
            return self.seconds_per_node + work
        return self.python_seconds_per_node + self.python_slowdown * work


def value_bytes(spec: TensorSpec | None) -> int:
    """Bytes of a value; an open dimension counts as 1, an unknown value as 0."""
    if spec is None or spec.shape is None or spec.dtype is None:
        return 0
    return _elements(spec) * (spec.dtype.itemsize or 1)


def node_costs(facts: GraphFacts, specs: Specs) -> list[NodeCost]:
    """The cost of every node, in the order of `facts.nodes`."""
    sizes = initializer_bytes(facts)
    return [_node_cost(facts, node, specs, sizes) for node in facts.nodes]


def initializer_bytes(facts: GraphFacts) -> dict[str, int]:
    """Bytes of each weight of the main graph."""
    return _initializer_bytes(facts.proto.graph)


def _node_cost(
    facts: GraphFacts, node: NodeFacts, specs: Specs, initializers: Mapping[str, int]
) -> NodeCost:
    proto = facts.proto.graph.node[node.index]
    reads = set(node.reads)
    parameters = sum(initializers[name] for name in reads if name in initializers)
    parameters += sum(
        sum(_initializer_bytes(body).values())
        for attribute in proto.attribute
        for body in ([attribute.g] if attribute.HasField("g") else [])
    )
    activations = sum(value_bytes(specs.get(n)) for n in reads if n not in initializers)
    activations += sum(value_bytes(specs.get(name)) for name in node.outputs)
    flops = _flops(proto, node, specs)
    is_conv = node.op_type in _CONVOLUTIONS
    return NodeCost(flops, parameters, activations, flops if is_conv else 0)


def _initializer_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    sizes = {}
    for tensor in graph.initializer:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        sizes[tensor.name] = math.prod(tensor.dims) * max(dtype.itemsize, 1)
    return sizes


def _elements(spec: TensorSpec | None) -> int:
    if spec is None or spec.shape is None:
        return 0
    return math.prod(dim if isinstance(dim, int) else 1 for dim in spec.shape)


def _dims(specs: Specs, names: Sequence[str], index: int) -> list[int]:
    """Sizes of the value at `index`, open ones as 1; [] if it is missing or unknown."""
    if index >= len(names):
        return []
    spec = specs.get(names[index])
    if spec is None or spec.shape is None:
        return []
    return [dim if isinstance(dim, int) else 1 for dim in spec.shape]


def _flops(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return rule(proto, node, specs)
    if node.op_type in _MOVES_ONLY:
        return 0
    per_element = _PER_OUTPUT_ELEMENT.get(node.op_type, 1)
    if node.op_type.startswith(("Reduce", "Arg")):
        return sum(_elements(specs.get(name)) for name in node.inputs[:1])
    return per_element * sum(_elements(specs.get(name)) for name in node.outputs)


def _convolution(weight_index: int) -> Callable[[onnx.NodeProto, NodeFacts, Specs], int]:
    def rule(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
        # One multiply-add for each output element and each weight of its output channel.
        weight = _dims(specs, node.inputs, weight_index)
        out = sum(_elements(specs.get(name)) for name in node.outputs[:1])
        return 2 * out * math.prod(weight[1:])

    return rule


def _transposed_convolution(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    weight = _dims(specs, node.inputs, 1)
    return 2 * math.prod(_dims(specs, node.inputs, 0)) * math.prod(weight[1:])


def _matmul(right_index: int) -> Callable[[onnx.NodeProto, NodeFacts, Specs], int]:
    def rule(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
        left = _dims(specs, node.inputs, 0)
        transposed = any(a.name == "transA" and a.i for a in proto.attribute)
        shared = (left[0] if transposed else left[-1]) if left else 0
        return 2 * shared * sum(_elements(specs.get(name)) for name in node.outputs[:1])

    return rule


def _recurrent(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    # W is (directions, gates * hidden, input), R (directions, gates * hidden, hidden).
    steps = math.prod(_dims(specs, node.inputs, 0)[:2])
    return 2 * steps * sum(math.prod(_dims(specs, node.inputs, i)) for i in (1, 2))


def _window(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    kernel = [a.ints for a in proto.attribute if a.name == "kernel_shape"]
    out = sum(_elements(specs.get(name)) for name in node.outputs[:1])
    return out * (math.prod(kernel[0]) if kernel else 1)


def _whole_input(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    return math.prod(_dims(specs, node.inputs, 0)) if node.inputs else 0


def _einsum(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    equation = next((a.s.decode() for a in proto.attribute if a.name == "equation"), "")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        for letter, size in zip(term, _dims(specs, node.inputs, index), strict=False):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return 2 * math.prod(sizes.values())


_RULES: dict[str, Callable[[onnx.NodeProto, NodeFacts, Specs], int]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    "MatMul": _matmul(1),
    "MatMulInteger": _matmul(1),
    "QLinearMatMul": _matmul(3),
    "Gemm": _matmul(1),
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
    "MaxPool": _window,
    "AveragePool": _window,
    "GlobalAveragePool": _whole_input,
    "GlobalMaxPool": _whole_input,
    "Einsum": _einsum,
}

_CONVOLUTIONS = frozenset(("Conv", "ConvInteger", "QLinearConv", "ConvTranspose"))
_MOVES_ONLY = frozenset(
    (
        "Cast Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather "
        "GatherElements GatherND Identity Pad Reshape ScatterElements ScatterND Shape "
        "Size Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Where"
    ).split()
)
_PER_OUTPUT_ELEMENT = {
    "BatchNormalization": 2,
    "InstanceNormalization": 8,
    "LayerNormalization": 8,
    "GroupNormalization": 8,
    "Softmax": 5,
    "LogSoftmax": 5,
    "Sigmoid": 4,
    "Tanh": 6,
    "Erf": 8,
    "Gelu": 10,
    "Exp": 4,
    "Log": 4,
    "HardSwish": 4,
    "Resize": 7,
    "Upsample": 7,
}
"""Operations for one output element: counts of adds, multiplies and one step of a polynomial each;
what is not listed counts as one."""
