"""Giving a graph that was exported for a fixed number of rows an open batch.

`open_batch` follows the rows through the graph by the algebra of axes and rewrites, node by node,
what names their number. Nothing is proven here: whoever uses the result asks `find_batch` for it.
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
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel
from dask_onnx.modelio.weights import is_external

_OPEN_SIZES = (64, 48, 224, 16)
"""What other open axes are while the rows are followed: the first that the graph can have."""
_MOST_GUESSES = 4
"""Numbers of rows that are tried for a graph that declares an open batch."""
_SHAPE_OPERANDS = {"Reshape": 1, "Expand": 1, "ConstantOfShape": 0}
"""Which input says a shape."""
_STATE = 5
"""Which input of a recurrent operator is its initial state, with rows on axis 1."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """Why a graph keeps its number of rows."""

    rows: int | None
    """The exported number of rows; None where the graph has none."""
    node: str
    """Name of the node in the way; empty where no node is."""
    op_type: str
    kind: Kind
    how: str
    """What is in the way, in words."""

    def __str__(self) -> str:
        where = f"node {self.node!r} ({self.op_type})" if self.op_type else f"{self.node!r}"
        return f"{where}: {self.how or self.kind.label}" if self.node else self.how


@dataclass(frozen=True, slots=True)
class Opened:
    """A graph whose number of rows has become open."""

    model: OnnxModel
    """The graph rewritten; its weights are where they were."""
    rows: int
    """The exported number of rows."""
    input_axes: Mapping[str, int]
    """Input to the axis that carries rows; inputs that are left out are given once."""
    shapes: Mapping[str, tuple[int, ...]]
    """Input to its shape at that number of rows; other open axes have a size that the graph can
    have."""
    changes: Mapping[str, str]
    """Name of each node that was rewritten to what was done."""


def open_batch(
    model: OnnxModel,
    axes: Mapping[str, int] | None = None,
    schemas: Schemas | None = None,
    custom: CustomAxes | None = None,
    *,
    read_weights: bool = False,
) -> Opened | Blocked:
    """Rewrite a graph that was exported for a fixed number of rows so that any number may be given.

    Also a graph that declares an open batch and names a number of rows inside.

    Parameters
    ----------
    model : OnnxModel
    axes : mapping of input to axis, optional
        What carries rows; by default what the caller has declared (``rows=``), else the axes 0 of
        one size that inputs and outputs have in common.
    schemas, own : as for `find_batch`
    read_weights : bool
        Read large constants that have a row for each of several rows from the model's file, to see
        whether these are equal; by default such a constant is in the way.

    Returns
    -------
    Opened or Blocked
        Not yet proven: ask `find_batch` of the model in it.
    """
    facts = GraphFacts(model)
    first: Blocked | None = None
    for rows, batch in _candidates(facts, axes):
        specs, is_definite = _specs_at(facts, rows, batch, schemas)
        draft = Draft(facts, specs, batch, rows, custom or {}, is_definite=is_definite)
        found = _written(draft, Constants(draft, read_weights=read_weights))
        if isinstance(found, Opened):
            return found
        first = first or found
    return first or Blocked(None, "", "", Kind.OPAQUE, "no inputs with a number of rows in common")


def _candidates(
    facts: GraphFacts, axes: Mapping[str, int] | None
) -> Iterator[tuple[int, dict[str, int]]]:
    """Numbers of rows and the axes that have them, the likeliest first."""
    model = facts.model
    if model.rows == "none":
        return
    if axes is None and isinstance(model.rows, Mapping):
        axes = model.rows
    if axes is None:
        is_open = [s.name for s in model.inputs if s.shape and not isinstance(s.shape[0], int)]
        if not is_open:
            for size in _sizes(model):
                yield size, {s.name: 0 for s in model.inputs if _first_size(s) == size}
            if not _sizes(model):  # a vector of one may be one row after all
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
        for size in _numbers_inside(facts):
            yield size, dict(axes)


def _sizes(model: OnnxModel) -> list[int]:
    """Sizes of axis 0 that may be numbers of rows, that of all outputs first."""
    given = [size for spec in model.inputs if (size := _first_size(spec))]
    made = {_first_size(spec) for spec in model.outputs}
    agreed = [size for size in made if size] if len(made) == 1 else []
    return list(dict.fromkeys([size for size in agreed if size in given] + given))


def _first_size(spec: TensorSpec) -> int | None:
    """Size of axis 0, where it is fixed; of a vector of one it is not taken for rows."""
    size = spec.shape[0] if spec.shape else None
    return size if isinstance(size, int) and (size > 1 or len(spec.shape or ()) > 1) else None


def _numbers_inside(facts: GraphFacts) -> list[int]:
    """Numbers of rows that a graph with a declared open batch may name inside: in the shapes that
    it makes, in initial states, in what it declares of its outputs."""
    tensors = {tensor.name: tensor for tensor in facts.proto.graph.initializer}
    found: dict[int, None] = {1: None}
    for node in facts.nodes:
        place = _SHAPE_OPERANDS.get(node.op_type)
        if place is not None and place < len(node.inputs) and node.inputs[place] in tensors:
            tensor = tensors[node.inputs[place]]
            if not is_external(tensor) and (numbers := to_array(tensor).reshape(-1)).size:
                found.setdefault(int(numbers[0]))
        if node.op_type in ("RNN", "GRU", "LSTM") and len(node.inputs) > _STATE:
            state = tensors.get(node.inputs[_STATE])
            found.update(dict.fromkeys(state.dims[1:2] if state is not None else ()))
    found.update(dict.fromkeys(size for s in facts.model.outputs if (size := _first_size(s))))
    return [size for size in found if size > 0][:_MOST_GUESSES]


def _written(draft: Draft, constants: Constants) -> Opened | Blocked:
    """The graph that a draft becomes, or what is in the way."""
    facts, rows = draft.facts, draft.rows
    try:
        rewriting = Rewriting(draft, constants)
        rewriting.run()
    except NotOpenedError as error:
        op_type = next((node.op_type for node in facts.nodes if node.name == error.node), "")
        return Blocked(rows, error.node, op_type, error.kind, error.how)
    shapes = {name: shape for name in facts.inputs if (shape := draft.exported_shape(name))}
    opened = assembled(draft, rewriting.renamed)
    return Opened(opened, rows, draft.axes, shapes, dict(draft.notes))


def _specs_at(
    facts: GraphFacts, rows: int, axes: Mapping[str, int], schemas: Schemas | None
) -> tuple[dict[str, TensorSpec], bool]:
    """Specs of all values at a number of rows, and whether no other axis is open."""
    model = facts.model
    carried = {
        spec.shape[axis]
        for spec in model.inputs
        if spec.shape and (axis := axes.get(spec.name, -1)) >= 0
    }
    best: dict[str, TensorSpec] | None = None
    fewest = 0
    for size in _OPEN_SIZES:
        bound, is_definite = {}, True
        for spec in model.inputs:
            shape = []
            for axis, dim in enumerate(spec.shape or ()):
                is_row = axes.get(spec.name) == axis or (isinstance(dim, str) and dim in carried)
                is_definite = is_definite and (is_row or isinstance(dim, int))
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
        if not fewest or is_definite:
            break
    assert best is not None
    return best, is_definite
