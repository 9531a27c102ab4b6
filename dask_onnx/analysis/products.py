"""Operation counts of products with weights: convolutions, matrix products, recurrent layers.

Shapes are those of the operators' schemas in ONNX and in ONNX Runtime (docs/ContribOperators.md).
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import zip_longest

from dask_onnx.analysis.operands import Operands, Rule
from dask_onnx.analysis.pool_sizes import floor_padding


def window_positions(call: Operands, kernel: list[int]) -> int:
    """Return the number of positions of a kernel on the first input, over all spatial axes.

    For outputs whose shape was not inferred: by the formulas of the schemas of Conv and MaxPool,
    and of ONNX Runtime for ``ceil_mode``.
    """
    sizes = call.shape(0)[1:-1] if _has_channels_last(call) else call.shape(0)[2:]
    ones = [1] * len(sizes)
    strides, dilations = call.integers("strides") or ones, call.integers("dilations") or ones
    padding, pads = call.text("auto_pad", "NOTSET"), call.integers("pads")
    if padding.startswith("SAME"):
        return math.prod(-(-size // step) for size, step in zip(sizes, strides, strict=False))
    if padding == "VALID" or len(pads) != 2 * len(sizes):
        pads = [0] * 2 * len(sizes)
    if call.integer("ceil_mode") and len(kernel) == len(strides) == len(dilations) == len(sizes):
        pads = floor_padding(kernel, strides, dilations, pads)
    padded = [size + pads[i] + pads[i + len(sizes)] for i, size in enumerate(sizes)]
    return math.prod(
        max((size - gap * (width - 1) - 1) // step + 1, 1)
        for size, width, step, gap in zip(padded, kernel, strides, dilations, strict=False)
    )


def _has_channels_last(call: Operands) -> bool:
    return call.proto.op_type.startswith("Nhwc") or bool(call.integer("channels_last"))


def _convolution(weight_index: int) -> Rule:
    """Return the count of a convolution whose weights are input `weight_index`.

    One multiply-add for each output element and each weight of its output channel.
    """

    def rule(call: Operands) -> int:
        # Weights have shape (out channels, in channels of a group, kernel).
        weight = call.shape(weight_index)
        if not weight:
            return 0
        out = call.result_size
        out = out or call.dim(0, 0) * weight[0] * window_positions(call, weight[2:])
        return 2 * out * math.prod(weight[1:])

    return rule


def _scattered(weight_index: int) -> Rule:
    """Return the count of a transposed convolution: one multiply-add for each input element and
    each weight of its input channel.

    Weights have shape (in channels, out channels of a group, kernel).
    """
    return lambda call: 2 * call.size(0) * math.prod(call.shape(weight_index)[1:])


def _deformable(call: Operands) -> int:
    # Inputs are interpolated before they are multiplied, once for all output channels: from four
    # corners, and times the mask.
    positions = call.result_size // max(call.dim(1, 0), 1)
    sampled = positions * call.dim(0, 1) * math.prod(call.shape(1)[2:])
    return _convolution(1)(call) + 8 * sampled


def _matmul(right_index: int) -> Rule:
    """Return the count of a product (..., m, k) by (..., k, n) with broadcast leading axes."""

    def rule(call: Operands) -> int:
        if not call.shape(0):
            return 0
        batch, rows, shared = _matrix(call, 0, "A")
        if not call.shape(right_index):
            return 2 * shared * call.result_size
        other, _, columns = _matrix(call, right_index, "B")
        pairs = zip_longest(reversed(batch), reversed(other), fillvalue=1)
        return 2 * rows * shared * columns * math.prod(max(pair) for pair in pairs)

    return rule


def _matrix(call: Operands, index: int, side: str) -> tuple[list[int], int, int]:
    """Return the leading axes, rows and columns of operand A or B after transposition."""
    shape = call.shape(index)
    if len(shape) == 1:
        return [], *((1, shape[0]) if side == "A" else (shape[0], 1))
    if call.integer(f"transBatch{side}"):  # of ONNX Runtime: axis 0 has the rows
        shape = [*shape[1:-1], shape[0], shape[-1]]
    *batch, rows, columns = shape
    return (batch, columns, rows) if call.integer(f"trans{side}") else (batch, rows, columns)


def _sparse(call: Operands) -> int:
    # The shape of a sparse operand leaves open its non-zeros: assume one in each column.
    return _matmul(1)(call) or 2 * call.size(1)


def _columns(*names: str) -> Rule:
    """Return the count of a product with packed weights, whose columns are attributes."""
    return lambda call: 2 * call.size(0) * sum(call.integer(name) for name in names)


def _rows_of_weight(call: Operands) -> int:
    """Count a product with weights of shape (columns, packed rows)."""
    return 2 * call.size(0) * call.dim(1, 0)


def _four_bits(call: Operands) -> int:
    # MatMulBnb4: weights are (N, K); without transB, x is (..., N) and the result (..., K).
    return _columns("N" if call.integer("transB", 1) else "K")(call)


def _with_adapter(call: Operands) -> int:
    # MatMulNBitsQLoRA: x goes to the rank of lora_A (rank, ...), and from there to N columns.
    rows, columns = math.prod(call.shape(0)[:-1]), call.integer("N")
    rank = call.dim(3, 0) if call.dim(5, 0) else 0
    return 2 * call.size(0) * (columns + rank) + 2 * rows * rank * columns


_BLOB_BLOCKS = {0: (32, 20), 1: (32, 21), 2: (64, 36)}
"""Weights per block, and bytes per block with scale and zero point, by blk_quant_type (MLAS q4)."""


def _blob(call: Operands) -> int:
    # MatMulFpQ4: the weights are a vector of bytes; each column is a whole number of blocks.
    weights, size = _BLOB_BLOCKS.get(call.integer("blk_quant_type", 1), (32, 21))
    column = -(-call.dim(0, -1) // weights) * size
    return 2 * call.size(0) * (call.size(1) // max(column, 1))


def _experts(weight_indices: tuple[int, ...]) -> Rule:
    """Return the count of the k experts of each token; weights have shape (experts, out, in)."""

    def rule(call: Operands) -> int:
        tokens = math.prod(call.shape(0)[:-1])
        weights = sum(
            math.prod(call.shape(index)[1:]) * 8 // _expert_bits(call, layer)
            for layer, index in enumerate(weight_indices, 1)
            if call.shape(index)
        )
        return 2 * tokens * _experts_of_a_token(call) * weights

    return rule


def _expert_bits(call: Operands, layer: int) -> int:
    """Return the bits of one weight; 8 where weights are not packed into bytes."""
    if call.proto.op_type != "QMoE":
        return 8
    return call.integer(f"fc{layer}_expert_weight_bits", call.integer("expert_weight_bits", 4))


def _experts_of_a_token(call: Operands) -> int:
    # router_probs have shape (tokens, experts).
    return min(call.integer("k", 1), call.dim(1, -1) or 1)


def _packed_experts(call: Operands) -> int:
    # MoEPacked: gate and up (experts, inner, bytes), down (experts, hidden, bytes).
    layers = 3 if call.has(3) else 2
    return 2 * call.size(0) * _experts_of_a_token(call) * layers * call.dim(2, 1)


def _recurrent(call: Operands) -> int:
    # x is (steps, batch, in) or (batch, steps, in), W (directions, gates * hidden, in), R
    # (directions, gates * hidden, hidden).
    steps = math.prod(call.shape(0)[:2])
    return 2 * steps * (call.size(1) + call.size(2))


def _attentive_recurrent(call: Operands) -> int:
    # AttnLSTM: each step scores a query (hidden, attention) with the keys of a memory (batch,
    # items, depth) by a tanh of their sum, and projects the weighted memory by AW. The keys, memory
    # times MW (directions, depth, attention), are computed once.
    steps, attention = math.prod(call.shape(0)[:2]), call.dim(8, -1)
    items, depth = (call.dim(11, axis) for axis in (1, 2))
    scored = steps * call.dim(8, 0) * items * (9 * attention + 2 * depth)
    keys = 2 * call.dim(11, 0) * items * call.size(9)
    return _recurrent(call) + 2 * steps * (call.size(8) + call.size(13)) + scored + keys


def _einsum(call: Operands) -> int:
    """Count an Einsum that multiplies operands from left to right.

    After each product it sums over the axes that neither later operands nor the result have.
    """
    left, _, right = call.text("equation").replace(" ", "").partition("->")
    terms, sizes = left.split(","), dict[str, int]()
    shapes = [call.shape(index) for index in range(len(terms))]
    letters = [_letters(term, len(shape)) for term, shape in zip(terms, shapes, strict=True)]
    for names, shape in zip(letters, shapes, strict=True):
        for name, size in zip(names, shape, strict=False):
            sizes[name] = max(size, sizes.get(name, 1))
    if "->" in call.text("equation"):
        wanted = _letters(right, len(sizes))
    else:  # implicit output: the letters that occur once, as the schema of Einsum says
        counts = Counter(name for names in letters for name in names)
        wanted = [name for name, count in counts.items() if count == 1 or name.isdigit()]
    remaining, flops = set(letters[0]), 0
    for index, names in enumerate(letters[1:], 1):
        remaining |= set(names)
        flops += 2 * math.prod(sizes.get(name, 1) for name in remaining)
        remaining &= set(wanted).union(*letters[index + 1 :])
    return flops or (math.prod(sizes.values()) if sizes else 0)


def _letters(term: str, rank: int) -> list[str]:
    """Return the names of a term's axes; those of "..." are numbers, counted from the end."""
    before, dots, after = term.partition("...")
    hidden = max(rank - len(before) - len(after), 0) if dots else 0
    return [*before, *(str(i) for i in reversed(range(hidden))), *after]


def _convolved_words(call: Operands) -> int:
    # WordConvEmbedding: input (..., words, characters), weights (filters, 1, window, size of a
    # character).
    places = max(call.dim(0, -1) - call.dim(1, -2) + 1, 1)
    return 2 * math.prod(call.shape(0)[:-1]) * places * call.size(1)


def _low_rank_mix(call: Operands) -> int:
    # HyperConnectionLowRankMix: each token (..., in) is multiplied by three matrices.
    tokens = math.prod(call.shape(0)[:-1])
    return 2 * tokens * sum(call.size(index) for index in (2, 3, 4))


def _stream_mix(call: Operands) -> int:
    # HyperConnectionPostMix: each stream is a weighted sum of all streams.
    return 2 * call.size(0) * (call.integer("num_branches") or call.dim(0, -2))


_CONVOLUTIONS: dict[str, Rule] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _scattered(1),
    "DeformConv": _deformable,
    # ONNX Runtime's own.
    "FusedConv": _convolution(1),
    "NhwcConv": _convolution(1),
    "NhwcFusedConv": _convolution(1),
    "ConvTransposeWithDynamicPads": _scattered(1),
    "QLinearConvTranspose": _scattered(3),
}
CONVOLUTIONS = frozenset(_CONVOLUTIONS)
"""Operators that the kernels of convolutions run."""

PRODUCTS: dict[str, Rule] = {
    **_CONVOLUTIONS,
    # Depthwise along the sequence, as long as the input: not run by the kernels of convolutions.
    "CausalConvWithState": _scattered(1),
    "VarlenCausalConvWithState": _scattered(1),
    "MatMul": _matmul(1),
    "MatMulInteger": _matmul(1),
    "QLinearMatMul": _matmul(3),
    "Gemm": _matmul(1),
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    # ONNX Runtime's own, written by its optimizer and its exporters.
    "FusedMatMul": _matmul(1),
    "FusedMatMulActivation": _matmul(1),
    "TransposeMatMul": _matmul(1),
    "SparseToDenseMatMul": _sparse,
    "FusedGemm": _matmul(1),
    "GemmFastGelu": _matmul(1),
    "GemmFloat8": _matmul(1),
    "QGemm": _matmul(3),
    "QOrderedMatMul": _matmul(2),
    "DynamicQuantizeMatMul": _matmul(1),
    "MatMulIntegerToFloat": _matmul(1),
    "MatMulInteger16": _matmul(1),
    "RouterGateUpProj": _matmul(1),
    "MatMulNBits": _columns("N"),
    "MatMulNBitsMlp": _columns("N", "N"),
    "MatMulNBitsQkv": _columns("Nq", "Nkv", "Nkv"),
    "MatMulNBitsQLoRA": _with_adapter,
    "MatMulPacked": _columns("N"),
    "MatMulBnb4": _four_bits,
    "MatMulFpQ4": _blob,
    "MatMulBlockQuantizedFp4Weight": _rows_of_weight,
    "MatMulBlockQuantizedFp8Weight": _rows_of_weight,
    "CDist": _rows_of_weight,  # |a - b|^2 is computed from the product of a and b
    "MoE": _experts((2, 4, 6)),
    "QMoE": _experts((2, 5, 8)),
    "MoEPacked": _packed_experts,
    "DynamicQuantizeLSTM": _recurrent,
    "AttnLSTM": _attentive_recurrent,
    "WordConvEmbedding": _convolved_words,
    "HyperConnectionLowRankMix": _low_rank_mix,
    "HyperConnectionPostMix": _stream_mix,
}
"""Counts of products by operator."""
