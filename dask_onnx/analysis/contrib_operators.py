"""Stand-ins of ONNX Runtime's own operators, for shape inference.

Each is a function of standard operators in ONNX's text form, whose results have the same shapes and
dtypes as the operator's, with other values. ``_`` is an input that the body does not read. The
operators are described in
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md. Operators whose output
ranks depend on data or on another model have no stand-in: generators (BeamSearch, GreedySearch,
Sampling), EPContext and operators on packed tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import onnx

from dask_onnx.analysis.contrib_attention import ATTENTION
from dask_onnx.analysis.contrib_images import BLOCKED, BLOCKS, IMAGES
from dask_onnx.analysis.contrib_parts import (
    SAME,
    SLICE_END,
    Call,
    Rule,
    Table,
    permuted,
    resized,
    sliced,
    unknown,
)

CONTRIB = "com.microsoft"
"""ONNX Runtime's domain."""
_ATTRIBUTES = {
    "transposed": "transA: int = @transA, transB: int = @transB",
    "normalized": "axis: int = @axis, stash_type: int = @stash_type",
    "recurrent": "direction: string = @direction, hidden_size: int = @hidden_size",
}
"""Placeholders in the text of functions to the attributes that they pass on."""


# Rules: stand-ins that depend on attributes or on the given inputs.


def _half_or_same(call: Call) -> str:
    return SAME if call.has(1) else "(x) => (y, z) { y, z = Split <axis = -1> (x) }"


def _product(call: Call) -> str:
    body, names = "", []
    for side in "AB":
        # transBatch: the rows of the matrix come before the batch axes.
        by_batch = call.integer(f"transBatch{side}")
        rows, batch = ((0, 1), (1, -1)) if by_batch else ((-2, -1), (0, -2))
        columns = (-1, None)
        is_transposed = call.integer(f"trans{side}")
        axes = [batch, columns, rows] if is_transposed else [batch, rows, columns]
        names.append(f"T{side}" if by_batch or is_transposed else side)
        if by_batch or is_transposed:
            body += permuted(f"T{side}", side, *axes) + " "
    return f"(A, B) => (y) {{ {body} y = MatMul ({', '.join(names)}) }}"


def _columns(*attributes: str, residual: bool = False) -> Rule:
    """Return the rule of products (..., K) -> (..., N).

    Parameters
    ----------
    attributes : str
        Attributes with the sizes N, one for each result.
    residual : bool
        True if the last result is a sum of the input's shape.
    """

    def rule(call: Call) -> str:
        names = [f"y{i}" for i in range(len(attributes))]
        parts = [
            resized(name, "x", -1, call.integer(attribute))
            for name, attribute in zip(names, attributes, strict=True)
        ]
        if residual:
            names.append("sum")
            parts.append("sum = Identity (x)")
        return f"(x) => ({', '.join(names)}) {{ {' '.join(parts)} }}"

    return rule


def _gemm(call: Call) -> str:
    # Without an output zero point the result is float.
    like = "zero" if call.has(8) else "scale"
    return (
        "(a, scale, _, b, _, _, _, _, zero) => (y) "
        f"{{ c = Gemm <{_ATTRIBUTES['transposed']}> (a, b) y = CastLike (c, {like}) }}"
    )


def _gemm_of_bytes(call: Call) -> str:
    dtype = call.integer("dtype", onnx.TensorProto.FLOAT)
    product = f"Gemm <{_ATTRIBUTES['transposed']}> (a, b)"
    return f"(a, b) => (y) {{ c = {product} y = Cast <to = {dtype}> (c) }}"


def _quantized_concat(call: Call) -> str:
    # Each input comes with its scale and zero point.
    names = [f"x{i}" for i in range(2, len(call.node.input))]
    joined = f"c = Concat <axis: int = @axis> ({', '.join(names[::3])})"
    return f"(_, zero, {', '.join(names)}) => (y) {{ {joined} y = CastLike (c, zero) }}"


def _quantized(call: Call) -> str:
    result = "CastLike (x, zero)" if call.has(2) else "Cast <to = 2> (x)"
    return f"(x, _, zero) => (y) {{ y = {result} }}"


def _dequantized_rows(call: Call) -> str | None:
    data = call.tensor(0)
    if data is None:
        return None
    # A byte packs several numbers along the quantized axis.
    count = 8 // call.integer("bits", 4) if data.data_type == onnx.TensorProto.UINT8 else 1
    whole = f"Concat <axis = {call.integer('quantize_axis', 1)}> ({', '.join(['x'] * count)})"
    return (
        f"(x, indices, scales) => (y) {{ a = {whole} "
        "b = Gather <axis: int = @gather_axis> (a, indices) y = CastLike (b, scales) }"
    )


def _unpacked_rows(call: Call) -> str:
    dtype = call.integer("output_dtype", onnx.TensorProto.BFLOAT16)
    whole = resized("a", "x", 1, call.integer("K"))
    return f"(x, indices) => (y) {{ {whole} b = Gather (a, indices) y = Cast <to = {dtype}> (b) }}"


def _range(call: Call) -> str:
    if call.has(2):
        return "(start, limit, step) => (y) { y = Range (start, limit, step) }"
    start, limit = call.constant(0), call.constant(1)
    if start is None or limit is None:
        return "(x) => (y) { b = Cast <to = 9> (x) y = Compress (x, b) }"
    count = max(math.ceil(limit[0] - start[0]), 0)
    return (
        f"(x) => (y) {{ n = Constant <value_ints = [{count}]> () z = ConstantOfShape (n) "
        "y = CastLike (z, x) }"
    )


def _expanded(call: Call) -> str | None:
    axis = call.constant(1)
    if axis is None:
        return None
    return f"(x) => (y) {{ a = Constant <value_ints = [{int(axis[0])}]> () y = Unsqueeze (x, a) }}"


def _tokens(call: Call) -> str:
    """Return strings with one more axis, as long as the text with most tokens."""
    return (
        "(x) => (y) { a = Constant <value_ints = [-1]> () u = Unsqueeze (x, a) "
        f"{unknown('y', 'u', -1)} }}"
    )


def _unfolded(call: Call) -> str:
    # Windows of `size` elements along `dim`, `step` apart, become a new last axis.
    size, last = call.integer("size"), 1 - call.integer("size")
    first = sliced("a", "x", call.integer("dim", -1), 0, last or SLICE_END, call.integer("step", 1))
    new = "m = Constant <value_ints = [-1]> () b = Unsqueeze (a, m)"
    return f"(x) => (y) {{ {first} {new} {resized('y', 'b', -1, size)} }}"


def _spectrum(_: Call) -> str:
    # n real numbers give n // 2 + 1 complex ones: as many as a slice of n + 1 with step 2.
    one = sliced("o", "x", -1, 0, 1)
    half = sliced("h", "l", -1, 0, SLICE_END, 2)
    new = "m = Constant <value_ints = [-1]> () b = Unsqueeze (h, m)"
    longer = "l = Concat <axis = -1> (x, o)"
    return f"(x) => (y) {{ {one} {longer} {half} {new} {resized('y', 'b', -1, 2)} }}"


def _signal(_: Call) -> str:
    # k complex numbers give 2 * (k - 1) real ones.
    real = "z = Constant <value_int = 0> () r = Gather <axis = -1> (x, z)"
    rest = sliced("h", "r", -1, 1, SLICE_END)
    return f"(x) => (y) {{ {real} {rest} y = Concat <axis = -1> (h, h) }}"


def _hashed(call: Call) -> str:
    dtype = onnx.TensorProto.UINT32 if call.integer("positive", 1) else onnx.TensorProto.INT32
    return f"(x) => (y) {{ y = Cast <to = {dtype}> (x) }}"


# Tables, by family of operators.


def _same(names: str) -> Table:
    """Return entries of operators whose result has the type and shape of their first input."""
    return dict.fromkeys(names.split(), SAME)


def _functions(text: str) -> Table:
    """Return entries from text of operator, parameters, results and body.

    A placeholder such as ``<transposed>`` is replaced by its entry in `_ATTRIBUTES`.
    """
    for name, attributes in _ATTRIBUTES.items():
        text = text.replace(f"<{name}>", f"<{attributes}>")
    return dict(re.findall(r"^(\w+) (\(.*?\})$", text, re.DOTALL | re.MULTILINE))


ACTIVATIONS: Table = {
    **_same(
        "BiasAdd BiasGelu BiasSoftmax BitmaskBiasDropout BitmaskDropout FastGelu GatedAdd Gelu "
        "QOrderedGelu QuickGelu SampleOp ScaledSiLU"
    ),
    **_functions("""
BiasDropout (x) => (y, mask) { y = Identity (x) mask = Cast <to = 9> (x) }
BiasSplitGelu (x) => (y, z) { y, z = Split <axis = -1> (x) }
"""),
    "SwiGLU": _half_or_same,
}

NORMALIZATION: Table = {
    **_same("BranchwiseRMSNorm GatedRMSNorm GroupNorm QOrderedLayerNormalization"),
    **_functions("""
SkipLayerNormalization (x, _, scale) => (y, mean, deviation, sum) {
    y, mean, deviation = LayerNormalization <axis = -1> (x, scale)
    sum = Identity (x)
}
SkipSimplifiedLayerNormalization (x, _, scale) => (y, mean, deviation, sum) {
    y, mean, deviation = LayerNormalization <axis = -1> (x, scale)
    sum = Identity (x)
}
SkipGroupNorm (x) => (y, sum) { y = Identity (x) sum = Identity (x) }
"""),
}

EMBEDDING: Table = {
    **_same("MRotaryEmbedding RotaryEmbedding"),
    **_functions("""
EmbedLayerNormalization (ids, _, words) => (y, mask_index, sum) {
    y = Gather (words, ids)
    mask_index = ReduceMax <axes = [1], keepdims = 0> (ids)
    sum = Identity (y)
}
QEmbedLayerNormalization (ids, _, words, _, _, _, _, _, scale) => (y, mask_index) {
    w = Gather (words, ids)
    y = CastLike (w, scale)
    mask_index = ReduceMax <axes = [1], keepdims = 0> (ids)
}
GemmaRotaryEmbedding (_, q, _, k) => (y, z) { y = Identity (q) z = Identity (k) }
TorchEmbedding (table, indices) => (y) { y = Gather (table, indices) }
RelativePositionBias (table, queries, keys) => (y) {
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    first = Constant <value_ints = [1]> ()
    heads = Shape <start = 1> (table)
    q = Range (zero, queries, one)
    k = Range (zero, keys, one)
    n_queries = Shape (q)
    n_keys = Shape (k)
    sizes = Concat <axis = 0> (first, heads, n_queries, n_keys)
    b = ConstantOfShape (sizes)
    y = CastLike (b, table)
}
GatedRelativePositionBias (queries, _, bias) => (y) {
    b = ReduceMax <axes = [1, 2], keepdims = 0> (queries)
    y = Gather (bias, b)
}
"""),
    "GatherBlockQuantized": _dequantized_rows,
    "GatherPacked": _unpacked_rows,
}

PRODUCTS: Table = {
    **_same("MoE QMoE MoEPacked"),
    **dict.fromkeys(["FusedMatMul", "FusedMatMulActivation", "TransposeMatMul"], _product),
    **dict.fromkeys(
        ["MatMulBnb4", "MatMulNBits", "MatMulNBitsQLoRA", "MatMulPacked"], _columns("N")
    ),
    **_functions("""
DynamicQuantizeMatMul (a, b) => (y) { y = MatMul (a, b) }
GemmFastGelu (a, b) => (y) { y = MatMul (a, b) }
FusedGemm (a, b) => (y) { y = Gemm <transposed> (a, b) }
CDist (a, b) => (y) { y = Gemm <transB = 1> (a, b) }
MatMulFpQ4 (a, _, shape) => (y) { b = ConstantOfShape (shape) y = MatMul (a, b) }
MatMulInteger16 (a, b) => (y) { y = MatMulInteger (a, b) }
MatMulIntegerToFloat (a, b, scale) => (y) { c = MatMul (a, b) y = CastLike (c, scale) }
QOrderedMatMul (a, _, b) => (y) { y = MatMul (a, b) }
ComplexMul (a, b) => (y) { y = Mul (a, b) }
ComplexMulConj (a, b) => (y) { y = Mul (a, b) }
MulInteger (a, _, b) => (y) { c = Mul (a, b) y = Cast <to = 6> (c) }
MatMulBlockQuantizedFp4Weight (a, b) => (y) {
    n = ReduceMax <axes = [1], keepdims = 0> (b)
    y = Gather <axis = -1> (a, n)
}
MatMulBlockQuantizedFp8Weight (a, b) => (y) {
    n = ReduceMax <axes = [1], keepdims = 0> (b)
    y = Gather <axis = -1> (a, n)
}
"""),
    "GemmFloat8": _gemm_of_bytes,
    "MatMulNBitsMlp": _columns("N", residual=True),
    "MatMulNBitsQkv": _columns("Nq", "Nkv", "Nkv", residual=True),
    "QGemm": _gemm,
}

QUANTIZED: Table = {
    **_same("QLinearLeakyRelu QLinearSigmoid QLinearSoftmax"),
    **_functions("""
QLinearAdd (a, _, _, b) => (y) { y = Add (a, b) }
QLinearMul (a, _, _, b) => (y) { y = Mul (a, b) }
QLinearWhere (condition, a, _, _, b) => (y) { y = Where (condition, a, b) }
QLinearReduceMean (x) => (y) {
    y = ReduceMean <axes: ints = @axes, keepdims: int = @keepdims> (x)
}
DequantizeLinear (x, scale) => (y) { y = CastLike (x, scale) }
DequantizeWithOrder (x) => (y) { y = Cast <to: int = @to> (x) }
QuantizeWithOrder (x) => (y) { y = Cast <to = 3> (x) }
DynamicQuantizeLSTM (x) => (y, h, c) { y, h, c = LSTM <recurrent> (x) }
"""),
    "QLinearConcat": _quantized_concat,
    "QuantizeLinear": _quantized,
}

OTHERS: Table = {
    **_same("HyperConnectionPostMix Inverse Trilu"),
    **_functions("""
AttnLSTM (x) => (y, h, c) { y, h, c = LSTM <recurrent> (x) }
GatherND (x, indices) => (y) { y = GatherND (x, indices) }
NGramRepeatBlock (_, scores) => (y) { y = Identity (scores) }
Pad (x, pads) => (y) { y = Pad (x, pads) }
Unique (x) => (y, indices, counts) { y, _i, _r, counts = Unique (x) indices = Cast <to = 7> (x) }
"""),
    "ExpandDims": _expanded,
    "Irfft": _signal,
    "MurmurHash3": _hashed,
    "Range": _range,
    "Rfft": _spectrum,
    "Tokenizer": _tokens,
    "UnfoldTensor": _unfolded,
}

WITHOUT_DOMAIN: Table = {
    **_same("Affine ImageScaler MemcpyFromHost MemcpyToHost ParametricSoftplus Scale ScaledTanh"),
    **_functions("""
LayerNormalization (x, scale) => (y, mean, deviation) {
    n, mean, deviation = LayerNormalization <normalized> (x, scale)
    y = CastLike (n, scale)
}
SimplifiedLayerNormalization (x, scale) => (y, deviation) {
    n, mean, deviation = LayerNormalization <normalized> (x, scale)
    y = CastLike (n, scale)
}
"""),
}
"""Stand-ins of operators that ONNX Runtime has in ONNX's domain, where ONNX has none of that name
at the model's opset."""

TABLES: Mapping[str, Table] = {
    CONTRIB: {
        **ACTIVATIONS,
        **NORMALIZATION,
        **EMBEDDING,
        **ATTENTION,
        **PRODUCTS,
        **IMAGES,
        **QUANTIZED,
        **OTHERS,
    },
    "": WITHOUT_DOMAIN,
    BLOCKED: BLOCKS,
}
"""Stand-ins by domain and operator."""
