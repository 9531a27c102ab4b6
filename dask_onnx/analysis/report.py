"""The report behind `model.analysis`: all facts of a model at one set of input shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dask_onnx.analysis.assumed_sizes import ASSUMED_SIZE, assumed_sizes
from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.batch import find_batch, input_axes
from dask_onnx.analysis.batch_facts import BatchFacts
from dask_onnx.analysis.branches import Region, find_regions, free_nodes
from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs
from dask_onnx.analysis.cuts import Cut, legal_cuts
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.rows import rows_in_words
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel

_FREE_SHARE = 0.01
"""Share of the predicted time that branches may repeat rather than send values."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """Facts of a model, for one row per run unless the caller bound the batch axis."""

    shapes: Mapping[str, tuple[int, ...]]
    """Input shapes to which the numbers below apply."""
    is_assumed: bool
    """True if an open dimension was given a size that the caller did not name."""
    op_histogram: Mapping[str, int]
    """Op type (with its domain, unless that is ai.onnx) to the number of nodes."""
    parameters: int
    """Elements of all initializers."""
    parameter_bytes: int
    """Bytes of all initializers."""
    flops: int
    """Floating-point (or integer) operations of one run; a multiply-add counts as two."""
    activation_bytes: int
    """Bytes that nodes read and write, added up; initializers are not counted."""
    predicted_seconds: float
    """Seconds of one run on one core, by the CostTable of the analysis."""
    parallel_branches: int
    """Largest number of chains of nodes that can run in parallel."""
    longest_path: tuple[str, ...]
    """Names of the nodes along the path with the most nodes."""
    parallelism: float
    """Work over span: predicted seconds of all nodes divided by those of the critical path."""
    critical_path: tuple[str, ...]
    """Names of the nodes along the path that takes longest: no number of workers is faster."""
    critical_seconds: float
    """Predicted seconds of the critical path."""
    regions: tuple[Region, ...]
    """The graph as a series of serial regions and of independent branches, without the cheap nodes
    that several branches need and each may repeat."""
    cuts: tuple[Cut, ...]
    """Places where the graph may be cut, in depth-first order, with the values to send."""
    batch: BatchFacts
    """Batch axes, and the nodes that make rows depend on each other."""
    specs: Mapping[str, TensorSpec]
    """Spec of every value at `shapes`."""
    node_costs: tuple[NodeCost, ...]
    """Cost of each node, in topological order."""

    @property
    def rows(self) -> str:
        """Text: the rows of one run, the treatment of other numbers of rows, and the nodes that
        make rows depend on each other.
        """
        return rows_in_words(self.batch)


def assumed_shapes(
    model: OnnxModel, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Return a size for every axis of every input, and whether one of them was assumed.

    The batch axis has the size that any input has in `shapes`, else the number of rows that the
    graph takes, else 1; another open dimension the size that its symbol has in `shapes`, else one
    with which the graph can run; see `assumed_sizes`.

    Parameters
    ----------
    model : OnnxModel
    shapes : mapping of input to shape, optional
        Shapes of some inputs.
    """
    axes, fixed = input_axes(model)
    given = [
        shape[axis] for n, shape in (shapes or {}).items() if (axis := axes.get(n)) is not None
    ]
    rows = given[0] if given else fixed or 1
    symbols = {
        dim: size
        for spec in model.inputs
        for dim, size in zip(spec.shape or (), (shapes or {}).get(spec.name, ()), strict=False)
        if isinstance(dim, str)
    }
    sizes_by_name = assumed_sizes(model, axes, rows, symbols)
    found, is_assumed = {}, False
    for spec in model.inputs:
        if spec.kind is not None:
            continue
        if shapes and spec.name in shapes:
            found[spec.name] = tuple(shapes[spec.name])
            continue
        sizes = []
        for axis, dim in enumerate(spec.shape or ()):
            if isinstance(dim, int):
                sizes.append(dim)
            elif axis == axes[spec.name]:
                # Another axis of this name, such as the other one of a mask (T, T), has its size.
                alike = rows if given or fixed else sizes_by_name.get(dim or "", rows)
                sizes.append(symbols.get(dim or "", alike))
            else:
                sizes.append(sizes_by_name.get(dim or "", ASSUMED_SIZE))
                is_assumed = is_assumed or (dim or "") not in symbols
        found[spec.name] = tuple(sizes)
    return found, is_assumed


def analyse(
    facts: GraphFacts,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    schemas: Schemas | None = None,
    costs: CostTable | None = None,
    custom: CustomAxes | None = None,
) -> Analysis:
    """Return all facts of a model at some input shapes.

    Parameters
    ----------
    facts : GraphFacts
    shapes : mapping of input to shape, optional
        Shapes of some inputs; `assumed_shapes` completes them.
    schemas : mapping of (domain, op type) to OperatorSchema, optional
        Operators that ONNX does not know.
    costs : CostTable, optional
        Speeds for the predicted seconds; those of a common CPU by default.
    custom : mapping of (domain, op type) to axes, optional
        Axes that the caller's operators declare.
    """
    costs = costs or CostTable()
    model = facts.model
    bound, is_assumed = assumed_shapes(model, shapes)
    dims: dict[str, tuple[Dim, ...]] = {name: tuple(shape) for name, shape in bound.items()}
    specs = infer_shapes(facts, dims, schemas)
    each = node_costs(facts, specs)
    seconds = [costs.seconds(cost) for cost in each]
    critical = facts.longest_path(seconds)
    heaviest = sum(seconds[i] for i in critical)
    live = {node: seconds[node] for node in facts.live}
    regions = find_regions(facts, live, free_nodes(facts, live, _FREE_SHARE))
    return Analysis(
        shapes=bound,
        is_assumed=is_assumed,
        op_histogram=dict(
            Counter(
                f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                for node in facts.nodes
            ).most_common()
        ),
        parameters=model.parameters,
        parameter_bytes=model.parameter_bytes,
        flops=sum(cost.flops for cost in each),
        activation_bytes=sum(cost.activation_bytes for cost in each),
        predicted_seconds=sum(seconds),
        parallel_branches=facts.parallel_branches,
        longest_path=tuple(facts.nodes[i].name for i in facts.longest_path()),
        parallelism=sum(seconds) / heaviest if heaviest else 1.0,
        critical_path=tuple(facts.nodes[i].name for i in critical),
        critical_seconds=heaviest,
        regions=regions,
        cuts=legal_cuts(facts, specs, facts.outputs, seconds),
        batch=find_batch(facts, facts.outputs, dims if shapes else None, schemas, custom),
        specs=specs,
        node_costs=tuple(each),
    )
