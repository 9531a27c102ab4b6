"""Operation counts compared with counts by hand, and a check that no operator is missing."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from builders import make_model, node, run_onnx, value
from onnxruntime.capi import onnxruntime_pybind11_state as onnxruntime_state

from dask_onnx.analysis.flops import COUNTED, flops_of
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import load_onnx

SCALAR = (1,)


def count(op, inputs, result=None, *, domain="", constants=None, **attributes):
    """Return the operations of one node.

    None is an input that is left out, or a result of unknown shape; `constants` are the values of
    scalar inputs by position.
    """
    names = ["" if shape is None else f"x{i}" for i, shape in enumerate(inputs)]
    proto = onnx.helper.make_node(op, names, ["y"], domain=domain, **attributes)
    shapes = {name: shape for name, shape in zip(names, inputs, strict=True) if name}
    if result is not None:
        shapes["y"] = result
    specs = {n: TensorSpec(n, np.dtype(np.float32), tuple(s)) for n, s in shapes.items()}
    values = {f"x{i}": float(v) for i, v in (constants or {}).items()}
    return flops_of(proto, specs, values.get)


def case(flops, op, inputs, result=None, *, words="", **options):
    """Return a parameter set; `words` tell apart cases of one operator."""
    return pytest.param(flops, op, inputs, result, options, id=f"{op} {words}".strip())


PRODUCTS = [
    case(2 * (3 * 2 * 7 * 7) * 4 * 9, "Conv", [(3, 4, 11, 11), (2, 4, 3, 3)], (3, 2, 7, 7),
         words="dilated", dilations=[2, 2]),
    case(2 * (6 * 4 * 4) * 1 * 9, "Conv", [(1, 6, 6, 6), (6, 1, 3, 3)], (1, 6, 4, 4),
         words="depthwise", group=6),
    # A kernel that spans 5 has 7 positions on 9 elements padded by 1 on both sides.
    case(2 * (2 * 6 * 7 * 7) * 4 * 9, "NhwcFusedConv", [(2, 9, 9, 4), (6, 4, 3, 3)],
         words="of unknown result", dilations=[2, 2], pads=[1, 1, 1, 1]),
    case(2 * (2 * 6 * 4 * 4) * 4 * 9, "FusedConv", [(2, 4, 9, 9), (6, 4, 3, 3)],
         strides=[2, 2]),
    case(2 * (6 * 5 * 5) * 4 * 9, "NhwcConv", [(1, 9, 9, 4), (6, 4, 3, 3)],
         strides=[2, 2], auto_pad="SAME_UPPER"),
    # Each of 2 * 4 * 5 * 5 elements contributes to 3 channels of its group, 2 x 2 pixels each.
    case(2 * (2 * 4 * 5 * 5) * 3 * 4, "ConvTranspose", [(2, 4, 5, 5), (4, 3, 2, 2)],
         (2, 6, 10, 10), words="grouped", group=2, strides=[2, 2]),
    case(2 * (4 * 25) * 3 * 4, "ConvTransposeWithDynamicPads", [(1, 4, 5, 5), (4, 3, 2, 2), (8,)]),
    case(2 * (8 * 16) * 3 * 9 + 8 * 16 * 3 * 9, "DeformConv",
         [(1, 3, 6, 6), (8, 3, 3, 3), (1, 18, 4, 4)], (1, 8, 4, 4)),
    case(2 * (2 * 6 * 10) * 4, "CausalConvWithState", [(2, 6, 10), (6, 1, 4)], (2, 6, 10)),
    case(2 * (10 * 6) * 4, "VarlenCausalConvWithState", [(10, 6), (6, 1, 4), (3,)]),
    case(2 * (2 * 3) * 5 * 7 * 4, "MatMul", [(2, 1, 5, 7), (3, 7, 4)], (2, 3, 5, 4),
         words="broadcast"),
    case(2 * 3 * 5 * 7 * 4, "MatMul", [(5, 7), (3, 7, 4)], words="broadcast, of unknown result"),
    case(2 * 7 * 4, "MatMul", [(7,), (7, 4)], (4,), words="of a vector"),
    case(2 * 3 * 5 * 7, "MatMul", [(3, 5, 7), (7,)], (3, 5), words="with a vector"),
    case(2 * 5 * 7 * 4, "MatMul", [(5, 7), None], (5, 4), words="of unknown weights"),
    case(2 * 5 * 7 * 3, "Gemm", [(7, 5), (3, 7)], (5, 3), transA=1, transB=1),
    # transBatchA: (rows, batch, shared).
    case(2 * 5 * 3 * 7 * 4, "FusedMatMul", [(5, 3, 7), (3, 7, 4)], transBatchA=1),
    case(2 * 3 * 5 * 7 * 4, "TransposeMatMul", [(3, 7, 5), (3, 7, 4)], transA=1),
    case(2 * 5 * 7 * 4, "FusedMatMulActivation", [(5, 7), (4, 7)], transB=1, activation="Relu"),
    case(2 * 5 * 7 * 4, "GemmFastGelu", [(5, 7), (7, 4)]),
    case(2 * 5 * 7 * 4, "GemmFloat8", [(5, 7), (4, 7)], transB=1),
    case(2 * 5 * 7 * 4, "MatMulInteger16", [(5, 7), (7, 4)]),
    case(2 * 5 * 7 * 4, "SparseToDenseMatMul", [(5, 7), (7, 4)]),
    case(2 * 2 * 5 * 7 * 4, "QOrderedMatMul", [(2, 5, 7), SCALAR, (7, 4)]),
    case(2 * 5 * 7 * 4, "QLinearMatMul", [(5, 7), SCALAR, SCALAR, (7, 4)], (5, 4)),
    case(2 * 5 * 64 * 9, "MatMulNBits", [(5, 64), (9, 2, 16)], K=64, N=9),
    case(2 * 5 * 64 * 2 * 9, "MatMulNBitsMlp", [(5, 64)], K=64, N=9),
    case(2 * 5 * 64 * (9 + 2 * 3), "MatMulNBitsQkv", [(5, 64)], K=64, Nq=9, Nkv=3),
    case(2 * 5 * (64 * 9 + 64 * 4 + 4 * 9), "MatMulNBitsQLoRA",
         [(5, 64), (9, 2, 16), (9, 2), (4, 2, 16), (4, 2), (9, 1, 16), (9, 1)], K=64, N=9),
    case(2 * 5 * 64 * 9, "MatMulPacked", [(5, 64), (9, 40)], K=64, N=9),
    case(2 * 5 * 64 * 9, "MatMulBnb4", [(5, 64), (9 * 32,)], K=64, N=9),
    case(2 * 5 * 9 * 64, "MatMulBnb4", [(5, 9), (9 * 32,)], words="backward", K=64, N=9, transB=0),
    # 9 columns of 3 blocks of 32, of which the last is not full, 20 bytes each.
    case(2 * 5 * 70 * 9, "MatMulFpQ4", [(5, 70), (9 * 3 * 20,), (2,)], blk_quant_type=0),
    case(2 * 5 * 64 * 9, "MatMulBlockQuantizedFp4Weight", [(5, 64), (9, 32), (9, 4)]),
    case(2 * 5 * 64 * 9, "MatMulBlockQuantizedFp8Weight", [(5, 64), (9, 64), (9, 4)]),
    case(2 * 5 * 7 * 4, "CDist", [(5, 7), (4, 7)]),
    case(2 * 5 * 7 * 4, "RouterGateUpProj", [(5, 7), (7, 4)], router_size=2),
    # Two of 16 experts, each from 8 to 32 and back.
    case(2 * (3 * 4) * 2 * (8 * 32 + 32 * 8), "MoE",
         [(3, 4, 8), (12, 16), (16, 32, 8), None, (16, 8, 32)], k=2),
    case(2 * 12 * 2 * 3 * 8 * 32, "MoE",
         [(12, 8), (12, 16), (16, 32, 8), None, (16, 8, 32), None, (16, 32, 8)], k=2,
         words="with three layers"),
    case(2 * 12 * 4 * 2 * 8 * 32, "MoE", [(12, 8), (12, 4), (4, 32, 8), None, (4, 8, 32)], k=9,
         words="with fewer experts than asked for"),
    case(2 * 12 * 2 * (8 * 64 + 32 * 8), "QMoE",
         [(12, 8), (12, 16), (16, 64, 4), (16, 64), None, (16, 8, 16)], k=2,
         words="with gates beside"),
    case(2 * 12 * 1 * (8 * 32 + 32 * 8), "QMoE",
         [(12, 8), (12, 16), (16, 32, 8), (16, 32), None, (16, 8, 16)],
         words="of mixed bits", fc1_expert_weight_bits=8),
    case(2 * 12 * 2 * 3 * 8 * 32, "MoEPacked",
         [(12, 8), (12, 16), (16, 32, 5), (16, 32, 5), (16, 8, 20)], k=2),
    case(2 * 5 * 3 * (24 * 7 + 24 * 6), "LSTM", [(5, 3, 7), (1, 24, 7), (1, 24, 6)]),
    case(2 * 5 * 3 * 2 * (24 * 7 + 24 * 6), "LSTM", [(3, 5, 7), (2, 24, 7), (2, 24, 6)],
         words="batch first, both directions", layout=1, direction="bidirectional"),
    case(2 * 5 * 3 * (18 * 7 + 18 * 6), "GRU", [(5, 3, 7), (1, 18, 7), (1, 18, 6)]),
    case(2 * 5 * 3 * (24 * 7 + 24 * 6), "DynamicQuantizeLSTM", [(5, 3, 7), (1, 7, 24), (1, 6, 24)]),
    # 5 steps of 3 rows, a query of 4, a memory of 10 items of 8.
    case(2 * 15 * (24 * 7 + 24 * 6 + 6 * 4 + 14 * 6) + 15 * 10 * (9 * 4 + 2 * 8) + 2 * 30 * 8 * 4,
         "AttnLSTM",
         [(5, 3, 7), (1, 24, 7), (1, 24, 6), None, None, None, None, None, (1, 6, 4), (1, 8, 4),
          (1, 4), (3, 10, 8), None, (1, 14, 6)]),
    case(2 * 2 * 3 * 4 * 5, "Einsum", [(2, 3, 4), (4, 5)], equation="bij,jk->bik"),
    case(2 * 2 * 3 * 4 * 5, "Einsum", [(2, 3, 4), (2, 4, 5)], equation="...ij,...jk->...ik",
         words="with an ellipsis"),
    case(2 * 3 * 4 * 5, "Einsum", [(3, 4), (4, 5)], equation="ij,jk", words="without an arrow"),
    case(2 * 3 * 4 * 5 + 2 * 3 * 5 * 6, "Einsum", [(3, 4), (4, 5), (5, 6)],
         equation="ij, jk, kl -> il", words="of three"),
    case(3 * 4, "Einsum", [(3, 4)], equation="ij->ji", words="of one"),
    case(2 * (2 * 5) * 6 * (9 * 3 * 4), "WordConvEmbedding", [(2, 5, 8), (9, 1, 3, 4)]),
    case(2 * 5 * (16 * 2 + 2 * 16 + 16 * 4), "HyperConnectionLowRankMix",
         [(5, 16), (16,), (16, 2), (2, 16), (16, 4)], num_branches=4),
    case(2 * 5 * 16 * 4, "HyperConnectionPostMix", [(5, 16), (5, 4), (5, 4)], num_branches=4),
]  # fmt: skip

CACHE = (2, 2, 6, 8)
"""Shape of a key cache: 2 rows, 2 heads, 6 tokens of size 8."""
ATTENTION = [
    # 2 rows, 4 heads, 5 queries of size 8, 5 keys and 6 of the past, values of size 3.
    case(2 * (2 * 4 * 5 * (5 + 6)) * (8 + 3), "Attention",
         [(2, 4, 5, 8), (2, 2, 5, 8), (2, 2, 5, 3), None, CACHE, (2, 2, 6, 3)], (2, 4, 5, 3),
         words="of groups, with a past"),
    case(2 * (2 * 4 * 5 * 7) * (8 + 3), "Attention",
         [(2, 5, 4 * 8), (2, 7, 2 * 8), (2, 7, 2 * 3)], (2, 5, 4 * 3),
         words="heads side by side", q_num_heads=4, kv_num_heads=2),
    case(2 * (2 * 4 * 5 * 7) * (8 + 3), "FlexAttention",
         [(2, 4, 5, 8), (2, 2, 7, 8), (2, 2, 7, 3)], (2, 4, 5, 3)),
    case(2 * 2 * 5 * 32 * 96 + 4 * (2 * 5 * (5 + 6)) * 32, "Attention",
         [(2, 5, 32), (32, 96), None, None, (2, 2, 4, 6, 8)], domain="com.microsoft",
         words="of ONNX Runtime, with a past", num_heads=4),
    case(2 * 2 * 5 * 32 * 80 + 2 * (2 * 5 * 5) * (32 + 16), "Attention", [(2, 5, 32), (32, 80)],
         domain="com.microsoft", words="with sizes apart", qkv_hidden_sizes=[32, 32, 16]),
    case(2 * 2 * 5 * 32 * 96 + 4 * (2 * 5 * 5) * 32, "QAttention", [(2, 5, 32), (32, 96)]),
    case(2 * 2 * 32 * 96 + 4 * (2 * (1 + 6)) * 32, "DecoderMaskedSelfAttention",
         [(2, 1, 32), (32, 96), None, None, (2, 2, 4, 6, 8)]),
    case(2 * 7 * 32 * 96 + 4 * (7 * 5) * 32, "PackedAttention", [(7, 32), (32, 96), None, (2, 5)]),
    case(4 * 2 * 5 * (5 + 6) * 32, "MultiHeadAttention",
         [(2, 5, 32), (2, 5, 32), (2, 5, 32), None, None, None, (2, 4, 6, 8)], num_heads=4),
    case(4 * 2 * 5 * 5 * 32, "MultiHeadAttention", [(2, 5, 4, 3, 8)], words="all in one",
         num_heads=4),
    case(4 * 2 * 5 * 7 * 32, "MultiHeadAttention", [(2, 5, 32), (2, 7, 4, 2, 8)],
         words="keys and values in one", num_heads=4),
    case(4 * 2 * 5 * (5 + 6) * 32, "GroupQueryAttention",
         [(2, 5, 32), (2, 5, 16), (2, 5, 16), CACHE], num_heads=4, kv_num_heads=2),
    case(4 * 2 * 5 * (5 + 6) * 32, "GroupQueryAttention", [(2, 5, 64), None, None, CACHE],
         words="all in one", num_heads=4, kv_num_heads=2),
    case(4 * 2 * (1 + 6) * 32, "DecoderMaskedMultiHeadAttention",
         [(2, 1, 32), (2, 1, 32), (2, 1, 32), None, None, (2, 4, 6, 8)], num_heads=4),
    case(4 * 2 * 9 * 32, "DecoderMaskedMultiHeadAttention",
         [(2, 1, 32), (2, 4, 9, 8), (2, 4, 9, 8)], words="of an encoder", num_heads=4),
    case(4 * 7 * 5 * 32, "PackedMultiHeadAttention", [(7, 4, 3, 8), None, None, None, (2, 5)]),
    # 3 blocks of 16 keys for a sequence.
    case(4 * 7 * 48 * 32, "PagedAttention",
         [(7, 32), (7, 16), (7, 16), (9, 16, 2, 8), (9, 16, 2, 8), (3,), (2,), (2, 3)],
         num_heads=4, kv_num_heads=2),
    # 8 blocks of 16 keys in 4 rows: 2 for a query.
    case(4 * 2 * 64 * 32 * 32, "SparseAttention",
         [(2, 64, 32), (2, 64, 16), (2, 64, 16), CACHE, CACHE, (1, 5), (1, 8)],
         num_heads=4, kv_num_heads=2, sparse_block_size=16),
    case(4 * 10 * (3 + 4) * 32, "DynamicSparseAttention",
         [(2, 5, 32), (2, 5, 16), (2, 5, 16), CACHE, CACHE, None, None, (10, 3)],
         num_heads=4, kv_num_heads=2, attention_mode="local_plus_selected", local_window_size=4),
    case(4 * 10 * 3 * 32, "SparsePagedAttention",
         [(10, 32), (10, 16), (10, 16), *[None] * 6, (10, 3)], num_heads=4, kv_num_heads=2),
    case(2 * 10 * (5 + 6) * 32, "SparseAttentionIndexer",
         [(2, 5, 32), (2, 5, 8), *[None] * 5, (2, 6, 8)]),
    case(2 * 10 * 6 * 32, "PackedSparseAttentionIndexer",
         [(10, 32), (10, 8), *[None] * 10, (2, 6, 8)]),
    case(2 * 2 * 64 * 32 * 2 * 96 + 4 * (2 * 64 * (2 * 8 + 1)) * 32, "LongformerAttention",
         [(2, 64, 32), (32, 96), (96,), (2, 64), (32, 96)], num_heads=4, window=8),
    case(2 * 2 * 5 * 32 * 96 + 4 * 2 * 5 * 5 * 32, "QOrderedAttention",
         [(2, 5, 32), *[SCALAR] * 4, (32, 32), (32, 32), (32, 32)]),
    # Time comes first: 5 queries and 7 keys of 2 rows.
    case(2 * 2 * (5 * 32 * 32 + 7 * 32 * 64) + 4 * (2 * 5 * (7 + 6)) * 32, "DecoderAttention",
         [(5, 2, 32), (7, 2, 32), (32, 32), (32, 64), (96,), None, (2, 4, 6, 8)]),
    # 4 heads of queries and 2 of keys, states of 8 x 6: updated in 5 operations, read in 2.
    case(10 * 8 * 6 * (2 * 5 + 4 * 2), "LinearAttention",
         [(2, 5, 4 * 8), (2, 5, 2 * 8), (2, 5, 2 * 6)], q_num_heads=4, kv_num_heads=2),
    case(10 * 8 * 6 * (2 * 2 + 4 * 2), "LinearAttention",
         [(2, 5, 4 * 8), (2, 5, 2 * 8), (2, 5, 2 * 6)], words="without gates",
         q_num_heads=4, kv_num_heads=2, update_rule="linear"),
    case(10 * 4 * 8 * 6 * 7, "GatedDeltaNet", [(10, 2, 8), (10, 2, 8), (10, 4, 6)]),
    case(10 * 4 * 8 * 6 * 7, "GatedDeltaNet", [(10, 56), *[None] * 5, (2, 4, 6, 8)],
         words="all in one"),
    case(3 * (5 * 2 * 16 * 8 + 2 * 48 * 4), "Mamba2Verify",
         [(3, 70), (2, 48, 3), (2, 2, 16, 8), (48, 4)]),
    case(2 * (2 * 5 * 32) * 6 + 3 * (2 * 4 * 5 * 5), "GatedRelativePositionBias",
         [(2, 5, 32), (32,), None, (8, 6)], num_heads=4),
]  # fmt: skip

BLUESTEIN = 2 * 5 * 2048 * 11
"""Operations for 1000 points: two transforms of 2048 points, the power of two above 1999."""
OTHERS = [
    case(3 * 5 * 1024 * 10, "DFT", [(3, 1024, 1)], (3, 1024, 2)),
    case(3 * 5 * 1024 * 10, "DFT", [(3, 1024, 1)], (3, 513, 2), words="onesided", onesided=1),
    case(3 * 5 * 1024 * 10, "DFT", [(3, 513, 2)], (3, 1024, 1), words="of half a spectrum",
         onesided=1, inverse=1),
    case(3 * BLUESTEIN, "DFT", [(3, 1000, 1)], (3, 1000, 2), words="no power of two"),
    case(3 * 5 * 2048 * 11, "DFT", [(3, 1000, 1), ()], (3, 2048, 2), words="padded"),
    case(3 * 5 * 512 * 9, "DFT", [(3, 1000, 1), ()], words="cut", constants={1: 512}),
    case(16 * 3 * 5 * 8 * 3, "DFT", [(3, 8, 16, 1), None, ()], (3, 8, 16, 2),
         words="over another axis", constants={2: 1}),
    case(16 * 3 * 5 * 8 * 3, "DFT", [(3, 8, 16, 1)], (3, 8, 16, 2),
         words="over an axis of opset 17", axis=1),
    case(2 * 11 * (256 + 5 * 256 * 8), "STFT", [(2, 1536, 1), (), (256,)], (2, 11, 129, 2)),
    case(2 * 11 * (256 + 5 * 256 * 8), "STFT", [(2, 1536, 1), (), None, ()],
         words="of unknown result", constants={1: 128, 3: 256}),
    case(5 * (400 + 2 * 5 * 1024 * 10), "STFT", [(1, 1040, 1), (), (400,)], (1, 5, 201, 2),
         words="no power of two"),
    case(3 * 5 * 1024 * 10, "Rfft", [(3, 1024)], signal_ndim=1),
    case(3 * 5 * 1024 * 10, "Irfft", [(3, 513, 2)], signal_ndim=1, onesided=1),
    case(8 * 9 * (20 * 16 * 7 * 7), "RoiAlign", [(1, 16, 50, 50), (20, 4), (20,)], (20, 16, 7, 7),
         output_height=7, output_width=7, sampling_ratio=3),
    case(8 * 4 * (20 * 16 * 7 * 7), "RoiAlign", [(1, 16, 50, 50), (20, 4), (20,)], (20, 16, 7, 7),
         words="by the size of regions", output_height=7, output_width=7),
    case(20 * 16 * 25 * 25, "MaxRoiPool", [(1, 16, 50, 50), (20, 5)], pooled_shape=[7, 7]),
    case((5 + 12) * 2 * 8 * 9, "LRN", [(2, 8, 3, 3)], (2, 8, 3, 3), size=5),
    case(2 * 9 * (2 * 8 * 16), "LpPool", [(2, 8, 6, 6)], (2, 8, 4, 4), kernel_shape=[3, 3]),
    case(2 * 2 * 8 * 36, "GlobalLpPool", [(2, 8, 6, 6)], (2, 8, 1, 1)),
    case(9 * (2 * 8 * 16), "NhwcMaxPool", [(2, 6, 6, 8)], kernel_shape=[3, 3]),
    case(4 * (2 * 8 * 9), "QLinearAveragePool", [(2, 5, 5, 8)], kernel_shape=[2, 2],
         strides=[2, 2], ceil_mode=1, channels_last=1),
    case(4 * (2 * 8 * 4), "QLinearAveragePool", [(2, 8, 5, 5)], words="channels first",
         kernel_shape=[2, 2], strides=[2, 2]),
    case(2 * 8 * 36, "QLinearGlobalAveragePool", [(2, 6, 6, 8)], channels_last=1),
    case(3 * (1024 + 5 * 10), "TopK", [(3, 1024), SCALAR], (3, 5)),
    case(3 * (1024 + 5 * 10), "TopK", [(1024, 3), SCALAR], (5, 3), words="over columns", axis=0),
    case(1024 * 10, "Unique", [(1024,)]),
    # For each of 2 images: 1024 boxes of one class, of which 100 are kept.
    case(2 * (1024 + 1024 * 10 + 1024 * 100 * 8), "NonMaxSuppression",
         [(2, 1024, 4), (2, 1, 1024), SCALAR], constants={2: 100}),
    case(2 * (1024 + 1024 * 10 + 1024 * 1024 * 8), "NonMaxSuppression",
         [(2, 1024, 4), (2, 1, 1024), SCALAR], words="without a bound"),
    # A box is of one of 64 classes.
    case(64 * (1024 + 16 * 4 + 16 * 16 * 8), "NonMaxSuppression",
         [(1, 1024, 4), (1, 64, 1024), SCALAR, SCALAR, SCALAR], words="with a threshold"),
    case(3 * 2 * 6**3 // 3, "Det", [(3, 6, 6)], (3,)),
    case(3 * 2 * 6**3, "Inverse", [(3, 6, 6)]),
    case(6 * 2 * 8 * 9, "MeanVarianceNormalization", [(2, 8, 3, 3)], (2, 8, 3, 3)),
    case(8 * 2 * 8 * 9, "GroupNorm", [(2, 3, 3, 8), (8,), (8,)], groups=4, activation=0),
    case(10 * 2 * 8 * 9, "SkipGroupNorm", [(2, 3, 3, 8), (8,), (8,), (2, 3, 3, 8)], groups=4),
    case(10 * 2 * 5 * 32, "EmbedLayerNormalization", [(2, 5), (2, 5), (100, 32), (64, 32)]),
    case(16 * 2 * 5 * 32, "QEmbedLayerNormalization", [(2, 5), (2, 5), (100, 32), (64, 32)]),
    case(3 * 8 * 8 * (2 * 4 - 1), "Resize", [(1, 3, 4, 4)], (1, 3, 8, 8), mode="linear"),
    case(3 * 8 * 8 * (2 * 16 - 1), "Resize", [(1, 3, 4, 4)], (1, 3, 8, 8), mode="cubic",
         words="cubic"),
    case(3 * 8 * 8, "Resize", [(1, 3, 4, 4)], (1, 3, 8, 8), words="to the nearest"),
    case(3 * 5 * 6 * (2 * 4 + 3), "GridSample", [(1, 3, 9, 9), (1, 5, 6, 2)], (1, 3, 5, 6)),
    case(3 * 5 * 6 * (2 * 16 + 3), "GridSample", [(1, 3, 9, 9), (1, 5, 6, 2)], mode="cubic",
         words="of unknown result"),
    case(2 * 3 * (2 * 5 * 6 * 2), "AffineGrid", [(2, 2, 3), (4,)], (2, 5, 6, 2)),
    case(9 * 2 * 5 * 32, "SkipLayerNormalization", [(2, 5, 32), (2, 5, 32)],
         words="of unknown result"),
    case(2 * 6 * 5 * (4 + 3), "SVMRegressor", [(6, 4)], support_vectors=[1.0] * 20,
         coefficients=[1.0] * 15),
    case(0, "Gather", [(100, 8), (5,)], (5, 8)),
    case(2 * 60, "ReduceL2", [(3, 20)], (3,)),
]  # fmt: skip


@pytest.mark.parametrize(("flops", "op", "inputs", "result", "options"), PRODUCTS)
def test_products_are_counted(flops, op, inputs, result, options):
    assert count(op, inputs, result, **options) == flops


@pytest.mark.parametrize(("flops", "op", "inputs", "result", "options"), ATTENTION)
def test_attention_is_counted(flops, op, inputs, result, options):
    assert count(op, inputs, result, **options) == flops


@pytest.mark.parametrize(("flops", "op", "inputs", "result", "options"), OTHERS)
def test_other_expensive_operators_are_counted(flops, op, inputs, result, options):
    assert count(op, inputs, result, **options) == flops


@pytest.mark.parametrize("op", sorted(COUNTED))
def test_unknown_shapes_count_as_nothing(op):
    assert count(op, []) == count(op, [None] * 16) == 0
    proto = onnx.helper.make_node(op, [f"x{i}" for i in range(16)], ["y"])
    assert flops_of(proto, {}) == 0


@pytest.mark.parametrize("op", sorted(COUNTED))
def test_any_shape_can_be_counted(op):
    # Costs are an aid: an invalid model is refused where it is loaded.
    for rank in range(6):
        shape = (3,) * rank
        assert count(op, [shape] * 16, constants=dict.fromkeys(range(16), 2)) >= 0
        assert count(op, [shape] * 16, ()) >= 0
        assert count(op, [shape], (5, 0)) >= 0


WINDOWS = [
    {},
    {"strides": [2, 3]},
    {"dilations": [2, 1], "pads": [1, 0, 2, 1]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    {"auto_pad": "VALID", "strides": [3, 1]},
    {"pads": [1, 1, 1, 1], "strides": [2, 2], "ceil_mode": 1},
    {"strides": [4, 4], "ceil_mode": 1},
]


@pytest.mark.parametrize("attributes", WINDOWS)
def test_positions_of_a_window_agree_with_onnx_runtime(attributes):
    pool = node("MaxPool", "x", "y", kernel_shape=[3, 2], **attributes)
    model = make_model([pool], [value("x", [2, 3, 14, 11])], [value("y", None)])
    known = infer_shapes(GraphFacts(load_onnx(model)))["y"].shape
    assert run_onnx(model, {"x": np.ones((2, 3, 14, 11), np.float32)})[0].shape == known
    shapes, kernel = [(2, 3, 14, 11)], {"kernel_shape": [3, 2], **attributes}
    assert count("MaxPool", shapes, **kernel) == count("MaxPool", shapes, known, **kernel)
    assert count("MaxPool", shapes, known, **kernel) == 6 * math.prod(known)


ONE_OPERATION = {
    "arithmetic": """
        Abs Add Affine BiasAdd Ceil Clip CumProd CumSum Div Floor GatedAdd HardSigmoid Hardmax
        ImageScaler LeakyRelu Max Mean Min Mod Mul MulInteger Neg PRelu Reciprocal Relu Round Scale
        Shrink Sign Softsign Sqrt Sub Sum ThresholdedRelu""",
    "bits and comparisons": """
        And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Equal Greater GreaterOrEqual IsInf
        IsNaN Less LessOrEqual Not Or Xor""",
    "dropout, which does nothing at inference": """
        BiasDropout BitmaskBiasDropout BitmaskDropout Dropout""",
    "made from a few numbers": """
        MelWeightMatrix RandomUniform RandomUniformLike Range RelativePositionBias""",
    "feature columns": """
        ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer
        Imputer LabelEncoder OneHotEncoder Scaler ZipMap""",
    "strings, counted once each": """
        RegexFullMatch StringConcat StringNormalizer StringSplit TfIdfVectorizer Tokenizer""",
    "decoding, a few numbers per token": """
        BifurcationDetector MoEGroupRouter NGramRepeatBlock PackedSparseAttentionIndexerMerge
        SpeculativePrefixCommit""",
    "generation, whose work is in bodies": """
        BeamSearch GreedySearch Sampling WhisperBeamSearch""",
}
"""Operators that do one operation per element, by what they do."""
NOT_EXAMINED = {
    "training": "Adagrad Adam Gradient Momentum",
    "other accelerators, not run by a CPU": """
        ConvStateReplay DisentangledAttention_TRT EPContext EfficientNMS_TRT
        GatedDeltaNetStateReplay MultilevelCropAndResize_TRT PyramidROIAlign_TRT Snpe""",
    "without a kernel": "GRUUnit SampleOp",
}
"""Operators that count as one operation per element for lack of a better count, by the reason.

Layout domains of execution providers (com.ms.internal.nhwc, com.microsoft.nchwc) use the names of
ONNX's operators, and do not occur in model files.
"""


def words(groups):
    return [word for group in groups.values() for word in group.split()]


def names_of_all_operators():
    schemas = [*onnx.defs.get_all_schemas(), *onnxruntime_state.get_all_operator_schema()]
    return {schema.name for schema in schemas}


def test_every_operator_has_a_count_or_is_listed_as_cheap():
    cheap = {*words(ONE_OPERATION), *words(NOT_EXAMINED)}
    assert names_of_all_operators() - COUNTED - cheap == set(), "add a count, or list as cheap"


def test_operators_that_are_listed_as_cheap_exist_and_have_no_count():
    named = words(ONE_OPERATION) + words(NOT_EXAMINED)
    assert len(named) == len(set(named))
    assert set(named) <= names_of_all_operators() - COUNTED


def test_counted_operators_exist():
    assert names_of_all_operators() >= COUNTED
