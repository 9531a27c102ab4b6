"""Checks of a stage graph and of its operators; all faults of a graph are reported at once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator

import onnx
import onnx.defs

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.analysis.shapes import OperatorSchema, Schemas
from dask_onnx.core.errors import ModelError, PlanError, Suggestion
from dask_onnx.core.formatting import format_count
from dask_onnx.modelio.operator_names import is_onnx_domain, onnx_has, operator_name
from dask_onnx.modelio.weights import with_bodies
from dask_onnx.planning.stages import StageGraph

_SHOWN = 5
"""Most faults that an error lists."""


def check_stages(stages: StageGraph, facts: GraphFacts) -> None:
    """Check that a stage graph computes what the model does.

    Parameters
    ----------
    stages : StageGraph
        The stages to check.
    facts : GraphFacts
        The model's graph.

    Raises
    ------
    PlanError
        With all problems in one message: a node in no stage, one that draws random numbers in
        several, a value without a producer, with two, or from a later stage, an edge that goes
        back, an output that no stage produces.
    """
    problems = [
        *_coverage_problems(stages, facts),
        *_producer_problems(stages),
        *_order_problems(stages),
        *_output_problems(stages),
    ]
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise PlanError(
            f"{format_count(len(problems), 'problem')} in the stage graph: {shown}{more}",
            "a custom strategy must assign every node to a stage, in topological order",
            option="strategy",
            numbers={"problems": len(problems)},
        )


def _coverage_problems(stages: StageGraph, facts: GraphFacts) -> Iterator[str]:
    times = Counter(index for stage in stages.stages for index in stage.nodes)
    wanted = facts.ancestors(spec.name for spec in stages.outputs)
    unseeded = set(random_nodes(facts, tuple(spec.name for spec in stages.outputs))[1])
    for index in wanted:
        name = facts.nodes[index].name
        if not times[index]:
            yield f"node {name!r} is in no stage"
        elif times[index] > 1 and name in unseeded:
            yield f"node {name!r} draws other random numbers in each of {times[index]} stages"
    for index in sorted(set(times) - set(wanted)):
        if not 0 <= index < len(facts.nodes):
            yield f"there is no node at position {index}"


def _producer_problems(stages: StageGraph) -> Iterator[str]:
    """Yield values that several stages output; nodes may be repeated, outputs may not."""
    times = Counter(spec.name for stage in stages.stages for spec in stage.outputs)
    for name, count in times.items():
        if count > 1:
            yield f"value {name!r} is an output of {count} stages"


def _order_problems(stages: StageGraph) -> Iterator[str]:
    available = {spec.name for spec in stages.inputs}
    produced = set(stages.producers)
    for stage in stages.stages:
        for spec in stage.inputs:
            if spec.name not in available:
                is_later = spec.name in produced
                where = "comes from a later stage" if is_later else "has no producer"
                yield f"value {spec.name!r}, which stage {stage.label} needs, {where}"
        available.update(spec.name for spec in stage.outputs)
    for edge in stages.edges:
        if edge.producer >= edge.consumer:
            yield f"the edge of {edge.value!r} goes from stage {edge.producer} to {edge.consumer}"


def _output_problems(stages: StageGraph) -> Iterator[str]:
    available = {spec.name for spec in stages.inputs} | set(stages.producers)
    for spec in stages.outputs:
        if spec.name not in available:
            yield f"output {spec.name!r} is produced by no stage"


def check_operators(
    facts: GraphFacts, foreign: Schemas, brought: Collection[tuple[str, str]] = ()
) -> None:
    """Check that every operator that the outputs need exists at the imported opset.

    Parameters
    ----------
    facts : GraphFacts
        The model's graph.
    foreign : Schemas
        Operators of the runtime outside ONNX's own domains.
    brought : collection of tuple of str
        (domain, op type) of the caller's custom kernels.

    Raises
    ------
    ModelError
        An operator is unknown. The error has the node, the operator, its domain and the opset.
    """
    functions = {(f.domain, f.name) for f in facts.proto.functions} | set(brought)
    opsets = facts.model.opsets
    newest = onnx.defs.onnx_opset_version()
    if opsets.get("", 0) > newest:
        raise ModelError(
            f"the model needs opset {opsets['']} of ai.onnx; "
            f"the installed onnx knows up to {newest}",
            "upgrade onnx and onnxruntime, or export the model with an older opset",
            numbers={"opset": opsets[""], "newest_opset": newest},
        )
    live = (facts.proto.graph.node[index] for index in sorted(facts.live))
    for node in itertools.chain.from_iterable(map(with_bodies, live)):
        name = operator_name(node)
        if name not in functions and not onnx_has(node, opsets):
            _check_operator(node, opsets[name[0]], foreign.get(name))


def _check_operator(node: onnx.NodeProto, version: int, schema: OperatorSchema | None) -> None:
    """Check that an operator that ONNX does not have is one of the runtime's.

    Parameters
    ----------
    node : NodeProto
        Node that uses the operator.
    version : int
        Opset version that the model imports of the node's domain.
    schema : OperatorSchema, optional
        The runtime's versions of the operator.
    """
    if schema is not None and schema.is_in(version):
        return
    where = f"node {node.name!r} uses {node.op_type} of domain {node.domain or 'ai.onnx'!r}"
    if schema is None and not is_onnx_domain(node.domain):
        raise ModelError(
            f"{where}, which neither ONNX nor onnxruntime has",
            "check the spelling, or provide a kernel: dx.load(..., custom_ops=[...]) or "
            "dx.load(..., custom_op_libraries=[...])",
            node=node.name,
            suggestions=[Suggestion("custom_ops"), Suggestion("custom_op_libraries")],
        )
    raise ModelError(
        f"{where}, which opset {version} does not have{_other_versions(node, schema)}",
        "check the operator's name and the model's opset_import",
        node=node.name,
        numbers={"opset": version},
    )


def _other_versions(node: onnx.NodeProto, schema: OperatorSchema | None) -> str:
    """Return in which opsets an operator exists, as a clause; empty if in none."""
    of_onnx = [s for s in onnx.defs.get_all_schemas_with_history() if s.name == node.op_type]
    changes = {s.since_version: s.deprecated for s in of_onnx if s.domain == node.domain}
    changes.update({} if schema is None else schema.versions)
    first = min((since for since, is_removed in changes.items() if not is_removed), default=None)
    removed = min((since for since, is_removed in changes.items() if is_removed), default=None)
    if first is None:
        return ""
    return f": it is in opset {first} and later" + (f", up to {removed - 1}" if removed else "")
