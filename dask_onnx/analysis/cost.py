"""Costs of nodes: operations, bytes of parameters and activations, and predicted seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import onnx

from dask_onnx.analysis.bodies import body_graphs, trip_count
from dask_onnx.analysis.flops import CONVOLUTIONS, TREES, WEIGHTY, flops_of
from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.analysis.known_constants import scalar_constant
from dask_onnx.analysis.operands import Specs, elements
from dask_onnx.core.specs import Kernel, TensorSpec
from dask_onnx.modelio.operator_names import public_op_type, standard_op_type
from dask_onnx.modelio.weights import subgraphs_of, with_bodies


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Cost of one node for one run."""

    flops: int
    """Floating-point (or integer) operations; a multiply-add counts as two."""
    parameter_bytes: int
    """Bytes of the initializers that the node reads, those in its bodies included."""
    activation_bytes: int
    """Bytes of the values that the node reads and writes, without initializers."""
    conv_flops: int = 0
    """Operations of convolutions, part of `flops`: their kernels reach another speed."""
    tree_steps: int = 0
    """Comparisons in decision trees, part of `flops`: each waits for the one before."""
    body_bytes: int = 0
    """Bytes that the node's bodies read and write, added up over all runs; not all live at once."""
    own_bytes: int = 0
    """Bytes of weights inside the node itself: in its bodies, and in the attributes of trees
    and linear models, of which one run reads only a part."""

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
        """Bytes read and written, those of bodies included."""
        return self.parameter_bytes + self.activation_bytes + self.body_bytes

    def with_body(self, body: NodeCost, runs: int) -> NodeCost:
        """Return the cost of a node with a body that runs `runs` times."""
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
    """Speeds that turn a NodeCost into seconds.

    The defaults are those of one core of a common server CPU.
    """

    flops_per_second: float = 30e9
    """Operations per second, convolutions and tree steps apart."""
    conv_flops_per_second: float = 30e9
    """Operations per second of convolutions."""
    bytes_per_second: float = 8e9
    """Memory bandwidth."""
    seconds_per_tree_step: float = 5e-9
    """Seconds of one comparison on the way down a decision tree."""
    seconds_per_node: float = 4e-6
    """Overhead of ONNX Runtime for one operator."""
    python_slowdown: float = 20.0
    """Factor by which a kernel in Python is slower than ONNX Runtime's: numpy where it has the
    operation, Python loops where it has not."""
    python_seconds_per_node: float = 30e-6
    """Overhead of Python for one operator."""
    seconds_per_task: float = 3e-3
    """Overhead of a worker for one task: messages, keys, bookkeeping."""
    seconds_per_request: float = 30e-3
    """Overhead of one request to a cluster: sending the graph, fetching the result."""
    seconds_per_hop: float = 6e-3
    """Seconds from the end of a task to the start of a dependent task in another process."""
    link_bytes_per_second: float = 800e6
    """Bandwidth between processes of one host."""

    def faster(self, factor: float) -> CostTable:
        """Return the table of a CPU that is faster by `factor`; overheads stay."""
        return replace(
            self,
            flops_per_second=self.flops_per_second * factor,
            conv_flops_per_second=self.conv_flops_per_second * factor,
            bytes_per_second=self.bytes_per_second * factor,
            seconds_per_tree_step=self.seconds_per_tree_step / factor,
        )

    def hop_seconds(self, size: float) -> float:
        """Return the seconds in which a stage receives `size` bytes and computes nothing."""
        return self.seconds_per_task + size / self.link_bytes_per_second

    def seconds(self, cost: NodeCost, kernel: Kernel = "onnxruntime") -> float:
        """Return the predicted seconds of one node, by the roofline model.

        A node takes as long as its arithmetic or its memory traffic, whichever is longer
        (Williams, Waterman and Patterson, "Roofline", 2009).
        """
        rest = cost.flops - cost.conv_flops - cost.tree_steps
        arithmetic = rest / self.flops_per_second
        arithmetic += cost.conv_flops / self.conv_flops_per_second
        arithmetic += cost.tree_steps * self.seconds_per_tree_step
        work = max(arithmetic, cost.moved_bytes / self.bytes_per_second)
        if kernel == "onnxruntime":
            return self.seconds_per_node + work
        return self.python_seconds_per_node + self.python_slowdown * work


MAX_COUNTED = 2**53
"""Largest number of bytes of a value, and of FLOPs of a node, that costs tell apart: no computer
has more, and floating-point numbers hold it exactly."""


def value_bytes(spec: TensorSpec | None) -> int:
    """Return the bytes of a value, at most `MAX_COUNTED`.

    An open dimension counts as 1, an unknown value as 0.
    """
    if spec is None or spec.shape is None or spec.dtype is None:
        return 0
    return min(elements(spec) * (spec.dtype.itemsize or 1), MAX_COUNTED)


def node_costs(facts: GraphFacts, specs: Specs) -> list[NodeCost]:
    """Return the cost of every node, in the order of `facts.nodes`."""
    parameters, sizes = initializer_bytes(facts), _Sizes(specs)
    return [_node_cost(facts, node, specs, parameters, sizes) for node in facts.nodes]


class _Sizes(dict[str, int]):
    """Bytes of values by name, each computed once however many nodes read it."""

    def __init__(self, specs: Specs) -> None:
        self._specs = specs

    def __missing__(self, name: str) -> int:
        size = self[name] = value_bytes(self._specs.get(name))
        return size


def initializer_bytes(facts: GraphFacts) -> dict[str, int]:
    """Return the bytes of each weight of the main graph, by name."""
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
    flops = min(flops_of(proto, specs, partial(scalar_constant, facts)), MAX_COUNTED)
    op_type = public_op_type(node)
    is_conv, is_tree = op_type in CONVOLUTIONS, op_type in TREES
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
    if not any(public_op_type(inner) in WEIGHTY for inner in with_bodies(proto)):
        return own  # bodies without heavy operators cost too little to be worth inferring
    bodies = [
        sum(node_costs(body, inner), NodeCost(0, 0, 0))
        for body, inner in body_graphs(facts, node, specs)
    ]
    # Either branch of an If may run: the more expensive one counts.
    most_expensive = max(bodies, key=lambda cost: cost.flops, default=NodeCost(0, 0, 0))
    return own.with_body(most_expensive, trip_count(facts, node, specs))


def _initializer_bytes(graph: onnx.GraphProto) -> dict[str, int]:
    tensors = [(tensor.name, tensor) for tensor in graph.initializer]
    # Exporters write weights as Constant nodes too; these are parameters, not activations.
    tensors += [
        (node.output[0], attribute.t)
        for node in graph.node
        if standard_op_type(node) == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    sizes = {}
    for name, tensor in tensors:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        sizes[name] = math.prod(tensor.dims) * max(dtype.itemsize, 1)
    return sizes
