"""Whether a stage graph holds together: every fault is collected, then raised at once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator

from dask_onnx.analysis.graph import GraphFacts
from dask_onnx.analysis.randomness import random_nodes
from dask_onnx.analysis.shapes import Schemas, is_standard
from dask_onnx.core.errors import ModelError, PlanError
from dask_onnx.modelio.weights import with_bodies
from dask_onnx.planning.stages import StageGraph

_SHOWN = 5


def check_stages(stages: StageGraph, facts: GraphFacts) -> None:
    """Check that `stages` does what the model does.

    Raises
    ------
    PlanError
        With all problems in one message: a node in no stage, one that draws random numbers in
        several, a value without a producer, with two, or from a later stage, an edge that goes
        back, an output that nobody makes.
    """
    problems = [
        *_coverage(stages, facts),
        *_makers(stages),
        *_order(stages),
        *_outputs(stages),
    ]
    if problems:
        shown = "; ".join(problems[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        plural = "problem" if len(problems) == 1 else "problems"
        raise PlanError(
            f"{len(problems)} {plural} in the stage graph: {shown}{more}",
            "a strategy of your own must give every node to a stage, in topological order",
        )


def _coverage(stages: StageGraph, facts: GraphFacts) -> Iterator[str]:
    times = Counter(index for stage in stages.stages for index in stage.nodes)
    wanted = facts.ancestors(spec.name for spec in stages.outputs)
    unseeded = set(random_nodes(facts, tuple(spec.name for spec in stages.outputs))[1])
    for index in wanted:
        name = facts.nodes[index].name
        if not times[index]:
            yield f"node {name!r} is in no stage"
        elif times[index] > 1 and name in unseeded:
            yield f"node {name!r} draws anew in each of {times[index]} stages"
    for index in sorted(set(times) - set(wanted)):
        if not 0 <= index < len(facts.nodes):
            yield f"there is no node at position {index}"


def _makers(stages: StageGraph) -> Iterator[str]:
    """Nodes may be repeated, but others must get a value from one stage alone."""
    times = Counter(spec.name for stage in stages.stages for spec in stage.outputs)
    for name, count in times.items():
        if count > 1:
            yield f"value {name!r} is given by {count} stages"


def _order(stages: StageGraph) -> Iterator[str]:
    there = {spec.name for spec in stages.inputs}
    made = set(stages.producers)
    for stage in stages.stages:
        for spec in stage.inputs:
            if spec.name not in there:
                where = "comes from a later stage" if spec.name in made else "has no producer"
                yield f"value {spec.name!r}, which stage {stage.label} needs, {where}"
        there.update(spec.name for spec in stage.outputs)
    for edge in stages.edges:
        if edge.producer >= edge.consumer:
            yield f"the edge of {edge.value!r} goes from stage {edge.producer} to {edge.consumer}"


def _outputs(stages: StageGraph) -> Iterator[str]:
    there = {spec.name for spec in stages.inputs} | set(stages.producers)
    for spec in stages.outputs:
        if spec.name not in there:
            yield f"output {spec.name!r} is made by no stage"


def check_operators(
    facts: GraphFacts, foreign: Schemas, brought: Collection[tuple[str, str]] = ()
) -> None:
    """Check that every operator that the outputs need exists, at the opset that is imported.

    Parameters
    ----------
    foreign : operators outside ONNX's own domains that the runtime has
    brought : (domain, op type) of the caller's own kernels

    Raises
    ------
    ModelError
        Naming the node, the operator, its domain and the opset.
    """
    import onnx.defs  # onnx itself is imported; the schemas are only loaded on first use

    functions = {(f.domain, f.name) for f in facts.proto.functions} | set(brought)
    opsets = facts.model.opsets
    newest = onnx.defs.onnx_opset_version()
    if opsets.get("", 0) > newest:
        raise ModelError(
            f"the model needs opset {opsets['']} of ai.onnx; "
            f"the installed onnx knows up to {newest}",
            "upgrade onnx and onnxruntime, or export the model with an older opset",
        )
    live = (facts.proto.graph.node[index] for index in sorted(facts.live))
    for node in itertools.chain.from_iterable(map(with_bodies, live)):
        domain = node.domain
        if (domain, node.op_type) in functions or (domain, node.op_type) in foreign:
            continue
        where = f"node {node.name!r} uses {node.op_type} of domain {domain or 'ai.onnx'!r}"
        if not is_standard(domain):
            raise ModelError(
                f"{where}, which neither ONNX nor onnxruntime has",
                "check the spelling, or bring a kernel: dx.load(..., custom_ops=[...]) or "
                "dx.load(..., custom_op_libraries=[...])",
            )
        version = opsets.get(domain)
        if version is None:
            raise ModelError(
                f"{where}, and the model imports no opset of that domain",
                "add the domain to opset_import, or export the model again",
            )
        if not onnx.defs.has(node.op_type, version, domain):
            raise ModelError(
                f"{where}, which opset {version} does not have",
                "check the operator's name and the model's opset_import",
            )
