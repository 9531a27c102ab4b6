"""Operation counts of operators that touch each element a few times; `flops` has the others."""

from __future__ import annotations

MOVES_ONLY = frozenset(
    (
        "BitCast Cast CastLike CenterCropPad Compress Concat ConcatFromSequence Constant "
        "ConstantOfShape Crop DepthToSpace DynamicSlice Expand ExpandDims EyeLike Flatten Gather "
        "GatherElements GatherND GatherPacked GivenTensorFill Identity If Loop MaxUnpool "
        "MemcpyFromHost MemcpyToHost OneHot Optional OptionalGetElement OptionalHasElement Pad "
        "QLinearConcat RemovePadding ReorderInput ReorderOutput Reshape RestorePadding "
        "ReverseSequence Scan Scatter ScatterElements ScatterND SequenceAt SequenceConstruct "
        "SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap Shape Size Slice "
        "SpaceToDepth Split SplitToSequence Squeeze TensorScatter Tile TorchEmbedding Transpose "
        "Trilu UnfoldTensor Unsqueeze Where"
    ).split()
)
"""Operators that move or create elements and compute nothing."""

PER_INPUT_ELEMENT = {
    "Col2Im": 1,
    "DynamicTimeWarping": 4,
    "GlobalAveragePool": 1,
    "GlobalLpPool": 2,
    "GlobalMaxPool": 1,
    "HyperConnectionPreMix": 2,
    "IsAllFinite": 1,
    "LpNormalization": 4,
    "NegativeLogLikelihoodLoss": 1,
    "NonZero": 1,
    "QLinearGlobalAveragePool": 1,
    "QLinearReduceMean": 1,
    **dict.fromkeys(
        "ArgMax ArgMin ReduceL1 ReduceLogSum ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
        "ReduceSumInteger".split(),
        1,
    ),
    "ReduceL2": 2,
    "ReduceLogSumExp": 5,
    "ReduceSumSquare": 2,
    "SoftmaxCrossEntropyLoss": 6,
}
"""Operations per element of the first input."""

PER_OUTPUT_ELEMENT = {
    # Normalizations: mean, variance, and their use.
    "BatchNormalization": 2,
    "BranchwiseRMSNorm": 6,
    "EngramGate": 16,
    "GatedRMSNorm": 11,
    "GroupNorm": 8,
    "GroupNormalization": 8,
    "InstanceNormalization": 8,
    "LayerNormalization": 8,
    "MeanVarianceNormalization": 6,
    "Normalizer": 3,
    "QOrderedLayerNormalization": 10,
    "RMSNormRotary": 9,
    "RMSNormalization": 6,
    "SimplifiedLayerNormalization": 6,
    "SkipGroupNorm": 10,
    "SkipLayerNormalization": 9,
    "SkipSimplifiedLayerNormalization": 7,
    # Rotary position embeddings.
    "GemmaRotaryEmbedding": 6,
    "MRotaryEmbedding": 3,
    "RotaryEmbedding": 3,
    # Exponentials and functions of them.
    "BiasGelu": 11,
    "BiasSoftmax": 6,
    "BiasSplitGelu": 12,
    "Celu": 5,
    "Elu": 5,
    "Erf": 8,
    "Exp": 4,
    "FastGelu": 10,
    "Gelu": 10,
    "HardSwish": 4,
    "LinearAttentionGate": 9,
    "Log": 4,
    "LogSoftmax": 5,
    "Mish": 12,
    "ParametricSoftplus": 9,
    "Pow": 8,
    "QLinearSigmoid": 6,
    "QLinearSoftmax": 7,
    "QOrderedGelu": 12,
    "QuickGelu": 6,
    "ScaledSiLU": 6,
    "ScaledTanh": 8,
    "Selu": 5,
    "Sigmoid": 4,
    "Softmax": 5,
    "Softplus": 8,
    "SwiGLU": 6,
    "Swish": 6,
    "Tanh": 6,
    # Trigonometric and hyperbolic functions.
    **dict.fromkeys(
        "Acos Acosh Asin Asinh Atan Atanh BlackmanWindow Cos Cosh HammingWindow HannWindow Sin "
        "Sinh Tan".split(),
        8,
    ),
    # Complex numbers; sampling of images; JPEG decoding (Huffman codes, cosine transform, colours);
    # random numbers.
    "ComplexMul": 3,
    "ComplexMulConj": 3,
    "CropAndResize": 11,
    "ImageDecoder": 40,
    **dict.fromkeys("Bernoulli Multinomial RandomNormal RandomNormalLike".split(), 10),
    # Quantization.
    "DequantizeBFP": 2,
    "DequantizeLinear": 2,
    "DequantizeWithOrder": 2,
    "DynamicQuantizeLinear": 5,
    "GatherBlockQuantized": 2,
    "QuantizeBFP": 4,
    "QuantizeLinear": 3,
    "QuantizeWithOrder": 3,
    "QLinearAdd": 6,
    "QLinearLeakyRelu": 5,
    "QLinearMul": 5,
    "QLinearWhere": 4,
    # Hashing of words and n-grams.
    **dict.fromkeys("MurmurHash3 NGramHashMapping VarlenNGramHashMapping".split(), 20),
}
"""Operations per element of the first output; operators that are not listed count as one.

Additions, multiplications and the steps of polynomial approximations count as one each.
"""
