"""Which axis of which value carries the batch, and which nodes mix its rows.

The batch axis is found by asking shape inference twice, with two different batch sizes: an axis
that grows in proportion carries rows. That sees through reshapes and transposes, where following
dimension names does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx

from dask_onnx.analysis.graph import GraphFacts, NodeFacts
from dask_onnx.analysis.mixing import (
    PROBES,
    Rows,
    attribute_of,
    by_kind,
    is_training,
    mixing,
    opaque_nodes,
)
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.onnx_model import OnnxModel
from dask_onnx.specs import Dim, TensorSpec
from dask_onnx.weights import is_external, with_bodies

_RANDOM = frozenset(
    ("RandomNormal RandomNormalLike RandomUniform RandomUniformLike Multinomial Bernoulli").split()
)


@dataclass(frozen=True, slots=True)
class ExportedRows:
    """The size of axis 0 that all outputs of a graph without open axes agree on, and whether it is
    a number of rows."""

    rows: int
    mixing: tuple[str, ...] = ()
    """Names of the nodes that would mix rows, if rows they are."""
    opaque: tuple[str, ...] = ()
    """Names of the nodes behind which inference does not say where the rows are."""
    lost: tuple[str, ...] = ()
    """Outputs that do not grow with the rows."""

    @property
    def is_proven(self) -> bool:
        """Each row goes in and comes out whatever their number, and by itself."""
        return not (self.mixing or self.opaque or self.lost)


@dataclass(frozen=True, slots=True)
class BatchFacts:
    """How a model treats its batch."""

    input_axes: Mapping[str, int | None]
    """Input to the axis that carries rows; None for an input that is given once."""
    fixed_rows: int | None
    """The batch size that the graph was exported with, where it is fixed; else None."""
    output_axes: Mapping[str, int | None]
    """Output to the axis that carries rows; None where it has none."""
    sizes: Mapping[str, tuple[int | float, ...] | None]
    """Output to its shape for one row; NaN on an axis whose size depends on data."""
    dependent: tuple[str, ...]
    """Names of the nodes whose result for one row depends on the other rows."""
    random: tuple[str, ...]
    """Names of the nodes that draw random numbers."""
    unseeded: tuple[str, ...]
    """Those of them without a seed, or whose kernel goes on drawing from run to run: a task that
    is repeated gives other numbers."""
    opaque: tuple[str, ...] = ()
    """Names of the nodes behind which inference does not say where the rows are."""
    exported: ExportedRows | None = None
    """Where no axis is open; `fixed_rows` is set if these rows are proven."""
    selecting: tuple[str, ...] = ()
    """Those of `opaque` that pick elements out of all rows by their values: what is behind them may
    well put rows together."""


def input_axes(model: OnnxModel) -> tuple[dict[str, int | None], int | None]:
    """The batch axis of each input, and the batch size if the graph fixes it.

    Axis 0 carries rows where its size is open; so does any axis of the same symbolic name in
    another input (the state of a recurrent network). A graph without an open axis 0 anywhere that
    takes and gives one row is run row by row; one that takes and gives k of them is run k rows at a
    time, if inference shows that it could be any number: four rows are not told from a matrix of
    four by their size.
    """
    inputs = model.inputs
    open_first = _open_first(model)
    if not open_first:
        exported = exported_rows(model)
        if exported is None or not exported.is_proven:
            return dict.fromkeys(spec.name for spec in inputs), None
        return _axes_of(model, exported.rows), exported.rows
    symbols = {spec.shape[0] for spec in open_first if spec.shape and spec.shape[0]}
    axes: dict[str, int | None] = {}
    for spec in inputs:
        if spec.kind is not None:
            axes[spec.name] = None
        elif spec.shape is None or spec in open_first:
            axes[spec.name] = 0
        else:
            named = [axis for axis, dim in enumerate(spec.shape) if dim in symbols]
            axes[spec.name] = named[0] if named else None
    return axes, None


def _open_first(model: OnnxModel) -> list[TensorSpec]:
    """Inputs whose axis 0 is open."""
    return [spec for spec in model.inputs if spec.shape and not isinstance(spec.shape[0], int)]


def exported_rows(model: OnnxModel) -> ExportedRows | None:
    """What is known of the rows of a graph that was exported with a fixed number of them; None
    where an axis is open, or inputs and outputs have no size in common."""
    counts = {_first_size(spec) for spec in model.outputs}
    rows = counts.pop() if len(counts) == 1 else None
    if not rows or _open_first(model):
        return None
    axes = _axes_of(model, rows)
    if not any(axis == 0 for axis in axes.values()):
        return None
    # A single row meets no other.
    return ExportedRows(rows) if rows == 1 else _opened_rows(model, axes, rows)


def _axes_of(model: OnnxModel, rows: int) -> dict[str, int | None]:
    return {spec.name: 0 if _first_size(spec) == rows else None for spec in model.inputs}


def _first_size(spec: TensorSpec) -> int | None:
    """Size of axis 0, where it is fixed; of a vector of one it is not taken for rows."""
    size = spec.shape[0] if spec.shape else None
    return size if isinstance(size, int) and (size > 1 or len(spec.shape or ()) > 1) else None


_asked: dict[tuple[str, int], ExportedRows] = {}
"""By model's token and rows: inference need be asked once."""


def _opened_rows(model: OnnxModel, axes: Mapping[str, int | None], rows: int) -> ExportedRows:
    """Whether the graph gives each of its rows a row whatever their number."""
    if (model.token, rows) not in _asked:
        opened = replace(
            model,
            proto=_opened(model.parse(), axes, rows).SerializeToString(),
            inputs=tuple(_open_spec(s) if axes[s.name] == 0 else s for s in model.inputs),
            outputs=tuple(_open_spec(spec) for spec in model.outputs),
        )
        names = tuple(spec.name for spec in model.outputs)
        found = find_batch(GraphFacts(opened), names)
        lost = tuple(name for name, axis in found.output_axes.items() if axis != 0)
        _asked[model.token, rows] = ExportedRows(rows, found.dependent, found.opaque, lost)
    return _asked[model.token, rows]


def _open_spec(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=("rows", *(spec.shape or ())[1:]))


def _opened(proto: onnx.ModelProto, axes: Mapping[str, int | None], rows: int) -> onnx.ModelProto:
    """The graph with its number of rows open: in what it declares, and where it reshapes to it."""
    graph = proto.graph
    del graph.value_info[:]
    for value in (*(v for v in graph.input if axes.get(v.name) == 0), *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    targets = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
    for tensor in graph.initializer:
        if tensor.name in targets and not is_external(tensor):
            shape = onnx.numpy_helper.to_array(tensor).copy()
            if len(shape) and shape[0] == rows:
                shape[0] = -1 if not (shape[1:] == -1).any() else 0
                tensor.CopyFrom(onnx.numpy_helper.from_array(shape, tensor.name))
    return proto


def find_batch(
    facts: GraphFacts,
    outputs: tuple[str, ...],
    shapes: Mapping[str, tuple[Dim, ...]] | None = None,
    schemas: Schemas | None = None,
) -> BatchFacts:
    """Batch axes of inputs and outputs, sizes of the outputs, nodes that mix rows.

    Parameters
    ----------
    outputs : names of graph outputs or of intermediate values
    shapes : mapping of input name to shape
        Binds the other axes; the batch axis in it is ignored. Declared shapes by default.
    """
    axes, fixed = input_axes(facts.model)
    random, unseeded = random_nodes(facts, outputs)
    if fixed is not None or not any(axis is not None for axis in axes.values()):
        specs = infer_shapes(facts, _bound(facts.model, axes, shapes, fixed), schemas)
        sizes = {name: _sizes(specs.get(name)) for name in outputs}
        row_axes = {name: _fixed_axis(sizes[name], fixed) for name in outputs}
        return BatchFacts(
            input_axes=axes,
            fixed_rows=fixed,
            output_axes=row_axes,
            sizes={
                name: (1, *found[1:]) if found and row_axes[name] == 0 else found
                for name, found in sizes.items()
            },
            dependent=tuple(by_kind(facts)),
            random=random,
            unseeded=unseeded,
            exported=exported_rows(facts.model),
        )
    few, many = (
        infer_shapes(facts, _bound(facts.model, axes, shapes, rows), schemas) for rows in PROBES
    )
    tracker = Rows(few, many)
    opaque = tuple(opaque_nodes(facts, tracker, outputs, schemas or {}))
    return BatchFacts(
        input_axes=axes,
        fixed_rows=None,
        output_axes={name: tracker.axis(name) for name in outputs},
        sizes={name: tracker.row_sizes(name) for name in outputs},
        dependent=tuple(dict.fromkeys([*by_kind(facts), *mixing(facts, tracker)])),
        random=random,
        unseeded=unseeded,
        opaque=opaque,
        selecting=tuple(
            n.name for n in facts.nodes if n.name in opaque and n.op_type in _SELECTING
        ),
    )


_SELECTING = frozenset(("NonZero", "Compress", "Unique", "NonMaxSuppression"))


def _bound(
    model: OnnxModel,
    axes: Mapping[str, int | None],
    shapes: Mapping[str, tuple[Dim, ...]] | None,
    rows: int | None,
) -> dict[str, tuple[Dim, ...]]:
    """Input shapes with `rows` on every batch axis."""
    bound = {}
    for spec in model.inputs:
        shape = (shapes or {}).get(spec.name, spec.shape)
        if shape is None:
            continue
        dims = list(shape)
        axis = axes[spec.name]
        if axis is not None and rows is not None and dims:
            dims[axis] = rows
        bound[spec.name] = tuple(dims)
    return bound


def _fixed_axis(sizes: tuple[int | float, ...] | None, rows: int | None) -> int | None:
    """Axis 0, unless inference says that it has another size than the rows."""
    if rows is None or (sizes is not None and not sizes):
        return None
    return 0 if sizes is None or math.isnan(sizes[0]) or sizes[0] == rows else None


def _sizes(spec: TensorSpec | None) -> tuple[int | float, ...] | None:
    if spec is None or spec.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else float("nan") for dim in spec.shape)


def random_nodes(
    facts: GraphFacts, outputs: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the nodes that draw random numbers for some outputs, and of those without a seed."""
    needed = [facts.nodes[index] for index in facts.ancestors(outputs)]
    random = [node for node in needed if _is_random(facts, node)]
    return (
        tuple(node.name for node in random),
        tuple(node.name for node in random if _is_random(facts, node, unseeded=True)),
    )


def _is_random(facts: GraphFacts, node: NodeFacts, *, unseeded: bool = False) -> bool:
    return any(
        (inner.op_type in _RANDOM or is_training(inner, "Dropout"))
        and not (unseeded and _is_seeded(inner))
        for inner in with_bodies(facts.proto.graph.node[node.index])
    )


def _is_seeded(node: onnx.NodeProto) -> bool:
    # Of Multinomial there is only ONNX Runtime's kernel, which draws on from its last run.
    return node.op_type != "Multinomial" and attribute_of(node, "seed", None) is not None
