"""Models of a few nodes, and what the algebra says of one axis of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from builders import make_model, value
from onnx import TensorProto

from dask_onnx.analysis.axes.axis_report import AxisFact, axis_facts
from dask_onnx.analysis.axes.dependence import FREE, Dependence
from dask_onnx.analysis.axes.propagate import propagate
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.shapes import infer_shapes
from dask_onnx.modelio.onnx_model import load_onnx

POSITIONS = 6
"""Size of the open axis, "N", where facts are asked for."""


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]] | Sequence[Any] = ("N", 4),
    constants: Mapping[str, Any] | None = None,
    *,
    outputs: str = "y",
    types: Mapping[str, int] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """Return a model with inputs of some shapes, one of them named x by default.

    Parameters
    ----------
    inputs : shape of x, or a mapping of input to shape
    constants : mapping of name to anything that is an array; whole numbers are int64
    outputs : names, as words
    types : mapping of input to element type; float32 by default
    **options
        See `builders.make_model`; domain com.microsoft is imported.
    """
    shapes = inputs if isinstance(inputs, Mapping) else {"x": inputs}
    arrays = {name: np.asarray(array) for name, array in (constants or {}).items()}
    declared = [
        value(name, shape, (types or {}).get(name, TensorProto.FLOAT))
        for name, shape in shapes.items()
    ]
    results = [onnx.ValueInfoProto(name=name) for name in outputs.split()]
    options.setdefault("domains", {"com.microsoft": 1, "ai.onnx.ml": 3})
    return make_model(nodes, declared, results, arrays, **options)


def seeds_of(model: onnx.ModelProto, symbol: str = "N") -> dict[str, int]:
    """Return the axis of each input that has a symbol."""
    found = {}
    for each in model.graph.input:
        names = [dim.dim_param for dim in each.type.tensor_type.shape.dim]
        if symbol in names:
            found[each.name] = names.index(symbol)
    return found


def fact_of(
    model: onnx.ModelProto, name: str = "y", own: CustomAxes | None = None, size: int = POSITIONS
) -> AxisFact:
    """Return what one value depends on of the axis "N", where that has `size` positions."""
    facts, specs = _inferred(model, size)
    return axis_facts(facts, specs, seeds_of(model), (name,), own)[name]


def dependence_of(model: onnx.ModelProto, name: str = "y", size: int = POSITIONS) -> Dependence:
    """Return the dependence of one value on the axis "N"."""
    facts, specs = _inferred(model, size)
    return propagate(facts, specs, seeds_of(model)).get(name, FREE)


def _inferred(model: onnx.ModelProto, size: int) -> tuple[GraphFacts, Any]:
    facts = GraphFacts(load_onnx(model))
    shapes = {
        spec.name: tuple(size if dim == "N" else dim for dim in spec.shape or ())
        for spec in facts.model.inputs
    }
    return facts, infer_shapes(facts, shapes)


def feeds_of(model: onnx.ModelProto, size: int = POSITIONS) -> dict[str, np.ndarray]:
    """Return a sample of all inputs: quarters from -2 to 2, or whole numbers from 0 to 3."""
    rng = np.random.default_rng(0)
    feeds = {}
    for each in model.graph.input:
        kind = each.type.tensor_type
        shape = [size if dim.dim_param else dim.dim_value for dim in kind.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        is_float = np.issubdtype(dtype, np.floating)
        array = rng.integers(-8, 9, shape) / 4 if is_float else rng.integers(0, 4, shape)
        feeds[each.name] = array.astype(dtype)
    return feeds
