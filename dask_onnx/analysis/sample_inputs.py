"""Random inputs for a graph: of its dtypes, with indices inside its lookup tables."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.known_constants import constant_array
from dask_onnx.analysis.operands import Specs, known_size
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.operator_names import standard_op_type

_SAME_NUMBERS = frozenset(
    """Cast Identity Reshape Squeeze Unsqueeze Flatten Transpose Expand Slice Tile Concat Split
    Abs Floor Round""".split()
)
"""Operators that pass on integers unchanged."""
_EMBEDDINGS = {("com.microsoft", "EmbedLayerNormalization"): {0: 2, 1: 4, 8: 3}}
"""Operators with several lookup tables: position of the indices to position of the table."""


def sample_inputs(
    facts: GraphFacts, shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return random arrays for the tensors among a graph's inputs.

    Parameters
    ----------
    facts : GraphFacts
    shapes : mapping of input to shape
    rng : numpy.random.Generator

    Returns
    -------
    dict of input to ndarray
        Of the declared dtypes. Indices are inside their lookup table; other integers and booleans
        are masks along the last axis, ones followed by zeros; ``uint8`` has all values; floats are
        normally distributed; strings are words.
    """
    specs = infer_shapes(facts, shapes)
    return {
        spec.name: _sample(spec, shapes[spec.name], table_size(facts, specs, spec.name), rng)
        for spec in facts.model.inputs
        if spec.kind is None and spec.name in shapes
    }


def _sample(
    spec: TensorSpec, shape: tuple[int, ...], table: int | None, rng: np.random.Generator
) -> np.ndarray:
    dtype = spec.dtype if spec.dtype is not None else np.dtype(np.float32)
    if table is not None:
        return rng.integers(0, table, shape).astype(dtype)
    if dtype.kind == "O":
        return np.array(["word", "another", "text"], object)[rng.integers(0, 3, shape)]
    if dtype == np.uint8:
        return rng.integers(0, 256, shape).astype(np.uint8)
    if dtype.kind in "iub":
        if not shape:
            return np.ones(shape, dtype)
        lengths = rng.integers(1, shape[-1] + 1, (*shape[:-1], 1)) if shape[-1] else 0
        return (np.arange(shape[-1]) < lengths).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def table_size(facts: GraphFacts, specs: Specs, name: str) -> int | None:
    """Return the size of the smallest lookup table that a value indexes; None without one."""
    found: list[int] = []
    pending, seen = [name], {name}
    while pending:
        value = pending.pop()
        for index in facts.consumers.get(value, ()):
            node = facts.nodes[index]
            proto = facts.proto.graph.node[index]
            size = _indexed_size(facts, specs, proto, list(node.inputs).index(value))
            if size:
                found.append(size)
            elif standard_op_type(node) in _SAME_NUMBERS and node.inputs[0] == value:
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                pending += fresh
    return min(found, default=None)


def _indexed_size(
    facts: GraphFacts, specs: Specs, proto: onnx.NodeProto, position: int
) -> int | None:
    """Return the size of the table that a node's input indexes; None if it is no index."""
    attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    op_type = standard_op_type(proto)
    if op_type in ("Gather", "GatherElements") and position == 1:
        return known_size(specs, proto.input[0], attributes.get("axis", 0))
    if op_type == "OneHot" and position == 0:
        depth = _integers(facts, proto.input[1])
        return None if depth is None else int(depth.reshape(-1)[0])
    if op_type == "Equal":  # JAX exports one-hot encoding so
        classes = _integers(facts, proto.input[1 - position])
        return None if classes is None or classes.size < 2 else int(classes.max()) + 1
    tables = _EMBEDDINGS.get((proto.domain, proto.op_type), {})
    return known_size(specs, proto.input[tables[position]], 0) if position in tables else None


def _integers(facts: GraphFacts, name: str) -> np.ndarray | None:
    """Return a constant of integers; None for other values."""
    array = constant_array(facts, name)
    return array if array is not None and array.dtype.kind in "iu" else None
