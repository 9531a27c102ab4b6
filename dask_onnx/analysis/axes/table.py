"""Table of the rule of every operator, by family. An operator that is not listed is opaque.

The family says how an operator mainly treats its axes: *elementwise* (all axes are independent),
*axis* (elements along one axis are combined, the shape stays), *reduction*, *product* (contracts an
axis), *window*, *layout* (moves elements), *layer* (the batch axis is independent), *rows* (the
first axis is independent), *random*, *shape*, *control* (bodies are analysed) and *opaque* (on
purpose).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dask_onnx.analysis.axes import attention_rules as attentions
from dask_onnx.analysis.axes import layout_rules as layout
from dask_onnx.analysis.axes import model_rules as layers
from dask_onnx.analysis.axes import norm_rules as norms
from dask_onnx.analysis.axes import pick_rules as picks
from dask_onnx.analysis.axes import product_rules as products
from dask_onnx.analysis.axes import sequence_rules as sequences
from dask_onnx.analysis.axes import size_rules as sizes
from dask_onnx.analysis.axes import slice_rules as slices
from dask_onnx.analysis.axes import value_rules as values
from dask_onnx.analysis.axes import window_rules as windows
from dask_onnx.analysis.axes.control_rules import CONTROL_FLOW
from dask_onnx.analysis.axes.dependence import Dependence, Kind
from dask_onnx.analysis.axes.layout_rules import same_axis
from dask_onnx.analysis.axes.view import NodeView, Rule
from dask_onnx.modelio.operator_names import OperatorName

ML = "ai.onnx.ml"
"""Domain of classical machine learning operators."""
ORT = "com.microsoft"
"""Domain of ONNX Runtime's contrib operators."""

CustomAxes = Mapping[OperatorName, object]
"""Axes that custom operators declare as independent: "independent" for all, a number, or several.
"""


class Entry(NamedTuple):
    """Rule of an operator, with the inputs that it joins itself."""

    family: str
    """Name of the family, see the module's docstring."""
    rule: Rule
    """Function from a node's view to the dependence of each output."""
    operands: frozenset[int] = frozenset()
    """Inputs that hold shapes, axes or bounds; the rule reads them itself where they are known."""
    joined: frozenset[int] = frozenset()
    """Inputs, mostly indices, whose dependence the rule joins itself in any case."""


_TABLE: dict[OperatorName, Entry] = {}


def _add(
    family: str,
    rule: Rule,
    names: str,
    domain: str = "",
    operands: Sequence[int] = (),
    joined: Sequence[int] = (),
) -> None:
    """Add the operators `names`, separated by spaces, of one domain to the table."""
    for name in names.split():
        assert (domain, name) not in _TABLE, f"{domain}.{name} is listed twice"
        _TABLE[domain, name] = Entry(family, rule, frozenset(operands), frozenset(joined))


def _opaque(v: NodeView) -> Sequence[Dependence]:
    return v.opaque()


# Elementwise, with broadcasting.
_add(
    "elementwise",
    values.elementwise,
    """Abs Acos Acosh Add And Asin Asinh Atan Atanh BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr
    BitwiseXor Cast Ceil Celu Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mish Mod
    Mul Neg Not Or Pow PRelu Reciprocal RegexFullMatch Relu Round Selu Shrink Sigmoid Sign Sin Sinh
    Softplus Softsign Sqrt StringConcat Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor
    ParametricSoftplus ScaledTanh Affine Scale SwiGLU""",
)
_add("elementwise", values.first_input, "CastLike Clip MemcpyFromHost MemcpyToHost")
_add("elementwise", layers.dropout, "Dropout")
_add("elementwise", values.as_one_axis(1), "QuantizeLinear DequantizeLinear")
_add("elementwise", values.first_input, "Binarizer CategoryMapper LabelEncoder", ML)
_add("elementwise", values.by_feature, "Imputer Scaler", ML)
_add(
    "elementwise",
    values.elementwise,
    """BiasGelu BiasAdd FastGelu Gelu QuickGelu ScaledSiLU ComplexMul ComplexMulConj MulInteger
    GatedAdd""",
    ORT,
)
_add("elementwise", values.first_input, "QLinearLeakyRelu QLinearSigmoid QOrderedGelu", ORT)
_add("elementwise", values.as_one_axis(1), "QuantizeLinear DequantizeLinear", ORT)
_add("elementwise", values.first_input, "MurmurHash3 SampleOp", ORT)
_add("elementwise", values.by_channel, "ImageScaler")
_add("elementwise", values.quantized_elementwise(0, 3), "QLinearAdd QLinearMul", ORT)
_add("elementwise", values.quantized_elementwise(0, 1, 4), "QLinearWhere", ORT)

# Elements along one axis are combined; the shape stays.
_add("axis", values.softmax_like, "Softmax LogSoftmax Hardmax")
_add("axis", values.along(-1, Kind.REDUCED, "norm"), "LpNormalization")
_add(
    "axis",
    norms.layer_norm,
    "LayerNormalization RMSNormalization SimplifiedLayerNormalization",
)
_add(
    "axis",
    norms.skip_layer_norm,
    "SkipLayerNormalization SkipSimplifiedLayerNormalization",
    ORT,
)
_add("axis", norms.spatial_norm, "InstanceNormalization GroupNormalization")
_add("axis", norms.batch_norm, "BatchNormalization")
_add("axis", norms.mean_variance_norm, "MeanVarianceNormalization")
_add("axis", values.prefix_sum, "CumSum CumProd")
_add("axis", values.top_k, "TopK")
_add("axis", values.reverse_sequence, "ReverseSequence")
_add("axis", layers.normalizer, "Normalizer", ML)
_add("axis", values.quantized_softmax, "QLinearSoftmax", ORT)
_add("axis", layers.spectrum, "DFT STFT")

# Reductions of an axis.
for _names, _how in (
    ("ReduceMean", "mean"),
    ("ReduceSum", "sum"),
    ("ReduceMax", "max"),
    ("ReduceMin", "min"),
    ("ReduceProd", "product"),
    ("ReduceL1", "sum of magnitudes"),
    ("ReduceL2", "root of squares"),
    ("ReduceSumSquare", "sum of squares"),
    ("ReduceLogSum", "logarithm of sum"),
    ("ReduceLogSumExp", "logsumexp"),
):
    _add("reduction", values.reduction(_how), _names)
_add("reduction", values.arg_reduction, "ArgMax ArgMin")
_add("reduction", windows.global_pool("mean"), "GlobalAveragePool")
_add("reduction", windows.global_pool("max"), "GlobalMaxPool")
_add("reduction", windows.global_pool("norm"), "GlobalLpPool")
_add("reduction", layers.loss, "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss")
_add("reduction", values.reduction("sum"), "ReduceSumInteger", ORT)

# Products.
_add("product", products.matmul, "MatMul")
_add("product", products.gemm, "Gemm")
_add("product", products.einsum, "Einsum")
_add("product", products.det, "Det")
_add("product", products.quantized_matmul(0, 1, (2,), (3,)), "MatMulInteger")
_add("product", products.quantized_matmul(0, 3, (1, 2, 6, 7), (4, 5)), "QLinearMatMul")
_add("product", products.quantized_gemm, "QGemm", ORT)
_add("product", products.fused_matmul, "FusedMatMul TransposeMatMul", ORT)
_add("product", products.gemm, "FusedGemm", ORT)
_add("product", products.det, "Inverse", ORT)
_add("product", products.quantized_matmul(0, 1, (2,), (3,)), "MatMulInteger16", ORT)
_add("product", products.quantized_matmul(0, 1, (2, 4), (3, 5, 6)), "MatMulIntegerToFloat", ORT)
_add(
    "product",
    layers.coupled(products.quantized_matmul(0, 1, (), (2, 3, 4))),
    "DynamicQuantizeMatMul",
    ORT,
)
_add(
    "product",
    values.along(-1, Kind.CONTRACTED, "matrix product"),
    "MatMulNBits MatMulBnb4 MatMulFpQ4",
    ORT,
)

# Windows over spatial axes.
_add("window", windows.conv(), "Conv ConvInteger")
_add("window", windows.conv(0, 3), "QLinearConv")
_add("window", windows.conv_transpose, "ConvTranspose")
_add("window", windows.pool, "AveragePool MaxPool LpPool")
_add("window", windows.local_response_norm, "LRN")
_add("window", windows.resize, "Resize", operands=(1, 2, 3))
_add("window", windows.resize, "Upsample", operands=(1,))
_add("window", windows.grid_sample, "GridSample")
_add("window", windows.grid_sample, "GridSample", ORT)
_add("window", windows.conv(addend=3), "FusedConv", ORT)
_add("window", windows.conv(0, 3), "QLinearConv", ORT)
_add("window", windows.pool, "QLinearAveragePool", ORT)
_add("window", slices.pad, "Pad", operands=(1, 3))
_add("window", slices.pad, "Pad", ORT, operands=(1,))

# Layout: operators that move elements.
_add("layout", layout.reshape, "Reshape", operands=(1,))
_add("layout", layers.flatten, "Flatten")
_add("layout", layout.transpose, "Transpose")
_add("layout", layout.squeeze, "Squeeze")
_add("layout", layout.unsqueeze, "Unsqueeze")
_add("layout", sizes.expand, "Expand", operands=(1,))
_add("layout", sizes.constant_of_shape, "ConstantOfShape", operands=(0,))
_add("layout", sizes.tile, "Tile", operands=(1,))
_add("layout", layout.concat, "Concat")
_add("layout", slices.split, "Split", operands=(1,))
_add("layout", slices.slice_, "Slice", operands=(1, 2, 3, 4))
_add("layout", picks.gather, "Gather", joined=(1,))
_add("layout", picks.elementwise_gather, "GatherElements ScatterElements Scatter")
_add("layout", picks.gather_nd, "GatherND", joined=(1,))
_add("layout", picks.scatter_nd, "ScatterND", joined=(1,))
_add("layout", layout.one_hot, "OneHot")
_add("layout", layout.depth_to_space, "DepthToSpace SpaceToDepth")
_add("layout", layout.trilu, "Trilu")
_add("layout", layout.trilu, "Trilu", ORT)
_add("layout", sizes.range_, "Range", operands=(0, 1, 2))
_add("layout", sizes.range_, "Range", ORT, operands=(0, 1, 2))
_add("layout", picks.gather_nd, "GatherND", ORT, joined=(1,))
_add("layout", layers.array_feature_extractor, "ArrayFeatureExtractor", ML)
_add("layout", layers.feature_vectorizer, "FeatureVectorizer", ML)
_add("layout", layers.appended_axis, "OneHotEncoder", ML)
_add("layout", layers.string_split, "StringSplit")
_add("layout", layers.eye_like, "EyeLike")
_add("layout", layers.reversed_blocks, "Col2Im")
_add("layout", layout.expand_dims, "ExpandDims", ORT)
_add("layout", slices.unfold, "UnfoldTensor", ORT)
_add("layout", layout.quantized_concat, "QLinearConcat", ORT)
_add("layout", picks.table_lookup, "GatherBlockQuantized GatherPacked", ORT)
_add("layout", layers.max_unpool, "MaxUnpool", joined=(1,))
_add("layout", slices.center_crop_pad, "CenterCropPad", operands=(1,))
_add("layout", layers.affine_grid, "AffineGrid", operands=(1,))
_add("layout", values.selection, "NonZero Unique Compress NonMaxSuppression")
_add("layout", values.selection, "Unique", ORT)
_add("layout", layers.zip_map, "ZipMap", ML)
_add("layout", sequences.sequence_of, "SequenceConstruct Optional OptionalGetElement")
_add("layout", sequences.sequence_item, "SequenceAt SequenceErase")
_add("layout", sequences.sequence_insert, "SequenceInsert")
_add("layout", sequences.split_to_sequence, "SplitToSequence")
_add("layout", sequences.concat_from_sequence, "ConcatFromSequence")
_add("layout", layers.string_normalizer, "StringNormalizer")

# Layers with a batch axis.
_add("layer", layers.recurrent, "RNN GRU LSTM")
_add("layer", layers.coupled(layers.recurrent), "DynamicQuantizeLSTM", ORT)
_add("layer", attentions.attention, "Attention")
_add("layer", attentions.rotary, "RotaryEmbedding")
_add("layer", attentions.rotary, "RotaryEmbedding", ORT)
_add("layer", attentions.packed_qkv_attention, "Attention QAttention", ORT)
_add("layer", attentions.multi_head_attention, "MultiHeadAttention", ORT)
_add("layer", attentions.grouped_query_attention, "GroupQueryAttention", ORT)
_add("layer", layers.embed_layer_norm, "EmbedLayerNormalization", ORT)
_add("layer", layers.roi_align, "RoiAlign", joined=(2,))
_add("layer", layers.roi_pool, "MaxRoiPool")
_add("layer", layers.batched({0: 0, 2: 0, 4: 0}, {0: 0}, how="offsets"), "DeformConv")
_add("layer", layers.tensor_scatter, "TensorScatter")
_add("layer", layers.stepwise({0: 0, 3: 0}), "CausalConvWithState")
_add("layer", layers.stepwise(dict.fromkeys(range(6), 0)), "LinearAttention")
_add("layer", layers.stepwise({0: 0, 3: 0}), "CausalConvWithState", ORT)
_add("layer", layers.stepwise(dict.fromkeys(range(6), 0)), "LinearAttention", ORT)
_add("layer", layers.batched({0: 0, 1: 0, 7: 0}, {0: 0, 1: 0}), "QEmbedLayerNormalization", ORT)
_add("layer", layers.batched({0: 0, 1: 1}, {0: 0}), "MRotaryEmbedding", ORT)
_add("layer", attentions.decoding_attention, "DecoderMaskedMultiHeadAttention", ORT)
_add("layer", layers.roi_align, "CropAndResize", ORT, joined=(2,))
_add("layer", layers.moe, "MoE QMoE", ORT)
_add("layer", layers.dynamic_quantize, "DynamicQuantizeLinear")

# Operators whose rows, on the first axis, are independent.
_add(
    "rows",
    values.leading(0),
    """LinearClassifier LinearRegressor SVMClassifier SVMRegressor TreeEnsemble
    TreeEnsembleClassifier TreeEnsembleRegressor""",
    ML,
)
_add("rows", layers.text_rows, "TfIdfVectorizer", joined=(0,))
_add("rows", layers.tokenizer, "Tokenizer", ORT)
_add("rows", values.leading(0), "GroupNorm", ORT)
_add("rows", values.leading(0), "NhwcMaxPool NhwcConv", ORT)
_add("rows", values.leading(0, 3), "NhwcFusedConv", ORT)
_add("rows", values.leading(0), "BiasSplitGelu BranchwiseRMSNorm", ORT)
_add("rows", values.leading(0), "ConvTransposeWithDynamicPads", ORT)
_add("rows", values.leading(0, 1), "MaxpoolWithMask NGramRepeatBlock", ORT)
_add("rows", values.leading(0, 2), "GatedRMSNorm", ORT)
_add("rows", layers.pairs_of_rows, "CDist", ORT)
_add("rows", values.leading(0), "QLinearGlobalAveragePool", ORT)

# Random numbers, drawn for each element; `analysis.randomness` reports the nodes.
_add("random", layers.random_like, "Bernoulli RandomNormalLike RandomUniformLike")
_add("random", layers.multinomial, "Multinomial")

# Operators that read shapes only; shape arithmetic evaluates them before their rule is used.
_add("shape", sizes.shape_of, "Shape Size")
_add("shape", sizes.shape_of, "SequenceLength OptionalHasElement")

for _name in sorted(CONTROL_FLOW):
    _TABLE["", _name] = Entry("control", _opaque)

# Opaque on purpose: no input can carry positions, or no axis is known to be independent.
_add(
    "opaque",
    _opaque,
    """BlackmanWindow HammingWindow HannWindow Constant ImageDecoder MelWeightMatrix RandomNormal
    RandomUniform SequenceEmpty SequenceMap Crop DisentangledAttention_TRT DynamicSlice
    EfficientNMS_TRT GRUUnit GivenTensorFill MultilevelCropAndResize_TRT PyramidROIAlign_TRT""",
)
_add("opaque", _opaque, "CastMap DictVectorizer", ML)
_add("opaque", _opaque, "FlexAttention", "ai.onnx.preview")
_add("opaque", _opaque, "Adagrad Adam Gradient Momentum", "ai.onnx.preview.training")
_add(
    "opaque",
    _opaque,
    """AttnLSTM BeamSearch BiasDropout BiasSoftmax BifurcationDetector BitmaskBiasDropout
    BitmaskDropout ConvStateReplay DecoderAttention DecoderMaskedSelfAttention DequantizeBFP
    DequantizeWithOrder DynamicSparseAttention DynamicTimeWarping EPContext EngramGate
    FusedMatMulActivation GatedDeltaNet GatedDeltaNetStateReplay GatedRelativePositionBias
    GemmFastGelu GemmFloat8 GemmaRotaryEmbedding GreedySearch HyperConnectionLowRankMix
    HyperConnectionPostMix HyperConnectionPreMix Irfft IsAllFinite LinearAttentionGate
    LongformerAttention Mamba2Verify MatMulBlockQuantizedFp4Weight
    MatMulBlockQuantizedFp8Weight MatMulNBitsMlp MatMulNBitsQLoRA MatMulNBitsQkv MatMulPacked
    MoEGroupRouter MoEPacked NGramHashMapping PackedAttention PackedMultiHeadAttention
    PackedSparseAttentionIndexer PackedSparseAttentionIndexerMerge PagedAttention
    QLinearReduceMean QOrderedAttention QOrderedLayerNormalization
    QOrderedLongformerAttention QOrderedMatMul QuantizeBFP QuantizeWithOrder RMSNormRotary
    RelativePositionBias RemovePadding RestorePadding Rfft RouterGateUpProj Sampling
    SkipGroupNorm Snpe SparseAttention SparseAttentionIndexer SparsePagedAttention
    SparseToDenseMatMul SpeculativePrefixCommit SwiGLU TorchEmbedding
    VarlenCausalConvWithState VarlenNGramHashMapping WhisperBeamSearch WordConvEmbedding""",
    ORT,
)

_UNKNOWN = Entry("opaque", _opaque)

SHAPE_OPERATORS = frozenset(
    """Shape Size Gather Slice Squeeze Unsqueeze Reshape Expand Split Transpose Identity Cast Concat
    Where Range ConstantOfShape Add Sub Mul Div Mod Pow Min Max Equal Less LessOrEqual Greater
    GreaterOrEqual And Or Not Neg Abs Floor Ceil Sqrt ReduceProd ReduceSum ReduceMax
    ReduceMin""".split()
)
"""Operators of ai.onnx that occur in shape arithmetic and may be evaluated by `shape_values`."""


def rule_of(domain: str, op_type: str, custom: CustomAxes) -> Entry:
    """Return the entry of an operator: as declared in `custom`, else of the table, else opaque."""
    if (domain, op_type) in custom:
        return Entry("custom", _custom_rule(custom[domain, op_type]))
    return _TABLE.get((domain, op_type), _UNKNOWN)


def operator_families() -> Mapping[OperatorName, str]:
    """Return the family of every operator in the table, by (domain, operator type)."""
    return {name: entry.family for name, entry in _TABLE.items()}


def count_families() -> dict[str, int]:
    """Return the number of operators of each family, the largest first."""
    counts = Counter(operator_families().values())
    return dict(counts.most_common())


def _custom_rule(declared: object) -> Rule:
    """Return the rule of a custom operator from what it declares; opaque if that is no axis."""
    if declared == "independent":
        return values.elementwise
    if isinstance(declared, int):
        declared = (declared,)
    if not isinstance(declared, tuple | list | set | frozenset):
        return _opaque
    through = tuple(int(axis) for axis in declared)

    def rule(v: NodeView) -> Sequence[Dependence]:
        carriers = v.carriers
        if not carriers:
            return v.opaque()
        first = same_axis(v, carriers, v.name)
        return v.all(first) if first.axis in through else v.opaque()

    return rule
