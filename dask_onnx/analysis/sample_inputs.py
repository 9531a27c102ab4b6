"""Random inputs of a graph's dtypes, in the range that its tables have."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.weights import is_external

_SAME_NUMBERS = frozenset(
    """Cast Identity Reshape Squeeze Unsqueeze Flatten Transpose Expand Slice Tile Concat Split
    Abs Floor Round""".split()
)
"""Operators that hand on whole numbers as they are."""
_EMBEDDINGS = {("com.microsoft", "EmbedLayerNormalization"): {0: 2, 1: 4, 8: 3}}
"""Operators with tables of their own: input with indices to input with the table."""


def sample_inputs(
    facts: GraphFacts, shapes: Mapping[str, tuple[int, ...]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return random arrays for the tensors among the inputs of a graph.

    Parameters
    ----------
    shapes : mapping of input to shape

    Returns
    -------
    dict of input to ndarray
        Of the declared dtypes. Indices into a table are within it; other whole numbers and
        booleans are 1 in front and 0 behind along the last axis, as in masks; ``uint8`` has all
        values; floats are normally distributed; text is words.
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


def table_size(facts: GraphFacts, specs: Mapping[str, TensorSpec], name: str) -> int | None:
    """Return how many entries the smallest table has that a value picks from; None for no table."""
    found: list[int] = []
    pending, seen = [name], {name}
    while pending:
        value = pending.pop()
        for index in facts.consumers.get(value, ()):
            node = facts.nodes[index]
            proto = facts.proto.graph.node[index]
            size = _picked_from(facts, specs, proto, list(node.inputs).index(value))
            if size:
                found.append(size)
            elif node.op_type in _SAME_NUMBERS and node.inputs[0] == value:
                fresh = [output for output in node.outputs if output not in seen]
                seen.update(fresh)
                pending += fresh
    return min(found, default=None)


def _picked_from(
    facts: GraphFacts, specs: Mapping[str, TensorSpec], proto: onnx.NodeProto, place: int
) -> int | None:
    """Entries of the table in which an input of a node is an index."""
    attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    if proto.op_type in ("Gather", "GatherElements") and place == 1:
        return _size(specs, proto.input[0], attributes.get("axis", 0))
    if proto.op_type == "OneHot" and place == 0:
        depth = _numbers(facts, proto.input[1])
        return None if depth is None else int(depth.reshape(-1)[0])
    if proto.op_type == "Equal":  # one-hot as JAX writes it
        classes = _numbers(facts, proto.input[1 - place])
        return None if classes is None or classes.size < 2 else int(classes.max()) + 1
    tables = _EMBEDDINGS.get((proto.domain, proto.op_type), {})
    return _size(specs, proto.input[tables[place]], 0) if place in tables else None


def _numbers(facts: GraphFacts, name: str) -> np.ndarray | None:
    """The whole numbers of an initializer in the proto."""
    found = next((t for t in facts.proto.graph.initializer if t.name == name), None)
    if found is None or is_external(found):
        return None
    array = numpy_helper.to_array(found)
    return array if array.dtype.kind in "iu" else None


def _size(specs: Mapping[str, TensorSpec], name: str, axis: int) -> int | None:
    spec = specs.get(name)
    if spec is None or spec.shape is None or not -len(spec.shape) <= axis < len(spec.shape):
        return None
    size = spec.shape[axis]
    return size if isinstance(size, int) else None
