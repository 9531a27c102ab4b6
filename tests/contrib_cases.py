"""Test cases: nodes of ONNX Runtime's contrib operators."""

from __future__ import annotations

import numpy as np
from contrib_nodes import case, floats, ones

HEADS = {"num_heads": 2}
GROUPS = {"num_heads": 4, "kv_num_heads": 2}
SCALE = {"s": np.float32(0.1), "z": np.uint8(3)}
SIGNED = {"s": np.float32(0.1), "z": np.int8(3)}
WEIGHTS = {**SCALE, "i": np.int8(3), "w": ones("i1", 6, 4, 3, 3)}
WINDOW = {"strides": [2, 1], "pads": [1, 1, 1, 1]}
QUARTERS = {"K": 32, "bits": 4, "block_size": 32}
ORDERS = {"order_X": 1, "order_Y": 1}
LAYOUTS = ((0, "4,W,9"), (1, "W,9,4"))
"""Values of channels_last, and the sizes of the axes after the batch."""


RUN = [
    # Activations and normalisation.
    case("BiasGelu", "x=f:B,T,8 b=f:8"),
    case("FastGelu", "x=f:B,T,8 b=f:8"),
    case("FastGelu", "x=f:B,T,8"),
    case("Gelu", "x=f:B,T,8"),
    case("QuickGelu", "x=f:B,T,8", alpha=1.702),
    case("ScaledSiLU", "x=f:B,T,8"),
    case("GatedAdd", "x=f:B,T,8 z=f:B,T,8 g=f:B,T,1"),
    case("SampleOp", "x=f:B,T"),
    case("SkipLayerNormalization", "x=f:B,T,8 s=f:B,T,8 g=f:8 b=f:8", "y - - z"),
    case("SkipLayerNormalization", "x=f:B,T,8 s=f:B,T,8 g=f:8 - b=f:8"),
    case("SkipSimplifiedLayerNormalization", "x=f:B,T,8 s=f:B,T,8 g=f:8", "y - - z"),
    case("SimplifiedLayerNormalization", "x=f:B,T,8 g=f:8", domain=""),
    case("SimplifiedLayerNormalization", "x=f:B,5,8 g=f:5,8", domain="", axis=1),
    case("SimplifiedLayerNormalization", "x=h:B,T,8 g=h:8", "y d", domain=""),
    case("LayerNormalization", "x=f:B,T,8 g=f:8 b=f:8", "y m d", domain="", version=11),
    case("BranchwiseRMSNorm", "x=f:B,T,8 g=f:8", num_branches=1),
    case("GatedRMSNorm", "x=f:B,T,8 g=f:8 z=f:B,T,8"),
    # Embedding.
    case(
        "EmbedLayerNormalization",
        "x=I:B,T s=I:B,T w=f:9,8 p=f:9,8 t=f:9,8 g=f:8 b=f:8 m=I:B,T",
        "y n z",
        mask_index_type=1,
    ),
    case("EmbedLayerNormalization", "x=I:B,T - w=f:9,8 p=f:9,8 - g=f:8 b=f:8", "y n"),
    case(
        "QEmbedLayerNormalization",
        "x=I:B,T - w w - g g - s s - s s z z - z z",
        "y n",
        {"w": ones("u1", 9, 8), "g": ones("u1", 8), **SCALE},
    ),
    case("RotaryEmbedding", "x=f:B,T,8 p=L:B,T c=f:9,2 s=f:9,2", **HEADS),
    case(
        "MRotaryEmbedding", "x=f:B,T,8 p=L:3,B,T c=f:9,2 s=f:9,2", mrope_section=[1, 1, 0], **HEADS
    ),
    case(
        "GatherBlockQuantized",
        "d x=L:B,T s",
        constants={"d": ones("u1", 9, 16), "s": floats(9, 2)},
        bits=4,
        block_size=16,
    ),
    case(
        "GatherPacked",
        "d x=L:B,T",
        constants={"d": np.zeros((9, 18), np.uint8)},
        packed_type=2,
        K=32,
        output_dtype=1,
    ),
    # Products.
    *(
        case(
            "FusedMatMul", f"a=f:{a} b=f:{b}", transA=ta, transB=tb, transBatchA=ba, transBatchB=bb
        )
        for a, b, ta, tb, ba, bb in [
            ("B,T,8", "8,5", 0, 0, 0, 0),
            ("B,8,T", "8,5", 1, 0, 0, 0),
            ("B,8,T", "B,5,8", 1, 1, 0, 0),
            ("P,B,T,8", "P,B,W,8", 0, 1, 0, 0),
            ("T,B,P,8", "B,P,8,5", 0, 0, 1, 0),
            ("8,B,P,T", "B,P,8,5", 1, 0, 1, 0),
            ("B,P,T,8", "8,B,P,5", 0, 0, 0, 1),
            ("T,B,8", "5,B,8", 0, 1, 1, 1),
            ("8", "B,8,5", 1, 0, 0, 0),
        ]
    ),
    case("TransposeMatMul", "a=f:B,8,T b=f:8,5", transA=1),
    case("FusedGemm", "a=f:8,B b=f:8,5 c=f:5", transA=1, activation="Relu"),
    case("CDist", "a=f:B,8 b=f:T,8", metric="euclidean"),
    case(
        "MatMulNBits",
        "x=f:B,T,32 w s",
        constants={"w": ones("u1", 6, 1, 16), "s": floats(6)},
        N=6,
        **QUARTERS,
    ),
    case(
        "MatMulBnb4",
        "x=f:B,T,32 w s",
        constants={"w": ones("u1", 96), "s": floats(12)},
        K=32,
        N=6,
        block_size=16,
        quant_type=1,
    ),
    case(
        "MatMulFpQ4",
        "x=f:B,T,32 w s",
        constants={"w": ones("u1", 120), "s": np.array([32, 6])},
        blk_quant_type=0,
    ),
    case("DynamicQuantizeMatMul", "x=f:B,T,8 w s z", constants={"w": ones("i1", 8, 5), **SIGNED}),
    case("MatMulInteger16", "a=s:B,T,8 b=s:8,5"),
    case("MatMulIntegerToFloat", "a=u:B,T,8 b=i:8,5 s=f:1 t=f:1"),
    case(
        "QGemm",
        "a=u:B,8 s z w s i - s z",
        constants={**SCALE, "w": ones("i1", 8, 5), "i": np.int8(3)},
    ),
    case(
        "QGemm",
        "a=u:B,8 s z w s i",
        constants={**SCALE, "w": ones("i1", 5, 8), "i": np.int8(3)},
        transB=1,
    ),
    case("MoE", "x=f:T,8 r=f:T,4 w=f:4,16,8 - v=f:4,8,16", k=2, activation_type="relu"),
    # Images.
    case("FusedConv", "x=f:B,4,W,9 w=f:6,4,3,3 b=f:6", activation="Relu", **WINDOW),
    case("FusedConv", "x=f:B,4,W,9 w=f:4,4,1,1 b=f:4 z=f:B,4,W,9", activation="Relu"),
    *(
        case("QLinearConv", f"x=u:B,{x} s z w s i s z", "y", WEIGHTS, channels_last=last, **WINDOW)
        for last, x in LAYOUTS
    ),
    *(
        case(
            "QLinearAveragePool",
            f"x=u:B,{x} s z s z",
            "y",
            SCALE,
            channels_last=last,
            kernel_shape=[3, 3],
            strides=[2, 2],
            ceil_mode=1,
        )
        for last, x in LAYOUTS
    ),
    # Stride longer than the kernel: with ceil_mode a window may start beyond the input.
    *(
        case(
            "QLinearAveragePool",
            f"x=u:B,{x} s z s z",
            "y",
            SCALE,
            channels_last=last,
            kernel_shape=[2, 2],
            strides=[4, 4],
            ceil_mode=1,
        )
        for last, x in LAYOUTS
    ),
    *(
        case("QLinearGlobalAveragePool", f"x=u:B,{x} s z s z", "y", SCALE, channels_last=last)
        for last, x in LAYOUTS
    ),
    case("NhwcMaxPool", "x=u:B,W,9,4", kernel_shape=[3, 3], strides=[2, 2]),
    case("MaxpoolWithMask", "x=f:B,4,W,9 m=I:B,1,W,9", kernel_shape=[3, 3]),
    case(
        "ConvTransposeWithDynamicPads",
        "x=f:B,4,W,9 w=f:4,6,3,3 p",
        constants={"p": np.array([1, 0, 1, 0])},
        strides=[2, 2],
        output_padding=[1, 1],
    ),
    case(
        "CropAndResize",
        "x=f:B,4,W,9 r=f:T,4 i=I:T c",
        constants={"c": np.array([3, 5], np.int32)},
        values=lambda sizes: {"i": np.zeros(sizes["T"])},
    ),
    case("GridSample", "x=f:B,4,W,9 g=f:B,T,6,2"),
    case("CausalConvWithState", "x=f:B,4,T w=f:4,1,3 - p=f:B,4,2", "y z"),
    case("CausalConvWithState", "x=f:B,4,T w", "y z", {"w": floats(4, 1, 3)}),
    case("ImageScaler", "x=f:B,3,T,T", domain="", version=9, bias=[1.0, 2.0, 3.0], scale=2.0),
    case("Affine", "x=f:B,T", domain="", version=9, alpha=2.0),
    case("Scale", "x=f:B,T", domain="", version=9, scale=2.0),
    case("ScaledTanh", "x=f:B,T", domain="", version=9, alpha=2.0, beta=1.0),
    case("ParametricSoftplus", "x=f:B,T", domain="", version=9, alpha=2.0, beta=1.0),
    # Quantised.
    case("QLinearAdd", "a=u:B,T,8 s z b=u:T,8 s z s z", "y", SCALE),
    case("QLinearMul", "a=i:B,1,8 s z b=i:T,8 s z s z", "y", SIGNED),
    case("QLinearLeakyRelu", "x=u:B,T s z s z", "y", SCALE),
    case("QLinearSigmoid", "x=i:B,T s z s z", "y", SIGNED),
    case("QLinearSoftmax", "x=u:B,T s z s o", "y", {**SCALE, "o": np.uint8(0)}, axis=-1, opset=13),
    case("QLinearSoftmax", "x=u:B,T,5 s z s o", "y", {**SCALE, "o": np.uint8(0)}, axis=1, opset=12),
    case("QLinearConcat", "s z a=u:B,T,4 s z b=u:B,P,4 s z", "y", SCALE, axis=1),
    case("QLinearConcat", "s z a=i:B,T s z", "y", SIGNED, axis=1),
    case("QLinearWhere", "c=b:T,1 a=u:B,1,4 s z b=u:4 s z s z", "y", SCALE),
    case("QuantizeLinear", "x=f:B,T s z", "y", SIGNED),
    case("QuantizeLinear", "x=f:B,T s z", "y", {**SCALE, "z": np.uint16(3)}),
    case("DequantizeLinear", "x=u:B,T s z", "y", SCALE),
    case(
        "DynamicQuantizeLSTM",
        "x=f:T,B,4 w r - - - - - s z s z",
        "y h c",
        {
            "w": ones("i1", 2, 4, 12),
            "r": ones("i1", 2, 3, 12),
            "s": floats(2),
            "z": np.zeros(2, np.int8),
        },
        hidden_size=3,
        direction="bidirectional",
    ),
    # Attention.
    case("Attention", "x=f:B,T,8 w=f:8,24 b=f:24", "y p", **HEADS),
    case(
        "Attention", "x=f:B,T,6 w=f:6,24 b=f:24 - p=f:2,B,2,P,4", "y q", unidirectional=1, **HEADS
    ),
    case("Attention", "x=f:B,T,6 w=f:6,20 b=f:20", qkv_hidden_sizes=[8, 8, 4], **HEADS),
    case(
        "QAttention",
        "x=u:B,T,8 w b s s - z i p=f:2,B,2,P,4",
        "y q",
        {"w": ones("i1", 8, 24), "b": floats(24), "i": np.int8(3), **SCALE},
        unidirectional=1,
        **HEADS,
    ),
    case("MultiHeadAttention", "q=f:B,T,8 k=f:B,P,8 v=f:B,P,12", "y k1 v1", **HEADS),
    case("MultiHeadAttention", "q=f:B,T,8 k=f:B,2,P,4 v=f:B,2,P,4", **HEADS),
    case(
        "MultiHeadAttention",
        "q=f:B,T,8 k=f:B,T,8 v=f:B,T,8 - - - c=f:B,2,P,4 d=f:B,2,P,4",
        "y k1 v1 scores=f",
        **HEADS,
    ),
    case(
        "DecoderMaskedMultiHeadAttention",
        "q=f:B,1,8 k=f:B,1,8 v=f:B,1,8 - - c=f:B,2,9,4 d=f:B,2,9,4 p",
        "y k1 v1",
        {"p": np.array([2], np.int32)},
        past_present_share_buffer=1,
        **HEADS,
    ),
    case("DecoderMaskedMultiHeadAttention", "q=f:B,1,8 k=f:B,2,P,4 v=f:B,2,P,4", **HEADS),
    case(
        "LinearAttention",
        "q=f:B,T,16 k=f:B,T,8 v=f:B,T,12 p=f:B,2,4,6",
        "y s",
        q_num_heads=4,
        kv_num_heads=2,
        update_rule="linear",
    ),
    case(
        "LinearAttention",
        "q=f:B,T,8 k=f:B,T,8 v=f:B,T,12",
        "y s",
        q_num_heads=2,
        kv_num_heads=2,
        update_rule="linear",
    ),
    case("LinearAttentionGate", "a=f:B,T,2 d=f:2 s=f:2 b=f:B,T,2", "y z"),
    # Others.
    case("Inverse", "x=f:B,4,4", values=lambda s: {"x": np.tile(np.eye(4), (s["B"], 1, 1))}),
    case("Trilu", "x=f:B,T,8"),
    case("GatherND", "x=f:B,T,8 i=L:P,1", values=lambda s: {"i": np.zeros((s["P"], 1))}),
    case("ExpandDims", "x=f:B,T a", constants={"a": np.array(1, np.int32)}),
    case("Pad", "x=f:B,T p", constants={"p": np.array([0, 1, 0, 2])}),
    case("Range", "a b d", constants={"a": np.int64(2), "b": np.int64(9), "d": np.int64(3)}),
    case("Range", "a b", constants={"a": np.float32(2), "b": np.float32(9.5)}),
    case("UnfoldTensor", "x=f:B,W", dim=1, size=3, step=2),
    case("UnfoldTensor", "x=f:B,W,2", dim=-2, size=1, step=2),
    case("MurmurHash3", "x=I:B,T"),
    case("MurmurHash3", "x=I:B,T", positive=0),
    case("NGramRepeatBlock", "x=L:B,T s=f:B,9", ngram_size=2),
    case(
        "AttnLSTM",
        "x=f:T,B,4 w=f:1,12,10 r=f:1,12,3 - - - - - q=f:1,3,5 m=f:1,6,5 v=f:1,5 z=f:B,T,6",
        "y h c",
        hidden_size=3,
    ),
]
"""Operators that ONNX Runtime runs on a CPU."""

LOADED = [
    case("BiasAdd", "x=f:B,T,8 b=f:8 s=f:B,T,8"),
    case("BiasSoftmax", "x=f:B,T,8 b=f:B,1,8", axis=2, is_inner_broadcast=0),
    case("BiasDropout", "x=f:B,T,8 b=f:8", "y m"),
    case("BitmaskDropout", "x=f:B,T,8"),
    case("BitmaskBiasDropout", "x=f:B,T,8 b=f:8"),
    case("BiasSplitGelu", "x=f:B,T,8 b=f:8"),
    case("SwiGLU", "x=h:B,T,8"),
    case("SwiGLU", "x=h:B,T,8 z=h:B,T,8"),
    case("GroupNorm", "x=f:B,W,W,8 g=f:8 b=f:8", groups=2, activation=0),
    case("SkipGroupNorm", "x=f:B,W,W,8 g=f:8 b=f:8 s=f:B,1,1,8", "y z", groups=2, activation=0),
    case(
        "GemmaRotaryEmbedding", "e=f:B,T,4 q=h:B,2,T,4 r=h:B,2,T,4 k=h:B,2,T,4 s=h:B,2,T,4", "y z"
    ),
    case("TorchEmbedding", "w=f:9,8 x=L:B,T"),
    case("RelativePositionBias", "t=f:9,2 q q", constants={"q": np.int64(5)}, max_distance=8),
    case(
        "GatedRelativePositionBias",
        "q=f:B,T,8 b=f:8 r=f:1,2,T,T w=f:4,8 c=f:8 e=f:1,2,1,1",
        **HEADS,
    ),
    case("FusedMatMulActivation", "a=f:B,8,T b=f:8,5", transA=1, activation="Relu"),
    case(
        "MatMulNBitsQLoRA",
        "x=h:B,T,32 w=u:6,1,16 s=h:6,1 a=u:4,1,16 b=h:4,1 c=u:6,1,16 d=h:6,1",
        N=6,
        lora_bits=4,
        lora_block_size=32,
        **QUARTERS,
    ),
    case("MatMulPacked", "x=h:B,T,32 w=u:6,18", K=32, N=6, packed_type=2),
    case(
        "MoEPacked",
        "x=h:B,T,32 r=h:T,4 a=u:4,8,18 - d=u:4,32,18",
        k=1,
        gate_type=2,
        down_type=2,
        activation_type="relu2",
    ),
    case("GemmFastGelu", "x=f:B,T,8 w=f:8,5"),
    case("GemmFloat8", "x=f:B,8 w=f:8,5", dtype=10),
    case("GemmFloat8", "x=f:B,8 w=f:8,5"),
    case(
        "MatMulNBitsMlp",
        "x=h:B,T,32 s=h:B,T,32 n=h:32 g=u:6,1,16 c=h:6 - u=u:6,1,16 d=h:6",
        "y z",
        N=6,
        activation="silu",
        **QUARTERS,
    ),
    case(
        "MatMulNBitsQkv",
        "x=h:B,T,32 s=h:B,T,32 n=h:32 g=u:6,1,16 c=h:6 - u=u:3,1,16 d=h:3 - v=u:3,1,16 e=h:3",
        "q k v1 z",
        Nq=6,
        Nkv=3,
        **QUARTERS,
    ),
    case("QOrderedMatMul", "a=i:B,T,8 s=f: b=i:8,5 t=f: u=f:", order_A=1, order_B=0, order_Y=1),
    case("QOrderedGelu", "a=i:B,T,8 s=f: t=f:", **ORDERS),
    case("QOrderedLayerNormalization", "a=i:B,T,8 s=f: g=f:8 b=f:8 t=f:", **ORDERS),
    case("MulInteger", "a=u:B,T - b=u:T"),
    case("MatMulBlockQuantizedFp4Weight", "a=h:B,T,32 b=u:6,16 s=u:6,2 z=f:"),
    case("MatMulBlockQuantizedFp8Weight", "a=h:B,T,32 b=e:6,32 s=f:6,1"),
    case("NhwcConv", "x=f:B,W,9,4 w=f:6,4,3,3", **WINDOW),
    case("NhwcFusedConv", "x=h:B,W,9,4 w=h:6,4,3,3 b=h:6", activation="Relu", **WINDOW),
    case("QLinearReduceMean", "x=u:B,T,8 s z s z", "y", SCALE, axes=[1], keepdims=0),
    case("DequantizeWithOrder", "x=i:B,T s=f:", to=10, order_input=1, order_output=1),
    case("QuantizeWithOrder", "x=f:B,T s=f:", order_input=1, order_output=1),
    case(
        "DecoderMaskedSelfAttention",
        "x=f:B,1,8 w=f:8,24 b=f:24 - p=f:2,B,2,P,4 - l=I:",
        "y q",
        **HEADS,
    ),
    case(
        "LongformerAttention",
        "x=f:B,T,8 w=f:8,24 b=f:24 m=f:B,T g=f:8,24 c=f:24 o=I:B,T",
        window=2,
        **HEADS,
    ),
    case(
        "QOrderedLongformerAttention",
        "x=i:B,T,8 a=f: w=i:8,24 b=f: c=f:24 d=f: e=f: m=h:B,T g=i:8,24 h=f: i=f:24 j=f: o=I:B,T "
        "k=f:",
        window=2,
        order_input=1,
        order_output=1,
        order_weight=1,
        order_global_weight=1,
        **HEADS,
    ),
    case(
        "DecoderAttention",
        "q=f:T,B,8 k=f:T,B,8 w=f:8,8 v=f:8,16 b=f:24 - - - a=b: c=b: d=b: e=b:",
        **HEADS,
    ),
    *(
        case(
            "SparseAttention",
            f"{queries} c=f:B,2,16,8 d=f:B,2,16,8 r=I:1,2 o=I:1,1 t=I: n=I:B",
            "y k1 v1",
            sparse_block_size=16,
            **GROUPS,
        )
        for queries in ("q=f:B,T,32 k=f:B,T,16 v=f:B,T,16", "q=f:B,T,64 - -")
    ),
    case("MultiHeadAttention", "q=f:B,T,2,3,4", **HEADS),
    case("MultiHeadAttention", "q=f:B,T,8 k=f:B,P,2,2,4", **HEADS),
    case("HyperConnectionPostMix", "x=f:B,T,2,8 o=f:B,T,8 p=f:B,T,2", num_branches=2),
    case(
        "QMoE",
        "x=f:T,32 r=f:T,4 a=u:4,8,16 s=f:4,8 - c=u:4,32,4 e=f:4,32",
        k=1,
        activation_type="relu",
        expert_weight_bits=4,
    ),
    case("MemcpyFromHost", "x=f:B,T", domain=""),
    case("MemcpyToHost", "x=f:B,T", domain=""),
]
"""Cases without a CPU kernel, whose shapes ONNX Runtime infers on loading."""
