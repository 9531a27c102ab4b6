"""Entry point of the rewriting of graphs that were exported for a fixed number of rows.

`open_batch` follows the rows through the graph by the axis analysis and rewrites each node that
names their number. It proves nothing: callers must check the result with `find_batch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from onnx.numpy_helper import to_array

from dask_onnx.analysis.axes.dependence import Kind
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.opening.assembly import assembled
from dask_onnx.analysis.opening.constants import Constants
from dask_onnx.analysis.opening.draft import Draft, NotOpenedError
from dask_onnx.analysis.opening.search import Rewriting
from dask_onnx.analysis.row_candidates import first_size
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.operator_names import standard_op_type
from dask_onnx.modelio.weights import is_external

_DYNAMIC_SIZES = (64, 48, 224, 16)
"""Sizes tried for other dynamic axes until all shapes can be inferred; else the size that leaves
the fewest unknown."""
_MAX_GUESSES = 4
"""Numbers of rows tried for a graph that declares a dynamic batch but names a number inside."""
_SHAPE_OPERANDS = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
"""Index of the input that holds a shape."""
_STATE = 5
"""Index of a recurrent operator's initial state, which has the rows on axis 1."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """Reason why a graph keeps its number of rows."""

    rows: int | None
    """The exported number of rows; None if the graph has none."""
    node: str
    """Name of the node that cannot be rewritten; empty if there is none."""
    op_type: str
    """Operator of that node; empty if there is none."""
    kind: Kind
    """Kind of the dependence on the rows at that node."""
    how: str
    """Reason in a few words."""

    def __str__(self) -> str:
        where = f"node {self.node!r} ({self.op_type})" if self.op_type else f"{self.node!r}"
        return f"{where}: {self.how or self.kind.label}" if self.node else self.how


@dataclass(frozen=True, slots=True)
class Opened:
    """A graph whose batch axis has become dynamic."""

    model: OnnxModel
    """The rewritten model; external weights stay where they are stored."""
    rows: int
    """The exported number of rows."""
    input_axes: Mapping[str, int]
    """Axis of the rows by input; inputs that are not listed have no rows."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape by input at the exported number of rows; other dynamic axes have a size at which the
    graph's shapes can be inferred."""
    changes: Mapping[str, str]
    """Description of the change by name of each rewritten node."""


def open_batch(
    model: OnnxModel,
    axes: Mapping[str, int] | None = None,
    schemas: Schemas | None = None,
    custom: CustomAxes | None = None,
    *,
    rows: int | None = None,
    read_weights: bool = False,
) -> Opened | Blocked:
    """Rewrite a graph that was exported for a fixed number of rows to accept any number.

    Applies also to a graph that declares a dynamic batch but names a number of rows inside.

    Parameters
    ----------
    model : OnnxModel
    axes : mapping of input to axis, optional
        Axis of the rows in each input that has them; by default as declared by ``rows=``, else axis
        0 of the inputs that agree on its size with each other and, if possible, with the outputs.
    schemas : Schemas, optional
        Schemas of custom operators for shape inference.
    custom : mapping of (domain, op type) to axes, optional
        Axes that custom operators declare, see `CustomAxes`.
    rows : int, optional
        Number of rows that a graph with a dynamic batch names inside; by default several that its
        constants suggest are tried.
    read_weights : bool
        True to read external constants that hold several rows, to see whether these are equal; by
        default such a constant blocks the rewriting.

    Returns
    -------
    Opened or Blocked
        `Opened` is not yet proven: check its model with `find_batch`.
    """
    facts = GraphFacts(model)
    first: Blocked | None = None
    for count, batch in _candidates(facts, axes, rows):
        specs, is_static = _specs_at(facts, count, batch, schemas)
        draft = Draft(facts, specs, batch, count, custom or {}, is_static=is_static)
        found = _rewrite(draft, Constants(draft, read_weights=read_weights))
        if isinstance(found, Opened):
            return found
        first = first or found
    return first or Blocked(None, "", "", Kind.OPAQUE, "no inputs agree on a number of rows")


def _candidates(
    facts: GraphFacts, axes: Mapping[str, int] | None, rows: int | None
) -> Iterator[tuple[int, dict[str, int]]]:
    """Return candidates of (number of rows, axis by input), the most likely first."""
    model = facts.model
    if model.rows == "none":
        return
    if axes is None and isinstance(model.rows, Mapping):
        axes = model.rows
    if axes is None:
        is_open = [s.name for s in model.inputs if s.shape and not isinstance(s.shape[0], int)]
        if not is_open:
            for size in _sizes(model):
                yield size, {s.name: 0 for s in model.inputs if first_size(s) == size}
            if not _sizes(model):  # a vector of one element may be one row after all
                vectors = {s.name: 0 for s in model.inputs if s.shape == (1,)}
                yield from [(1, vectors)] if vectors else []
            return
        axes = dict.fromkeys(is_open, 0)
    specs = {spec.name: spec for spec in model.inputs}
    sizes = {
        dim for name, axis in axes.items() for dim in [(specs[name].shape or (None,) * 9)[axis]]
    }
    fixed = [size for size in sizes if isinstance(size, int)]
    if len(fixed) == len(sizes) == 1 and fixed[0] > 0:
        yield fixed[0], dict(axes)
    elif not fixed:
        for size in _numbers_inside(facts) if rows is None else (rows,):
            yield size, dict(axes)


def _sizes(model: OnnxModel) -> list[int]:
    """Return sizes of axis 0 that may be numbers of rows, the one common to all outputs first."""
    given = [size for spec in model.inputs if (size := first_size(spec))]
    of_outputs = {first_size(spec) for spec in model.outputs}
    agreed = [size for size in of_outputs if size] if len(of_outputs) == 1 else []
    return list(dict.fromkeys([size for size in agreed if size in given] + given))


def _numbers_inside(facts: GraphFacts) -> list[int]:
    """Return numbers of rows that a graph with a dynamic batch may name inside.

    Found in constant shapes, in initial states and in the declarations of outputs.
    """
    tensors = facts.tensors
    found: dict[int, None] = {1: None}
    for node in facts.nodes:
        place = _SHAPE_OPERANDS.get(standard_op_type(node) or "")
        if place is not None and place < len(node.inputs) and node.inputs[place] in tensors:
            tensor = tensors[node.inputs[place]]
            if not is_external(tensor) and (numbers := to_array(tensor).reshape(-1)).size:
                found.setdefault(int(numbers[0]))
        if standard_op_type(node) in ("RNN", "GRU", "LSTM") and len(node.inputs) > _STATE:
            state = tensors.get(node.inputs[_STATE])
            found.update(dict.fromkeys(state.dims[1:2] if state is not None else ()))
    found.update(dict.fromkeys(size for s in facts.model.outputs if (size := first_size(s))))
    return [size for size in found if size > 0][:_MAX_GUESSES]


def _rewrite(draft: Draft, constants: Constants) -> Opened | Blocked:
    """Search for a rewrite of all nodes of a draft, and assemble the model."""
    facts, rows = draft.facts, draft.rows
    try:
        rewriting = Rewriting(draft, constants)
        rewriting.run()
    except NotOpenedError as error:
        op_type = next((node.op_type for node in facts.nodes if node.name == error.node), "")
        return Blocked(rows, error.node, op_type, error.kind, error.how)
    shapes = {name: shape for name in facts.inputs if (shape := draft.exported_shape(name))}
    rewritten = assembled(draft, rewriting.renamed)
    return Opened(rewritten, rows, draft.axes, shapes, dict(draft.notes))


def _specs_at(
    facts: GraphFacts, rows: int, axes: Mapping[str, int], schemas: Schemas | None
) -> tuple[dict[str, TensorSpec], bool]:
    """Return the specs of all values at a number of rows, and whether no other axis is dynamic."""
    model = facts.model
    carried = {
        spec.shape[axis]
        for spec in model.inputs
        if spec.shape and (axis := axes.get(spec.name, -1)) >= 0
    }
    best: dict[str, TensorSpec] | None = None
    fewest = 0
    for size in _DYNAMIC_SIZES:
        bound, is_static = {}, True
        for spec in model.inputs:
            shape = []
            for axis, dim in enumerate(spec.shape or ()):
                is_row = axes.get(spec.name) == axis or (isinstance(dim, str) and dim in carried)
                is_static = is_static and (is_row or isinstance(dim, int))
                shape.append(rows if is_row else dim if isinstance(dim, int) else size)
            if spec.shape is not None and spec.kind is None:
                bound[spec.name] = tuple(shape)
        specs = infer_shapes(facts, bound, schemas)
        unknown = sum(
            (found := specs.get(name)) is None or (found.shape is None and found.kind is None)
            for node in facts.nodes
            for name in node.outputs
        )
        if best is None or unknown < fewest:
            best, fewest = specs, unknown
        if not fewest or is_static:
            break
    assert best is not None
    return best, is_static
