"""What `model.analysis` says: all facts of a model at one set of input shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from dask_onnx.analysis.axes.table import CustomAxes
from dask_onnx.analysis.batch import BatchFacts, find_batch, input_axes
from dask_onnx.analysis.branches import Region, find_regions, free_nodes
from dask_onnx.analysis.cost import CostTable, NodeCost, node_costs
from dask_onnx.analysis.cuts import Cut, legal_cuts
from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.rows import rows_in_words
from dask_onnx.analysis.shapes import Schemas, infer_shapes
from dask_onnx.core.specs import Dim, TensorSpec
from dask_onnx.modelio.onnx_model import OnnxModel

_ASSUMED_SIZE = 64
"""Stands in for an open dimension that is not the batch; a multiple of what networks stride by."""


_FREE_SHARE = 0.01
"""Of the predicted time so much may be repeated by branches rather than sent to them."""


@dataclass(frozen=True, slots=True)
class Analysis:
    """Facts of a model, for one row a run unless the caller bound the batch axis."""

    shapes: Mapping[str, tuple[int, ...]]
    """Input shapes that the numbers below are for."""
    is_assumed: bool
    """Some open dimension was given a size that the caller did not name."""
    op_histogram: Mapping[str, int]
    """Op type (with its domain, unless that is ai.onnx) to how many nodes have it."""
    parameters: int
    parameter_bytes: int
    flops: int
    activation_bytes: int
    """Bytes read and written by all nodes, one after the other."""
    predicted_seconds: float
    """On one core, by the default CostTable."""
    parallel_branches: int
    """The most chains of nodes that can run side by side."""
    longest_path: tuple[str, ...]
    """Names of the nodes along the path with the most nodes."""
    parallelism: float
    """Work over span: predicted seconds of all nodes over those of the critical path."""
    critical_path: tuple[str, ...]
    """Names of the nodes along the path that takes longest: no number of workers is faster."""
    critical_seconds: float
    regions: tuple[Region, ...]
    """The graph as a series of serial pieces and of independent branches; cheap nodes that several
    branches need, and that each may repeat, left out."""
    cuts: tuple[Cut, ...]
    """Where it may be cut, in depth-first order, and what would have to travel."""
    batch: BatchFacts
    specs: Mapping[str, TensorSpec]
    """Every value at `shapes`."""
    node_costs: tuple[NodeCost, ...]

    @property
    def rows(self) -> str:
        """In words: how many rows go into a run, what becomes of more and of fewer, and because of
        which nodes a row depends on others."""
        return rows_in_words(self.batch)


def assumed_shapes(
    model: OnnxModel, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> tuple[dict[str, tuple[int, ...]], bool]:
    """A size for every axis of every input, and whether one of them was made up.

    The batch is what it is in `shapes`, of whichever input, or else 1; another open dimension takes
    a size that its symbol has in `shapes`, else 64.
    """
    axes, _ = input_axes(model)
    given = [
        shape[axis] for n, shape in (shapes or {}).items() if (axis := axes.get(n)) is not None
    ]
    rows = given[0] if given else 1
    symbols = {
        dim: size
        for spec in model.inputs
        for dim, size in zip(spec.shape or (), (shapes or {}).get(spec.name, ()), strict=False)
        if isinstance(dim, str)
    }
    found, is_assumed = {}, False
    for spec in model.inputs:
        if spec.kind is not None:
            continue
        if shapes and spec.name in shapes:
            found[spec.name] = tuple(shapes[spec.name])
            continue
        sizes = []
        for axis, dim in enumerate(spec.shape or ()):
            if axis == axes[spec.name] or isinstance(dim, int):
                sizes.append(dim if isinstance(dim, int) else symbols.get(dim or "", rows))
            else:
                sizes.append(symbols.get(dim or "", _ASSUMED_SIZE))
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
    """Work out all facts at `shapes` (see `assumed_shapes` for what may be left open)."""
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
