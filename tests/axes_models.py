"""Models of a few nodes, and the axis analysis of their axis "N"."""

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
"""Size of the axis "N" at which models are analysed."""


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Sequence[Any]] | Sequence[Any] = ("N", 4),
    constants: Mapping[str, Any] | None = None,
    *,
    outputs: str = "y",
    types: Mapping[str, int] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """Return a model of some nodes.

    Parameters
    ----------
    nodes : sequence of NodeProto
    inputs : sequence, or mapping of str to sequence
        Shape of the only input x, or shape by input; a size is a number or a symbol.
    constants : mapping of str to array-like, optional
        Initializers; integers become int64.
    outputs : str
        Names of the outputs, separated by spaces.
    types : mapping of str to int, optional
        Element type by input; float32 by default.
    **options
        Arguments of `builders.make_model`; com.microsoft and ai.onnx.ml are imported by default.
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
    """Return the axis with a symbol for each input that has one."""
    found = {}
    for each in model.graph.input:
        names = [dim.dim_param for dim in each.type.tensor_type.shape.dim]
        if symbol in names:
            found[each.name] = names.index(symbol)
    return found


def fact_of(
    model: onnx.ModelProto, name: str = "y", custom: CustomAxes | None = None, size: int = POSITIONS
) -> AxisFact:
    """Return the fact of axis "N", of `size` positions, at one value."""
    facts, specs = _inferred(model, size)
    return axis_facts(facts, specs, seeds_of(model), (name,), custom)[name]


def dependence_of(model: onnx.ModelProto, name: str = "y", size: int = POSITIONS) -> Dependence:
    """Return the dependence of one value on axis "N", of `size` positions."""
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
    """Return a sample of all inputs: multiples of 1/4 from -2 to 2, or integers from 0 to 3."""
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
