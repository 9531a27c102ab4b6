"""What nodes cost: floating-point operations, bytes of parameters and of activations, seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import onnx

from dask_onnx.analysis.bodies import body_graphs, scalar_constant, trip_count
from dask_onnx.analysis.flops import CONVOLUTIONS, TREES, WEIGHTY, flops_of
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.analysis.operands import Specs, elements
from dask_onnx.core.specs import Kernel, TensorSpec
from dask_onnx.modelio.weights import subgraphs_of, with_bodies


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
    tree_steps: int = 0
    """Of `flops`, the comparisons on the way down trees, each of which waits for the one before."""
    body_bytes: int = 0
    """Bytes of the values that its bodies read and write, run by run; few are there at once."""
    own_bytes: int = 0
    """Bytes of weights that the node carries itself: in its bodies, and in the attributes of trees
    and linear models, of which a run reads a part."""

    def __add__(self, other: NodeCost) -> NodeCost:
        return NodeCost(
            self.flops + other.flops,
            self.parameter_bytes + other.parameter_bytes,
            self.activation_bytes + other.activation_bytes,
            self.conv_flops + other.conv_flops,
            self.tree_steps + other.tree_steps,
            self.body_bytes + other.body_bytes,
            self.own_bytes + other.own_bytes,
        )

    @property
    def moved_bytes(self) -> int:
        """Everything that is read and written."""
        return self.parameter_bytes + self.activation_bytes + self.body_bytes

    def with_body(self, body: NodeCost, runs: int) -> NodeCost:
        """Of a node whose body runs so often."""
        return NodeCost(
            self.flops + body.flops * runs,
            self.parameter_bytes,
            self.activation_bytes,
            self.conv_flops + body.conv_flops * runs,
            self.tree_steps + body.tree_steps * runs,
            self.body_bytes + body.moved_bytes * runs,
            self.own_bytes,
        )


@dataclass(frozen=True, slots=True)
class CostTable:
    """What turns a NodeCost into seconds. The defaults are one core of a common server CPU."""

    flops_per_second: float = 30e9
    conv_flops_per_second: float = 30e9
    bytes_per_second: float = 8e9
    seconds_per_tree_step: float = 5e-9
    seconds_per_node: float = 4e-6
    """Dispatch of one operator."""

    python_slowdown: float = 20.0
    """How much longer than ONNX Runtime kernels in Python take: numpy where it has the operation,
    loops of Python where it has not."""
    python_seconds_per_node: float = 30e-6
    seconds_per_task: float = 3e-3
    """What a worker spends on a task besides its work: messages, keys, bookkeeping."""
    seconds_per_request: float = 30e-3
    """What a request to a cluster takes besides its tasks: the graph's way there, the result's way
    back."""
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
            seconds_per_tree_step=self.seconds_per_tree_step / factor,
        )

    def hop_seconds(self, size: float) -> float:
        """What a stage spends on receiving `size` bytes: time in which it computes nothing."""
        return self.seconds_per_task + size / self.link_bytes_per_second

    def seconds(self, cost: NodeCost, kernel: Kernel = "onnxruntime") -> float:
        """A roofline: a node is bound by arithmetic or by memory, whichever takes longer."""
        rest = cost.flops - cost.conv_flops - cost.tree_steps
        arithmetic = rest / self.flops_per_second
        arithmetic += cost.conv_flops / self.conv_flops_per_second
        arithmetic += cost.tree_steps * self.seconds_per_tree_step
        work = max(arithmetic, cost.moved_bytes / self.bytes_per_second)
        if kernel == "onnxruntime":
            return self.seconds_per_node + work
        return self.python_seconds_per_node + self.python_slowdown * work


def value_bytes(spec: TensorSpec | None) -> int:
    """Bytes of a value; an open dimension counts as 1, an unknown value as 0."""
    if spec is None or spec.shape is None or spec.dtype is None:
        return 0
    return elements(spec) * (spec.dtype.itemsize or 1)


def node_costs(facts: GraphFacts, specs: Specs) -> list[NodeCost]:
    """The cost of every node, in the order of `facts.nodes`."""
    parameters, sizes = initializer_bytes(facts), _Sizes(specs)
    return [_node_cost(facts, node, specs, parameters, sizes) for node in facts.nodes]


class _Sizes(dict[str, int]):
    """Bytes of values, each worked out once however many nodes read it."""

    def __init__(self, specs: Specs) -> None:
        self._specs = specs

    def __missing__(self, name: str) -> int:
        size = self[name] = value_bytes(self._specs.get(name))
        return size


def initializer_bytes(facts: GraphFacts) -> dict[str, int]:
    """Bytes of each weight of the main graph."""
    return _initializer_bytes(facts.proto.graph)


def _node_cost(
    facts: GraphFacts,
    node: NodeFacts,
    specs: Specs,
    initializers: Mapping[str, int],
    sizes: Mapping[str, int],
) -> NodeCost:
    proto = facts.proto.graph.node[node.index]
    parameters, activations = 0, sum(map(sizes.__getitem__, node.outputs))
    for name in set(node.reads):
        if name in initializers:
            parameters += initializers[name]
        else:
            activations += sizes[name]
    flops = flops_of(proto, specs, partial(scalar_constant, facts))
    is_conv, is_tree = node.op_type in CONVOLUTIONS, node.op_type in TREES
    in_bodies = sum(
        sum(_initializer_bytes(body).values())
        for inner in with_bodies(proto)
        for body in subgraphs_of(inner)
    )
    own = NodeCost(
        flops,
        parameters + in_bodies,
        activations,
        conv_flops=flops if is_conv else 0,
        tree_steps=flops if is_tree else 0,
        own_bytes=in_bodies + (proto.ByteSize() if proto.domain == "ai.onnx.ml" else 0),
    )
    if not any(inner.op_type in WEIGHTY for inner in with_bodies(proto)):
        return own  # a body of shapes and such is not worth the time to look
    bodies = [
        sum(node_costs(body, inner), NodeCost(0, 0, 0))
        for body, inner in body_graphs(facts, node, specs)
    ]
    # Any body of an If may run: the one with more work counts.
    dearest = max(bodies, key=lambda cost: cost.flops, default=NodeCost(0, 0, 0))
    return own.with_body(dearest, trip_count(facts, node, specs))


def _initializer_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    # Weights may be written as nodes too; what reads them does not get them from another node.
    tensors += [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    sizes = {}
    for name, tensor in tensors:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        sizes[name] = math.prod(tensor.dims) * max(dtype.itemsize, 1)
    return sizes
