"""Table of the rewrites of each operator that may name a fixed number of rows.

A graph exported for one row does not always tell which axis of size 1 is the batch. Then an
operator has several alternatives, and the search decides by what later nodes need.
"""

from __future__ import annotations

from collections.abc import Mapping

from dask_onnx.analysis.axes import value_rules
from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.table import ORT, rule_of
from dask_onnx.analysis.opening.operand_fixes import (
    attention_of_onnx,
    broadcast,
    concat,
    elementwise_gather,
    fused_matmul,
    gemm,
    matmul,
    operands,
    recurrent,
    repeated,
    rotary_of_ort,
)
from dask_onnx.analysis.opening.reshapes import gather, reshape
from dask_onnx.analysis.opening.site import Alternative, Fix, Site
from dask_onnx.analysis.opening.size_fixes import (
    affine_grid,
    control,
    expand,
    gather_nd,
    resize,
    slice_,
    split,
)


def alternatives(site: Site) -> list[Alternative]:
    """Return the alternatives of a node, the most likely first."""
    key = (site.facts.domain, site.facts.op_type)
    if not any(site.draft.dep(name).kind != Kind.FREE for name in site.facts.reads):
        return repeated(site) if site.draft.rows > 1 else site.keep()
    if key in FIXES:
        return FIXES[key](site)
    if rule_of(*key, {}).rule is value_rules.elementwise and len(site.original.input) > 1:
        return broadcast(site)
    return site.keep()


FIXES: Mapping[tuple[str, str], Fix] = {
    ("", "Reshape"): reshape,
    ("", "Flatten"): reshape,
    ("", "Squeeze"): reshape,
    ("", "Unsqueeze"): reshape,
    ("", "Gather"): gather,
    ("", "MatMul"): matmul,
    ("", "Gemm"): gemm,
    (ORT, "FusedMatMul"): fused_matmul,
    ("", "Concat"): concat,
    ("", "RNN"): recurrent,
    ("", "GRU"): recurrent,
    ("", "LSTM"): recurrent,
    (ORT, "DynamicQuantizeLSTM"): recurrent,
    ("", "If"): control,
    ("", "Loop"): control,
    ("", "Scan"): control,
    ("", "Expand"): expand,
    ("", "Slice"): slice_,
    ("", "Split"): split,
    ("", "Resize"): resize,
    ("", "AffineGrid"): affine_grid,
    ("", "GridSample"): operands({0: 0, 1: 0}),
    ("", "GatherElements"): elementwise_gather,
    ("", "ScatterElements"): elementwise_gather,
    ("", "GatherND"): gather_nd,
    ("", "ScatterND"): gather_nd,
    ("", "ReverseSequence"): operands({0: 1, 1: 0}, {0: 0, 1: 0}),
    ("", "Attention"): attention_of_onnx,
    ("", "RotaryEmbedding"): operands({0: 0, 3: 0}),
    (ORT, "RotaryEmbedding"): rotary_of_ort,
    (ORT, "Attention"): operands({0: 0, 3: 0}, {4: 1}),
    (ORT, "MultiHeadAttention"): operands({0: 0, 1: 0, 2: 0, 4: 0, 6: 0, 7: 0}),
    (ORT, "GroupQueryAttention"): operands({0: 0, 1: 0, 2: 0, 3: 0, 4: 0, 5: 0, 9: 0}),
    (ORT, "EmbedLayerNormalization"): operands({0: 0, 1: 0, 7: 0, 8: 0}),
    (ORT, "SkipLayerNormalization"): operands({0: 0, 1: 0}),
    (ORT, "SkipSimplifiedLayerNormalization"): operands({0: 0, 1: 0}),
}
"""Rewrite by (domain, operator type); other operators are kept, or broadcast if elementwise."""
