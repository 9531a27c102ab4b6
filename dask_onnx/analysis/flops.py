"""Operations of nodes, by the shapes of what they read and write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import onnx

from dask_onnx.analysis.graph import NodeFacts
from dask_onnx.specs import TensorSpec

Specs = Mapping[str, TensorSpec]


def elements(spec: TensorSpec | None) -> int:
    """Of a value; an open dimension counts as 1, an unknown value as 0."""
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


def _first_output(node: NodeFacts, specs: Specs) -> int:
    return elements(specs.get(node.outputs[0])) if node.outputs else 0


def flops_of(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    """Floating-point (or integer) operations; a multiplication with addition counts as two. What
    the bodies of a node compute is not in it."""
    rule = _RULES.get(node.op_type)
    if rule is not None:
        return rule(proto, node, specs)
    if node.op_type in _MOVES_ONLY:
        return 0
    per_element = _PER_OUTPUT_ELEMENT.get(node.op_type, 1)
    if node.op_type.startswith(("Reduce", "Arg")):
        return sum(elements(specs.get(name)) for name in node.inputs[:1])
    return per_element * sum(elements(specs.get(name)) for name in node.outputs)


def _convolution(weight_index: int) -> Callable[[onnx.NodeProto, NodeFacts, Specs], int]:
    def rule(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
        # One multiply-add for each output element and each weight of its output channel.
        weight = _dims(specs, node.inputs, weight_index)
        out = _first_output(node, specs)
        return 2 * out * math.prod(weight[1:])

    return rule


def _transposed_convolution(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    weight = _dims(specs, node.inputs, 1)
    return 2 * math.prod(_dims(specs, node.inputs, 0)) * math.prod(weight[1:])


def _matmul(right_index: int) -> Callable[[onnx.NodeProto, NodeFacts, Specs], int]:
    def rule(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
        left, right = _dims(specs, node.inputs, 0), _dims(specs, node.inputs, right_index)
        if not left:
            return 0
        transposed = {a.name for a in proto.attribute if a.name in ("transA", "transB") and a.i}
        shared = left[-2 if "transA" in transposed and len(left) > 1 else -1]
        # ONNX cannot infer what operators of other domains give.
        columns = right[-2 if "transB" in transposed else -1] if len(right) > 1 else 1
        out = _first_output(node, specs) or math.prod(left) // max(shared, 1) * columns
        return 2 * shared * out

    return rule


def _recurrent(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    # W is (directions, gates * hidden, input), R (directions, gates * hidden, hidden).
    steps = math.prod(_dims(specs, node.inputs, 0)[:2])
    return 2 * steps * sum(math.prod(_dims(specs, node.inputs, i)) for i in (1, 2))


def _window(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    kernel = [a.ints for a in proto.attribute if a.name == "kernel_shape"]
    out = _first_output(node, specs)
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


def _attention(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    """Scores of each query with each key, and the values weighed by them."""
    if node.domain == "com.microsoft":
        return _packed_attention(proto, node, specs)
    return _scores(4)(proto, node, specs)


def _packed_attention(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    # x (batch, tokens, in), weights (in, query + key + value)
    x, weight = _dims(specs, node.inputs, 0), _dims(specs, node.inputs, 1)
    if len(x) != 3 or len(weight) != 2:
        return 0
    projections = 2 * math.prod(x) * weight[1]
    out = _first_output(node, specs) or math.prod(x[:2]) * weight[1] // 3
    return projections + 4 * x[1] * out


def _scores(past_index: int) -> Callable[[onnx.NodeProto, NodeFacts, Specs], int]:
    def rule(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
        # The second axis from the end are tokens, with heads apart (4 axes) or side by side (3).
        query, key = _dims(specs, node.inputs, 0), _dims(specs, node.inputs, 1)
        past = _dims(specs, node.inputs, past_index)
        keys = (key or query)[-2:][0] + (past[-2] if len(past) > 1 else 0) if query else 0
        size = math.prod(query)
        return 2 * keys * (size + (_first_output(node, specs) or size))

    return rule


def _packed_matmul(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    columns = next((a.i for a in proto.attribute if a.name == "N"), 0)
    return 2 * math.prod(_dims(specs, node.inputs, 0) or [0]) * columns


def _trees(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
    """Comparisons on the way to a leaf of each tree, as if trees were balanced.

    Lengths of the lists alone are looked at: a forest has millions of nodes.
    """
    lists = {a.name: a.ints for a in proto.attribute}
    if node.op_type == "TreeEnsemble":
        trees = len(lists.get("tree_roots", ()))
        leaves = len(lists.get("leaf_targetids", ()))
    else:
        ids = lists.get("nodes_treeids", ())
        trees = ids[-1] + 1 if ids else 0  # as exporters write them, one tree after the other
        leaves = (len(ids) + trees) // 2  # of binary trees
    if trees <= 0 or leaves < trees:
        return 0
    rows = _dims(specs, node.inputs, 0)[:1] or [1]
    return math.ceil(rows[0] * trees * math.log2(leaves / trees))


def _linear(vectors: str) -> Callable[[onnx.NodeProto, NodeFacts, Specs], int]:
    def rule(proto: onnx.NodeProto, node: NodeFacts, specs: Specs) -> int:
        held = next((len(a.floats) for a in proto.attribute if a.name == vectors), 0)
        rows = _dims(specs, node.inputs, 0)[:1] or [1]
        return 2 * rows[0] * held

    return rule


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
    "DeformConv": _convolution(1),
    "Attention": _attention,
    "TreeEnsemble": _trees,
    "TreeEnsembleClassifier": _trees,
    "TreeEnsembleRegressor": _trees,
    "LinearClassifier": _linear("coefficients"),
    "LinearRegressor": _linear("coefficients"),
    "SVMClassifier": _linear("support_vectors"),
    "SVMRegressor": _linear("support_vectors"),
    # ONNX Runtime's own, as its optimiser and its exporters write them.
    "FusedConv": _convolution(1),
    "FusedMatMul": _matmul(1),
    "FusedGemm": _matmul(1),
    "QGemm": _matmul(3),
    "DynamicQuantizeMatMul": _matmul(1),
    "MatMulIntegerToFloat": _matmul(1),
    "MatMulNBits": _packed_matmul,
    "QAttention": _packed_attention,
    "MultiHeadAttention": _scores(6),
    "GroupQueryAttention": _scores(3),
}
WEIGHTY = frozenset(_RULES)
"""Operators that do more than touch each element a few times."""

TREES = frozenset(("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor"))
CONVOLUTIONS = frozenset(
    ("Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "DeformConv", "FusedConv")
)
_MOVES_ONLY = frozenset(
    (
        "Cast Concat Constant ConstantOfShape DepthToSpace Expand EyeLike Flatten Gather "
        "GatherElements GatherND Identity If Loop Pad Reshape Scan ScatterElements ScatterND Shape "
        "Size Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze Where"
    ).split()
)
_PER_OUTPUT_ELEMENT = {
    "BatchNormalization": 2,
    "InstanceNormalization": 8,
    "LayerNormalization": 8,
    "GroupNormalization": 8,
    "RMSNormalization": 6,
    "SimplifiedLayerNormalization": 6,
    "SkipLayerNormalization": 9,
    "SkipSimplifiedLayerNormalization": 7,
    "RotaryEmbedding": 3,
    "GridSample": 11,
    "Softmax": 5,
    "LogSoftmax": 5,
    "Sigmoid": 4,
    "Tanh": 6,
    "Erf": 8,
    "Gelu": 10,
    "BiasGelu": 11,
    "FastGelu": 10,
    "QuickGelu": 6,
    "Exp": 4,
    "Log": 4,
    "HardSwish": 4,
    "Resize": 7,
    "Upsample": 7,
}
"""Operations for one output element: counts of adds, multiplies and one step of a polynomial each;
what is not listed counts as one."""
